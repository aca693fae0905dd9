"""Forks writers of checkpoints and kills them: `python killed_writer.py ROOT`; prints what was found as JSON.

Twice over: at random moments of a run that saves in the background, and at every single event of the file system (open,
mkdir, rename, remove) that one save causes. Forking spares the start of an interpreter for each of some hundred kills.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pleinair.checkpoint.store import list_checkpoints, newest_checkpoint, read_manifest, read_tensors, save_checkpoint
from pleinair.checkpoint.writer import CheckpointWriter
from pleinair.records.checkpoint import Saved

NUM_KILLS = 30
NUM_VALUES = 1 << 17


def state_of(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: {"w": torch.full((NUM_VALUES,), float(step))} for name in ("model.safetensors", "moments.safetensors")
    }


def is_of_its_step(directory: Path) -> bool:
    """Whether all of it was saved at one step, the one it says."""
    step = read_manifest(directory).step
    return all(bool((read_tensors(directory, name)["w"] == step).all()) for name in state_of(0))


def in_child(body: Callable[[], None]) -> int:
    """Run it in a forked process; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(0)
    return pid


def save_forever(root: Path, first: int, told: int, staging: str) -> None:
    """Save every step in the background; every step that is said to be durable goes to the pipe `told`."""
    writer = CheckpointWriter(root, keep=2, keep_every=10, staging=staging)  # type: ignore[arg-type]
    for step in range(first, first + 10_000):
        writer.save(step, state_of(step), {"step.json": step}, config_digest="c")
        writer.wait_until_staged()
        for end in writer.finished():
            assert isinstance(end, Saved)
            os.write(told, f"{end.step}\n".encode())


def kill_at_random(root: Path) -> dict[str, object]:
    draw, durable, steps, wrong = random.Random(0), 0, [], []
    for kill in range(NUM_KILLS):
        reads, writes = os.pipe()
        first = steps[-1] + 1 if steps else 1
        pid = in_child(lambda: save_forever(root, first, writes, ("save", "update")[kill % 2]))  # noqa: B023
        os.close(writes)
        time.sleep(0.02 + draw.random() * 0.4)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(reads) as told:
            durable = max([durable, *(int(line) for line in told if line.endswith("\n"))])
        newest = newest_checkpoint(root, wrong.append)
        if newest is not None:
            steps.append(read_manifest(newest).step)
            if steps[-1] < durable or not is_of_its_step(newest):
                wrong.append(f"{newest} after {durable} was durable")
        elif durable:
            wrong.append(f"nothing left of {durable}")
    return {"steps": steps, "durable": durable, "wrong": wrong}


def kill_at_every_event(root: Path) -> dict[str, object]:
    """Kill one save at its first event of the file system, another at its second, and so on until one is complete."""
    outcomes, wrong = [], []
    for step in (1, 2):
        save_checkpoint(root / "before", step, state_of(step), {"step.json": step}, config_digest="c", keep=2)
    before = [path.name for path in list_checkpoints(root / "before")]
    for kill_at in range(1, 1000):
        here = Path(shutil.copytree(root / "before", root / f"event-{kill_at}"))
        pid = in_child(lambda: save_and_die(here, kill_at))  # noqa: B023
        _, status = os.waitpid(pid, 0)
        newest = newest_checkpoint(here, wrong.append)
        after = [path.name for path in list_checkpoints(here)]
        if newest is None or not is_of_its_step(newest):
            wrong.append(f"event {kill_at}: {newest}")
        if after not in (before, [*before, "step-00000003"], [before[1], "step-00000003"]):
            wrong.append(f"event {kill_at}: {after}")
        outcomes.append("step-00000003" in after)
        if not os.WIFSIGNALED(status):
            return {"num_events": kill_at - 1, "outcomes": outcomes, "wrong": wrong}
    raise AssertionError("one save caused a thousand events")


def save_and_die(root: Path, kill_at: int) -> None:
    left = [kill_at]

    def count(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    save_checkpoint(root, 3, state_of(3), {"step.json": 3}, config_digest="c", keep=2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {"random": kill_at_random(Path(sys.argv[1]) / "random"), "events": {}}
    NUM_VALUES = 1000
    found["events"] = kill_at_every_event(Path(sys.argv[1]))
    print(json.dumps(found))
