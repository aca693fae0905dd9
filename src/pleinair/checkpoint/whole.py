"""A checkpoint that several ranks wrote, as programs read it that know one file per model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pleinair.checkpoint.merge import stream_tensors
from pleinair.checkpoint.pieces import INDEX


@contextmanager
def in_one_piece(path: Path, name: str = "transformer.safetensors") -> Iterator[Path]:
    """`path` itself, or, where its weights are in pieces, a temporary folder.

    That one holds `name` in float32 and `config.json`; a tensor at a time is in memory. Raises CheckpointError.
    """
    if not (path / INDEX).exists():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="pleinair-whole-") as folder:
        stream_tensors([path], name, lambda tensors: tensors[0], Path(folder) / name)
        shutil.copyfile(path / "config.json", Path(folder) / "config.json")
        yield Path(folder)
