"""Whatever happens to a checkpoint's files, it is found, its file is named, and the one before is used."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.training.damage import flip_bit, half_write, remove, truncate, zero_page
from pleinair.checkpoint import store
from pleinair.records.errors import CheckpointError

FILES = ("model.safetensors", "moments.safetensors")
NUM_PLACES = 40
"""Random places per kind of damage."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, to be copied."""
    root = tmp_path_factory.mktemp("damage")
    for step in (1, 2):
        random_values = torch.Generator().manual_seed(step)
        tensors = {name: {"w": torch.randn(6000, generator=random_values)} for name in FILES}
        store.save_checkpoint(root, step, tensors, {"config.json": {"width": 6}}, config_digest="c")
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "root"))


KINDS: list[Callable[[Path, random.Random], None]] = [flip_bit, zero_page, truncate, half_write, remove]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damage_anywhere_is_found_and_the_file_named(root: Path, kind: Callable[[Path, random.Random], None]) -> None:
    draw = random.Random(kind.__name__)
    directory = root / "step-00000002"
    for number in range(NUM_PLACES):
        path = directory / (*FILES, "config.json", "manifest.json")[number % 4]
        content = path.read_bytes()
        kind(path, draw)
        with pytest.raises(CheckpointError, match=path.name):
            store.verify_checkpoint(directory)
        path.write_bytes(content)
    assert store.verify_checkpoint(directory).step == 2


def test_every_bit_of_the_manifest_counts(root: Path) -> None:
    directory = root / "step-00000002"
    path = directory / "manifest.json"
    content = path.read_bytes()
    for place in range(0, 8 * len(content), 61):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        if _means_the_same(bytes(changed), content):
            continue
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            store.verify_checkpoint(directory)


def _means_the_same(changed: bytes, content: bytes) -> bool:
    """A space that became a tab is no damage."""
    try:
        return bool(json.loads(changed) == json.loads(content))
    except ValueError:
        return False


def test_shards_that_were_swapped_are_found(root: Path) -> None:
    directory = root / "step-00000002"
    (directory / FILES[0]).rename(directory / "aside")
    (directory / FILES[1]).rename(directory / FILES[0])
    (directory / "aside").rename(directory / FILES[1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not match its hash"):
        store.verify_checkpoint(directory)


def test_a_shard_of_another_checkpoint_is_found(root: Path) -> None:
    shutil.copy(root / "step-00000001" / FILES[0], root / "step-00000002" / FILES[0])
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not match its hash"):
        store.verify_checkpoint(root / "step-00000002")


def edits() -> Iterator[tuple[str, Callable[[dict[str, object]], object]]]:
    yield "step", lambda document: document.update(step=3)
    yield "files", lambda document: document["files"].pop(FILES[0])  # type: ignore[attr-defined]
    yield "seal", lambda document: document.pop("seal")
    yield "parent", lambda document: document.update(parent=None)


@pytest.mark.parametrize(("what", "edit"), list(edits()), ids=lambda value: value if isinstance(value, str) else "")
def test_an_edited_manifest_is_found(root: Path, what: str, edit: Callable[[dict[str, object]], object]) -> None:
    path = root / "step-00000002" / "manifest.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"manifest\.json does not match its seal"):
        store.verify_checkpoint(root / "step-00000002")


@pytest.mark.parametrize("name", ["../step-00000001/config.json", "/etc/passwd", ".."])
def test_a_manifest_that_names_files_elsewhere_is_refused(root: Path, name: str) -> None:
    path = root / "step-00000002" / "manifest.json"
    document = json.loads(path.read_text())
    document["files"] = {name: document["files"]["config.json"]}
    for new in ("seal", "sequence"):  # as an earlier version wrote it, so that no seal is asked for
        del document[new]
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="names the file .* outside of it"):
        store.verify_checkpoint(root / "step-00000002")


@pytest.mark.parametrize("file", [*FILES, "config.json", "manifest.json"])
def test_the_checkpoint_before_is_used_and_the_damaged_file_told(root: Path, file: str) -> None:
    truncate(root / "step-00000002" / file, random.Random(0))
    said: list[str] = []
    assert store.newest_checkpoint(root, said.append) == root / "step-00000001"
    assert len(said) == 1
    for word in (str(root / "step-00000002"), file, "falling back to the checkpoint before it"):
        assert word in said[0]


def test_a_newest_that_vanished_is_told(root: Path) -> None:
    shutil.rmtree(root / "step-00000002")
    said: list[str] = []
    assert store.newest_checkpoint(root, said.append) == root / "step-00000001"
    assert said == [
        f"{root / 'latest'} names step-00000002, which is not there; falling back to the checkpoint before it"
    ]


def test_when_all_are_damaged_there_is_none(root: Path) -> None:
    for step in (1, 2):
        (root / f"step-0000000{step}" / "config.json").unlink()
    said: list[str] = []
    assert store.newest_checkpoint(root, said.append) is None
    assert len(said) == 2
