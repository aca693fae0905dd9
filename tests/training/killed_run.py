"""A small real run that is to be killed: the engine, FSDP2 over the ranks, checkpoints in the background.

    python -m tests.training.killed_run RUN_DIR NUM_STEPS [--save-seconds S] [--fault KIND:RANK:STEP:ATTEMPT ...]

KIND is what the rank does to itself in that step of that attempt, or in its first step if it begins later: `kill`
(SIGKILL, at a random moment within two steps' time), `stop` (SIGSTOP) or `sleep` (for an hour, while the others wait in a
collective). Every loss that any attempt ever computes is kept in `losses.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pleinair.cluster.rank import ATTEMPT_DIR, arm, timeouts
from pleinair.model.parallelize import MeshConfig, ParallelConfig, parallelize
from pleinair.records.run_events import EVENTS, Rendezvous, failure_history
from pleinair.training.engine import Phase, Run, StepRecord, train
from pleinair.training.hooks.progress import Beats
from pleinair.training.mesh import open_mesh
from tests.training.small_stages import Share, pretrain_stage, settings

ROOT = Path(__file__).parents[2]
LOSSES = "losses.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("num_steps", type=int)
    parser.add_argument("--save-seconds", type=float, default=1e-9)
    parser.add_argument("--fault", action="append", default=[])
    options = parser.parse_args()
    train_rank(options.run_dir, options.num_steps, options.fault, options.save_seconds)


def train_rank(run_dir: Path, num_steps: int, faults: Sequence[str], save_seconds: float = 1e-9) -> None:
    """Train as the rank that the environment names."""
    torch.set_num_threads(1)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    heartbeat = arm(run_dir, rank)
    init_seconds, collective_seconds = timeouts()
    shape = MeshConfig(shard=world_size)
    with open_mesh(shape, init_timeout_seconds=init_seconds, collective_timeout_seconds=collective_seconds) as mesh:
        heartbeat.tell(Rendezvous(rank=rank, world_size=mesh.world_size))
        stage = pretrain_stage()
        parallelize(stage.model, mesh.device_mesh, ParallelConfig(mesh=shape))
        train(
            stage,
            [Phase("latents", num_steps, 8, Share(mesh))],
            settings(checkpoint_seconds=save_seconds),
            run_dir,
            config_digest="d",
            mesh=mesh,
            hooks=[Losses(run_dir), Faults(faults, rank), Beats(heartbeat)],
            failures=failure_history(run_dir / EVENTS),
        )


def attempt_number() -> int:
    """Which life of the ranks this is, under our launcher or torchrun."""
    if ATTEMPT_DIR in os.environ:
        return int(Path(os.environ[ATTEMPT_DIR]).name.rpartition("-")[2])
    return 1 + int(os.environ["TORCHELASTIC_RESTART_COUNT"])


class Losses:
    """Rank 0 keeps every loss as it is computed, with its attempt."""

    def __init__(self, run_dir: Path) -> None:
        self.path, self.attempt = run_dir / LOSSES, attempt_number()

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        if run.mesh.rank == 0:
            with self.path.open("a") as log:
                log.write(json.dumps([self.attempt, record.step, record.loss, record.grad_norm]) + "\n")
        return {}


class Faults:
    """Does to this rank what it is told, between the gradient and the update."""

    def __init__(self, faults: Sequence[str], rank: int) -> None:
        told, here = [fault.split(":") for fault in faults], (rank, attempt_number())
        self.waiting = [(int(step), kind) for kind, at, step, life in told if (int(at), int(life)) == here]
        self.step_began = time.monotonic()

    def allows_update(self, run: Run[Any], loss: float, grad_norm: float) -> bool:
        due = [fault for fault in self.waiting if fault[0] <= run.step]
        self.waiting = [fault for fault in self.waiting if fault not in due]
        kind = due[0][1] if due else ""
        if kind == "kill":
            soon = random.uniform(0.0, 2.0) * (time.monotonic() - self.step_began)
            threading.Timer(soon, os.kill, (os.getpid(), signal.SIGKILL)).start()
        elif kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "sleep":
            time.sleep(3600)
        return True

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        self.step_began = time.monotonic()
        return {}


def command(run_dir: Path, num_steps: int, faults: Sequence[str] = (), *, save_seconds: float = 1e-9) -> list[str]:
    """The words that start a rank of it."""
    words = [sys.executable, "-m", "tests.training.killed_run", str(run_dir), str(num_steps)]
    return [*words, "--save-seconds", str(save_seconds), *(word for one in faults for word in ("--fault", one))]


def environment() -> dict[str, str]:
    """Where ranks find this module and the package, one thread each."""
    return {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


def equal_lives(disturbed: Path, calm: Path) -> list[bool]:
    """Per attempt of a disturbed run, whether every loss and norm it computed has the bits of the undisturbed run's."""
    expected = {step: values for _, step, *values in read_losses(calm)}
    lives: dict[int, bool] = {}
    for life, step, *values in read_losses(disturbed):
        lives[life] = lives.get(life, True) and values == expected[step]
    return [lives[life] for life in sorted(lives)]


def read_losses(run_dir: Path) -> list[list[Any]]:
    """(attempt, step, loss, gradient norm) of every whole line."""
    lines = (run_dir / LOSSES).read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


if __name__ == "__main__":
    main()
