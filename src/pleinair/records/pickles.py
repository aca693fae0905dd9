"""Formats that run code when they are opened, known by the ending of their name."""

from __future__ import annotations

from pathlib import Path

from pleinair.records.errors import CheckpointError

PICKLES = frozenset({".bin", ".ckpt", ".distcp", ".pickle", ".pkl", ".pt", ".pth"})


def refuse_pickle(path: Path) -> None:
    """Raises CheckpointError, with the file unopened, for a name that ends like a pickle's."""
    if path.suffix.lower() in PICKLES:
        raise CheckpointError(
            f"{path} is a pickle file, which can run any code when it is opened, so it was not opened: convert it to "
            ".safetensors with a tool you trust, where you would run its code"
        )
