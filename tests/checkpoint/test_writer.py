"""Checkpoints written beside training: what was saved is what is read, one at a time, and a kill or a full disk costs none."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from pleinair.checkpoint import store
from pleinair.checkpoint.drafts import draft_path
from pleinair.checkpoint.writer import CheckpointWriter
from pleinair.records.checkpoint import Refused, Saved

MODEL = "model.safetensors"


def state(value: float, num_values: int = 5000) -> dict[str, dict[str, Tensor]]:
    return {MODEL: {"w": torch.full((num_values,), float(value)), "turned": torch.arange(6.0).view(2, 3).t() * value}}


def save(writer: CheckpointWriter, step: int, tensors: dict[str, dict[str, Tensor]] | None = None) -> float:
    return writer.save(step, tensors or state(step), {"step.json": step}, config_digest="c")


def ends(writer: CheckpointWriter) -> list[Saved | Refused]:
    writer.wait()
    return writer.finished()


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The system refuses every byte beyond, as a full disk does (Python ignores the signal that comes with it)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_was_saved_is_read_back_and_told_with_its_times(tmp_path: Path, asynchronous: bool) -> None:
    writer = CheckpointWriter(tmp_path, asynchronous=asynchronous)
    stall = save(writer, 3)
    (end,) = ends(writer)
    assert isinstance(end, Saved)
    assert (end.step, end.directory, end.num_bytes) == (3, "step-00000003", 20_024)
    assert end.stall_seconds == stall > 0 < end.write_seconds
    assert writer.finished() == []
    directory = store.newest_checkpoint(tmp_path)
    assert directory == tmp_path / "step-00000003"
    read = store.read_tensors(directory, MODEL)
    assert all(torch.equal(read[name], tensor) for name, tensor in state(3)[MODEL].items())
    assert store.read_document(directory, "step.json") == 3


def test_saving_in_the_background_or_not_gives_the_same_files(tmp_path: Path) -> None:
    tensors = {
        MODEL: {"b": torch.randn(9).bfloat16(), "a": torch.tensor(1), "none": torch.empty(0, 3)},
        "turned.safetensors": {"w": torch.randn(4, 6).t()},
        "z.safetensors": {},
    }
    files = []
    for name, asynchronous in (("a", True), ("b", False)):
        writer = CheckpointWriter(tmp_path / name, asynchronous=asynchronous)
        writer.reserve(tensors)
        save(writer, 1, tensors)
        writer.close()
        files.append(store.verify_checkpoint(tmp_path / name / "step-00000001").files)
    store.save_checkpoint(tmp_path / "c", 1, tensors, {"step.json": 1}, config_digest="c")
    assert files == [store.verify_checkpoint(tmp_path / "c" / "step-00000001").files] * 2


@pytest.mark.parametrize("staging", ["save", "update"])
def test_training_may_change_the_tensors_once_they_are_staged(
    tmp_path: Path, staging: Literal["save", "update"]
) -> None:
    writer = CheckpointWriter(tmp_path, staging=staging, keep=10)
    tensors = state(0, num_values=1_000_000)
    for step in range(1, 6):
        tensors[MODEL]["w"].fill_(step)
        save(writer, step, tensors)
        writer.wait_until_staged()
        tensors[MODEL]["w"].fill_(-1.0)
    writer.close()
    for step in range(1, 6):
        assert bool((store.read_tensors(tmp_path / f"step-{step:08d}", MODEL)["w"] == step).all())


def test_waiting_until_staged_counts_as_stall(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, staging="update")
    stall = save(writer, 1, state(1, num_values=4_000_000)) + writer.wait_until_staged()
    (end,) = ends(writer)
    assert end.stall_seconds == pytest.approx(stall)
    assert writer.wait_until_staged() == 0.0


def test_the_staging_memory_is_used_again(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    writer.reserve(state(0))
    before = writer._buffer._buffer.data_ptr()
    for step in (1, 2):
        save(writer, step)
    writer.close()
    assert writer._buffer._buffer.data_ptr() == before
    assert writer._buffer.num_bytes == 64 << 10


def test_one_checkpoint_is_written_at_a_time(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=5)
    for step in (1, 2, 3):
        save(writer, step, state(step, num_values=500_000))
        assert sum(thread.name.startswith("checkpoint") for thread in threading.enumerate()) <= 1
    assert [end.step for end in ends(writer)] == [1, 2, 3]
    assert [path.name[-1] for path in store.list_checkpoints(tmp_path)] == ["1", "2", "3"]


def test_a_save_while_another_is_written_is_skipped_where_that_is_wanted(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, when_busy="skip")
    save(writer, 1, state(1, num_values=8_000_000))
    stall = save(writer, 2)
    skipped, saved = sorted(ends(writer), key=lambda end: -end.step)
    assert isinstance(skipped, Refused)
    assert "step 2 was skipped: the checkpoint before it is still being written" in skipped.reason
    assert skipped.stall_seconds == stall < saved.write_seconds
    assert [path.name for path in store.list_checkpoints(tmp_path)] == ["step-00000001"]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_is_told_and_the_older_checkpoint_stays(tmp_path: Path, asynchronous: bool) -> None:
    writer = CheckpointWriter(tmp_path, asynchronous=asynchronous, keep=1)
    save(writer, 1)
    assert isinstance(ends(writer)[0], Saved)
    for limit in (0, 100, 19_000):
        with files_of_at_most(limit):
            save(writer, 2)
            (end,) = ends(writer)
        assert isinstance(end, Refused)
        assert "step 2 could not be written" in end.reason
        assert "free space there; the earlier ones are untouched" in end.reason
        assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    save(writer, 3)
    assert isinstance(ends(writer)[0], Saved)
    assert store.newest_checkpoint(tmp_path) == tmp_path / "step-00000003"


def test_training_does_not_wait_for_a_copy_that_was_never_made(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "checkpoints", staging="update")
    (tmp_path / "checkpoints").touch()  # no directory can be made there
    save(writer, 1)
    waiting = threading.Thread(target=writer.wait_until_staged, daemon=True)
    waiting.start()
    waiting.join(60)
    assert not waiting.is_alive()
    assert isinstance(ends(writer)[0], Refused)


def test_a_document_that_is_no_json_is_refused_at_once(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path)
    with pytest.raises(TypeError):
        writer.save(1, state(1), {"a.json": object()}, config_digest="c")
    assert ends(writer) == []
    assert not tmp_path.exists() or list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    save(CheckpointWriter(tmp_path, asynchronous=False), 1)
    for left in (".step-00000002.abc-1.partial", ".step-00000001.pruned"):
        (tmp_path / left).mkdir()
    (tmp_path / ".step-00000002.now-1.partial").mkdir()
    CheckpointWriter(tmp_path, session="now")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".step-00000002.now-1.partial",  # of another rank of this start, which was quicker
        "latest",
        "step-00000001",
    ]
    CheckpointWriter(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_rank_0_waits_for_the_others_and_gives_up_by_name(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, world_size=2, session="s", peer_timeout_seconds=0.1)
    save(writer, 1)
    (end,) = ends(writer)
    assert isinstance(end, Refused)
    assert "rank 1 has not written its part after 0.1 s" in end.reason
    assert list(tmp_path.iterdir()) == []


def test_ranks_of_which_only_the_first_has_something_to_write_all_learn_of_it(tmp_path: Path) -> None:
    ranks = [CheckpointWriter(tmp_path, rank=rank, world_size=3, session="s") for rank in range(3)]
    for writer in reversed(ranks):
        save(writer, 1)
    found = [end for writer in ranks for end in ends(writer)]
    assert [end.directory for end in found if isinstance(end, Saved)] == ["step-00000001"] * 3
    assert [end.num_bytes for end in found if isinstance(end, Saved)] == [20_024, 0, 0]
    assert sorted(store.verify_checkpoint(tmp_path / "step-00000001").files) == [MODEL, "step.json"]


def test_a_mistake_of_the_writer_itself_is_raised_in_training(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, world_size=2, session="s")
    draft = draft_path(tmp_path, 1, "s-1")
    draft.mkdir()
    (draft / "rank-00001.json").write_text("{")
    save(writer, 1)
    writer.wait()
    with pytest.raises(json.JSONDecodeError):
        writer.finished()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"keep": 0}, "keep is 0"),
        ({"world_size": 2, "when_busy": "skip", "session": "s"}, "would skip different steps: use 'wait'"),
        ({"world_size": 2}, "needs a process group, or a session"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        CheckpointWriter(tmp_path, **wrong)


@pytest.fixture(scope="module")
def killed() -> dict[str, Any]:
    """In memory where that can be had: a killed process loses no page of a file, so the disk would only be slower."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="pleinair-killed-", dir=memory) as root:
        command = [sys.executable, Path(__file__).with_name("killed_writer.py"), root]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def test_thirty_kills_at_random_moments_lose_nothing_that_was_said_to_be_saved(killed: dict[str, Any]) -> None:
    found = killed["random"]
    assert found["wrong"] == []
    assert found["steps"] == sorted(found["steps"])
    assert len(found["steps"]) >= 20
    assert found["durable"] > 10, "the writers got somewhere"


def test_a_kill_at_any_event_of_the_file_system_leaves_the_old_set_or_one_whole_more(killed: dict[str, Any]) -> None:
    found = killed["events"]
    assert found["wrong"] == []
    assert found["num_events"] > 15
    assert found["outcomes"] == sorted(found["outcomes"]), "old until some event, new from there on"
    assert {False, True} == set(found["outcomes"])
