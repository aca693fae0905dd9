"""pleinair: the open system behind a Krea-2-class text-to-image model. Parts are imported by name; nothing heavy loads here."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "sample":
        from pleinair.cli.sample import sample

        return sample
    raise AttributeError(f"module 'pleinair' has no attribute {name!r}")
