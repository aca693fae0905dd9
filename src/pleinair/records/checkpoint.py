"""What is known of a checkpoint without opening it. Read by training, export and cluster tooling alike; no torch here."""

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
    sequence: int = 0
    """Order of saving within the directory: larger than that of every checkpoint that was there. The newest counts, also
    after a run went back to an earlier step."""
    lineage: tuple[str, ...] = ()
    """Checkpoints it descends from, newest first, of those that were still there."""
    world_size: int = 1
    """Processes that wrote it."""
    token: str = ""
    """A word of its own, by which the processes that wrote it know it."""
    files: dict[str, FileDigest] = field(default_factory=dict)
    """Every other file of the directory."""


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """Size and SHA-256 of one file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that is whole, durable and listed."""

    step: int
    directory: str
    """Its directory's name."""
    num_bytes: int
    """Bytes that this process wrote."""
    stall_seconds: float
    """What training waited for it."""
    write_seconds: float
    """From the call to `save` until it was durable. A failure before that falls back to the checkpoint before."""
    began: float
    """`time.monotonic()` at the call, to be laid beside the times of the steps."""
    slowed_seconds: float | None = None
    """What the steps beside the write took longer, all together; None where nobody compared them."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A checkpoint that was not written; the earlier ones are untouched."""

    step: int
    reason: str
    """A sentence: what, and what to do."""
    stall_seconds: float
    write_seconds: float
    began: float
