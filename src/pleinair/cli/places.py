"""Where things live on this machine. The only place, with the cluster tooling, that looks at the environment."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

SYSTEM_HOME = Path("/var/lib/pleinair")
"""Home of root's warehouse: Postgres runs as another user there, which cannot look into root's own home."""


def data_home() -> Path:
    """Folder of the embedded database and the stored pictures: $PLEINAIR_HOME, or the user's data directory."""
    if chosen := os.environ.get("PLEINAIR_HOME"):
        return Path(chosen)
    if os.geteuid() == 0:
        return SYSTEM_HOME
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "pleinair"


def cache_dir() -> Path:
    """Downloads and conversions that can be had again: $PLEINAIR_CACHE, or the user's cache directory."""
    if chosen := os.environ.get("PLEINAIR_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pleinair"


def text_encoder_dir() -> Path:
    """The converted text encoder."""
    return cache_dir() / "smollm2-135m"


def shipped(name: str) -> Path:
    """A file that comes with the package: `autoencoder`, `judge` or a model's name."""
    return Path(str(files("pleinair") / "assets" / f"{name}.safetensors"))
