"""What is known of a checkpoint without opening it: the manifest. Read by training, export and cluster tooling alike."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """Contents of `manifest.json` in a checkpoint directory."""

    step: int
    """Optimiser steps done."""
    config_digest: str
    """SHA-256 of the configuration that made it."""
    parent: str | None
    """Directory name of the checkpoint before it in the same run, if any."""
    created: str
    """UTC time, ISO 8601."""
    files: dict[str, FileDigest] = field(default_factory=dict)
    """Every other file of the directory."""


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """Size and SHA-256 of one file."""

    num_bytes: int
    sha256: str
