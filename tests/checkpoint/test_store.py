import os
from pathlib import Path

import pytest
import torch

from pleinair.checkpoint import store
from pleinair.records.errors import CheckpointError


def save(root: Path, step: int, keep: int = 2) -> Path:
    state = {"weight": torch.full((64,), float(step))}
    return store.save_checkpoint(
        root, step, {"model.safetensors": state}, {"config.json": {"a": 1}}, config_digest="c", keep=keep
    )


def test_a_checkpoint_reads_back_with_its_manifest(tmp_path: Path) -> None:
    save(tmp_path, 3)
    directory = save(tmp_path, 5)
    manifest = store.verify_checkpoint(directory)
    assert (manifest.step, manifest.parent, sorted(manifest.files)) == (
        5,
        "step-00000003",
        ["config.json", "model.safetensors"],
    )
    assert store.read_tensors(directory, "model.safetensors")["weight"].tolist() == [5.0] * 64
    assert store.read_document(directory, "config.json") == {"a": 1}


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    assert [path.name for path in store.list_checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "no_manifest", "bad_manifest"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    file = newer / "model.safetensors"
    if damage == "flip":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        os.truncate(file, 100)
    elif damage == "remove":
        file.unlink()
    elif damage == "no_manifest":
        (newer / "manifest.json").unlink()
    else:
        (newer / "manifest.json").write_text('{"step": 2')
    said: list[str] = []
    assert store.newest_checkpoint(tmp_path, said.append) == older
    assert len(said) == 1
    assert str(newer) in said[0]
    assert "falling back" in said[0]


def test_a_save_that_fails_halfway_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    older = save(tmp_path, 1)
    with pytest.raises(TypeError):
        store.save_checkpoint(tmp_path, 2, {}, {"config.json": {"unwritable": object()}}, config_digest="c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", older.name]


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: its manifest.json cannot be read"):
        store.verify_checkpoint(tmp_path)
