import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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


def test_a_save_that_fails_halfway_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    older = save(tmp_path, 1)
    with pytest.raises(TypeError):
        store.save_checkpoint(tmp_path, 2, {}, {"config.json": {"unwritable": object()}}, config_digest="c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", older.name]


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: its manifest.json cannot be read"):
        store.verify_checkpoint(tmp_path)


def test_a_step_saved_again_gets_a_directory_of_its_own_and_counts_as_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 1)
    first = save(tmp_path, 2)
    again = save(tmp_path, 2)
    assert again.name == "step-00000002.1"
    assert store.newest_checkpoint(tmp_path) == again
    assert not first.exists(), "superseded, and the new one is durable"
    assert store.read_manifest(again).lineage == ("step-00000001",)


def test_after_going_back_the_newest_is_the_one_saved_last_and_the_way_to_it_is_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step, keep=3)
    for name in ("step-00000020", "step-00000030"):
        (tmp_path / name / "config.json").write_text("damaged")
    save(tmp_path, 15, keep=2)
    assert [path.name for path in store.list_checkpoints(tmp_path)] == [
        "step-00000010",  # a count of two over all would have kept the damaged ones instead
        "step-00000015",
        "step-00000020",
        "step-00000030",
    ]
    said: list[str] = []
    assert store.newest_checkpoint(tmp_path, said.append) == tmp_path / "step-00000015"
    assert said == []
    save(tmp_path, 25, keep=2)
    assert [path.name for path in store.list_checkpoints(tmp_path)] == [
        "step-00000015",
        "step-00000025",
        "step-00000030",
    ]


def test_one_of_each_stretch_of_steps_is_kept_for_good(tmp_path: Path) -> None:
    for step in range(7, 60, 7):
        store.save_checkpoint(tmp_path, step, {}, {"a.json": step}, config_digest="c", keep=2, keep_every=20)
    assert [path.name[-2:] for path in store.list_checkpoints(tmp_path)] == ["21", "42", "49", "56"]


def test_latest_names_the_newest_and_is_not_needed(tmp_path: Path) -> None:
    directory = save(tmp_path, 4)
    assert (tmp_path / "latest").read_text() == "step-00000004\n"
    for content in ("step-00000009", "../..", "\0", ""):
        (tmp_path / "latest").write_text(content)
        assert store.newest_checkpoint(tmp_path, lambda said: None) == directory
    (tmp_path / "latest").unlink()
    assert store.newest_checkpoint(tmp_path) == directory


def test_folders_and_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("step-abc", "step-1", "notes", "step-00000001"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000002").write_text("a file")
    for step in (3, 4, 5):
        save(tmp_path, step, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latest", "notes", "step-00000001", "step-00000002", "step-00000005", "step-1", "step-abc"
    ]  # fmt: skip


def test_a_checkpoint_of_an_earlier_version_without_seal_or_sequence_is_read(tmp_path: Path) -> None:
    directory = save(tmp_path, 1)
    document = store.read_document(directory, "manifest.json")
    for new in ("seal", "sequence", "lineage", "world_size", "token"):
        del document[new]
    (directory / "manifest.json").write_text(json.dumps(document))
    assert store.newest_checkpoint(tmp_path) == directory
    assert store.read_manifest(save(tmp_path, 2)).parent == "step-00000001"


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "pytorch_model.bin"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Evil(str(canary))))
    for offered in (lambda: store.read_manifest(folder / name), lambda: store.read_manifest(folder)):
        with pytest.raises(CheckpointError, match=f"{name} is a pickle.*was not opened: convert it to .safetensors"):
            offered()
    for reader in (lambda: store.read_tensors(folder, name), lambda: store.load_into(folder, name, {})):
        with pytest.raises(CheckpointError, match="is a pickle"):
            reader()
    (folder / name).rename(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        store.read_tensors(folder, "model.safetensors")
    assert not canary.exists()


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


def test_what_is_written_is_what_the_library_reads(tmp_path: Path) -> None:
    state = {
        "f32": torch.randn(3, 5),
        "bf16": torch.randn(7).bfloat16(),
        "bool": torch.tensor([True, False]),
        "i64": torch.tensor(5),
        "none": torch.empty(0, 4),
        "turned": torch.randn(4, 6).t(),
        "f8": torch.randn(9).to(torch.float8_e4m3fn),
    }
    directory = store.save_checkpoint(tmp_path, 1, {"m.safetensors": state}, {}, config_digest="c")
    by_library, by_us = load_file(directory / "m.safetensors"), store.read_tensors(directory, "m.safetensors")
    for name, tensor in state.items():
        for read in (by_library[name], by_us[name]):
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(read.float(), tensor.float()), name


def test_tensors_of_another_model_are_refused_by_name_before_any_is_changed(tmp_path: Path) -> None:
    directory = save(tmp_path, 1)
    weight = torch.zeros(64)
    for state, sentence in (
        ({"weight": weight, "bias": torch.zeros(1)}, "lacks 'bias'"),
        ({}, "also holds 'weight'"),
        ({"weight": torch.zeros(63)}, r"'weight' is torch.float32 \[64\] .* not torch.float32 \[63\]"),
        ({"weight": torch.zeros(64, dtype=torch.bfloat16)}, "not torch.bfloat16"),
    ):
        with pytest.raises(CheckpointError, match=sentence):
            store.load_into(directory, "model.safetensors", state)
    assert not weight.any()
    assert store.load_into(directory, "model.safetensors", {}, strict=False) == 0
