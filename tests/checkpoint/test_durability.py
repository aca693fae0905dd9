"""The order in which the disk is asked: a name is given only to what is durable, and is then made durable itself.

A killed process loses nothing that the system has taken, so no kill shows a missing `fsync`; a machine without power does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from pleinair.checkpoint.merge import merge_checkpoints
from pleinair.checkpoint.store import save_checkpoint
from pleinair.checkpoint.writer import CheckpointWriter


def inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


@dataclass
class Disk:
    """What has been asked of it; an assertion fails when a name is given too early."""

    durable: set[tuple[int, int]] = field(default_factory=set)
    """Files and directories whose contents are on the disk."""
    unsure: dict[tuple[int, int], str] = field(default_factory=dict)
    """Directories in which a name was changed since they were last made durable."""
    given: list[str] = field(default_factory=list)
    """Names, in order."""

    def fsync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self.durable.add((status.st_dev, status.st_ino))
        self.unsure.pop((status.st_dev, status.st_ino), None)

    def rename(self, old: Path, new: Path) -> None:
        if new.name.endswith(".pruned"):
            return
        assert not self.unsure, f"{new.name} comes before {self.unsure} is durable"
        for path in (old, *(old.iterdir() if old.is_dir() else ())):
            assert inode(path) in self.durable, f"{new.name} is named before {path.name} is on the disk"
        self.unsure[inode(new.parent)] = new.name
        self.given.append(new.name)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    watched, real = Disk(), {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def fsync(descriptor: int) -> None:
        real["fsync"](descriptor)
        watched.fsync(descriptor)

    def renaming(name: str) -> Callable[..., None]:
        def rename(old: Any, new: Any) -> None:
            watched.rename(Path(old), Path(new))
            real[name](old, new)

        return rename

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, renaming(name))
    return watched


TENSORS = {"model.safetensors": {"w": torch.ones(7)}, "optimiser.safetensors": {"m": torch.ones(3)}}
DOCUMENTS = {"run.json": {"learning_rate": 0.1, "has_head": False}, "config.json": {"width": 4}}


def test_a_checkpoint_is_named_when_all_of_it_is_on_the_disk(tmp_path: Path, disk: Disk) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, TENSORS, DOCUMENTS, config_digest="c")
    assert disk.given == ["step-00000001", "latest", "step-00000002", "latest", "step-00000003", "latest"]
    assert not disk.unsure


@pytest.mark.parametrize("asynchronous", [True, False])
def test_so_is_one_that_is_written_beside_training(tmp_path: Path, disk: Disk, asynchronous: bool) -> None:
    writer = CheckpointWriter(tmp_path, asynchronous=asynchronous)
    for step in (1, 2):
        writer.save(step, TENSORS, DOCUMENTS, config_digest="c")
    writer.close()
    assert [type(end).__name__ for end in writer.finished()] == ["Saved", "Saved"]
    assert disk.given == ["step-00000001", "latest", "step-00000002", "latest"]
    assert not disk.unsure


def test_a_merged_checkpoint_is_as_durable_as_its_inputs_which_may_be_removed_then(tmp_path: Path, disk: Disk) -> None:
    paths = [save_checkpoint(tmp_path, step, TENSORS, DOCUMENTS, config_digest="c") for step in (1, 2)]
    merge_checkpoints(paths, out=tmp_path / "merged")
    assert disk.given[-1] == "merged"
    assert not disk.unsure
