"""Checkpoints of 1 GiB: what training waits, and what its steps lose beside a write.

Every method saves the same 32 tensors of 32 MiB in every round, in turn, after a `sync`: torch.save as one file, the others as
two (weights, moments). The peers are fsynced and take the place of their last one by rename, as ours do; ours hash
besides. The steps are of a network on one thread, so that one of the machine's two hardware threads is the writer's, as the
host's processors are beside an accelerator. A step is 72 GFLOP: 89 million parameters, whose weights and moments fill 1 GiB,
need as much for 135 rows.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.aims import Aim
from benchmarks.krablet.rounds import Result, ratio, result
from benchmarks.training.blocks import Block, Drawing, quoted, row_of
from benchmarks.training.clocks import Took, timed, with_clocks
from benchmarks.training.drawing import across, dot, frame, frontier, legend, steps, svg
from pleinair.checkpoint.interval import StepTime, slowdown
from pleinair.checkpoint.store import load_into, save_checkpoint, verify_checkpoint
from pleinair.checkpoint.writer import CheckpointWriter
from pleinair.pages.plot import Axis, ticks
from pleinair.records.checkpoint import Saved

AIMS = (
    Aim(
        what="training waits for a checkpoint of 1 GiB",
        name="checkpoint_stall",
        of="ratio",
        most=0.02,
        note="1 GiB is copied at 1 to 2 GB/s on this machine, longer than a step; where memory was faster it was 0.015-0.024 x",
    ),
    Aim(what="the same, copied before the next step begins", name="checkpoint_stall_copied", note="no aim"),
    Aim(what="saving while training waits, hashed", name="checkpoint_total", of="ratio", most=1.3),
    Aim(what="stall and slowed steps together", name="checkpoint_cost", of="ratio", most=1),
    Aim(what="reading it back with all hashes", name="checkpoint_load", note="no aim"),
    Aim(what="where the time goes", name="checkpoint_frontier_*", note="no aim"),
)
NUM_TENSORS, NUM_VALUES = 32, 8 << 20
NUM_STEPS_BEFORE, NUM_STEPS_AFTER, MOST_STEPS = 4, 4, 60
NAME = "model.safetensors"
WAITED_FOR = ("torch_save", "safetensors", "blocking")
"""Methods that training waits for, so that the process's processor time is theirs; beside steps it is the steps' as well."""


@dataclass(frozen=True)
class Sample:
    """One save by one method."""

    stall: float
    durable: float
    """Seconds until it would survive a crash."""
    step_ratio: float = 1.0
    slowed: float = 0.0
    """Seconds lost in the steps beside it."""
    took: Took | None = None
    """Both clocks of the call."""


def measure(rounds: int) -> list[Result]:
    torch.set_num_threads(1)
    state = {f"layers.{number}.weight": torch.randn(NUM_VALUES) for number in range(NUM_TENSORS)}
    with scratch() as root:
        samples = measure_saves(state, root, rounds)
        loads = measure_loads(state, root, rounds)
    return [*rows(samples), loads]


@contextmanager
def scratch() -> Iterator[Path]:
    runs = Path("runs")  # ignored by git, and on a disk, where /tmp may be memory
    runs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=runs) as root:
        yield Path(root)


def measure_saves(state: Mapping[str, Tensor], root: Path, rounds: int) -> dict[str, list[Sample]]:
    """Every method once per round."""
    copied, overlapped = (CheckpointWriter(root / staging, keep=1, staging=staging) for staging in ("save", "update"))
    for writer in (copied, overlapped):
        writer.reserve(files_of(state))
    blocking = CheckpointWriter(root / "blocking", keep=1, asynchronous=False)
    methods: dict[str, Callable[[int], Sample]] = {
        "torch_save": lambda number: of_peer({root / "all.pt": lambda path: torch.save(dict(state), path)}),
        "safetensors": lambda number: of_peer(
            {root / name: lambda path, part=part: save_file(dict(part), path) for name, part in files_of(state).items()}
        ),
        "blocking": lambda number: in_training(blocking, state, number),
        "copied": lambda number: in_training(copied, state, number),
        "overlapped": lambda number: in_training(overlapped, state, number),
    }
    samples: dict[str, list[Sample]] = {name: [] for name in methods}
    for number in range(rounds + 1):
        for name, method in methods.items():
            os.sync()
            samples[name].append(method(number))
        shown = ", ".join(f"{name} {taken[-1].stall:.2f}/{taken[-1].durable:.2f}" for name, taken in samples.items())
        print(f"  round {number} (stall/durable s): {shown}", flush=True)
    return {
        name: taken[1:] for name, taken in samples.items()
    }  # the first pays for files and memory never touched before


def files_of(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The weights and the moments, say."""
    names = list(state)
    half = len(names) // 2
    return {
        NAME: {name: state[name] for name in names[:half]},
        "optimiser.safetensors": {name: state[name] for name in names[half:]},
    }


def of_peer(saves: Mapping[Path, Callable[[Path], None]]) -> Sample:
    """A save by another library, made durable as ours are."""

    def save_all() -> None:
        for path, save in saves.items():
            partial = path.with_suffix(".partial")
            save(partial)
            fsync(partial)
            os.replace(partial, path)
            fsync(path.parent)

    took = timed(save_all)
    return Sample(took.wall, took.wall, took=took)


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class Training:
    """Steps of a network, each with a forward and backward pass and an update."""

    def __init__(self) -> None:
        self.model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(6)))
        self.batch = torch.randn(1920, 1024)
        self.steps: list[StepTime] = []

    def step(self, before_update: Callable[[], object]) -> None:
        began = time.monotonic()
        self.model(self.batch).square().mean().backward()
        waits = time.monotonic()
        before_update()
        waited = time.monotonic() - waits
        for parameter in self.model.parameters():
            parameter.grad = None
        self.steps.append(StepTime(began=began + waited, ended=time.monotonic()))


def in_training(writer: CheckpointWriter, state: Mapping[str, Tensor], number: int) -> Sample:
    """One save in the middle of some steps."""
    training = Training()
    for _ in range(NUM_STEPS_BEFORE):
        training.step(lambda: None)
    took = timed(lambda: writer.save(number, files_of(state), {}, config_digest="c"))
    ends: list[Saved] = []
    while not ends and len(training.steps) < MOST_STEPS:
        training.step(writer.wait_until_staged)
        ends += [end for end in writer.finished() if isinstance(end, Saved)]
    writer.wait()
    ends += [end for end in writer.finished() if isinstance(end, Saved)]
    for _ in range(NUM_STEPS_AFTER):
        training.step(lambda: None)
    found = slowdown(training.steps, ends)
    if found is None:  # not asynchronous: no step ran beside it
        return Sample(ends[0].stall_seconds, ends[0].write_seconds, took=took)
    return Sample(ends[0].stall_seconds, ends[0].write_seconds, found.ratio, found.seconds)


def rows(samples: Mapping[str, list[Sample]]) -> list[Result]:
    stall = {name: [sample.stall for sample in taken] for name, taken in samples.items()}
    cost = {name: [sample.stall + sample.slowed for sample in taken] for name, taken in samples.items()}
    median = {name: statistics.median(taken) for name, taken in stall.items()}
    torch_save = f"torch.save + fsync, {median['torch_save']:.2f} s"
    clocks = {name: [sample.took for sample in samples[name] if sample.took] for name in WAITED_FOR}
    found = [
        result(
            "checkpoint_stall", median["overlapped"], "s, copied beside the next step", torch_save,
            ratio(stall["overlapped"], stall["torch_save"]),
        ),
        result(
            "checkpoint_stall_copied", median["copied"], "s", torch_save, ratio(stall["copied"], stall["torch_save"])
        ),
        with_clocks(
            result(
                "checkpoint_total", median["blocking"], "s, with SHA-256",
                f"safetensors save_file + fsync, {median['safetensors']:.2f} s, no hash",
                ratio(stall["blocking"], stall["safetensors"]),
            ),
            clocks["blocking"], clocks["safetensors"],
        ),
        result(
            "checkpoint_cost", statistics.median(cost["overlapped"]), "s", torch_save,
            ratio(cost["overlapped"], cost["torch_save"]),
        ),
    ]  # fmt: skip
    for name, taken in samples.items():
        durable, slower, lost = (
            statistics.median(getattr(sample, field) for sample in taken)
            for field in ("durable", "step_ratio", "slowed")
        )
        unit = (
            f"s stall, {durable:.2f} s until durable, steps beside it {slower:.2f} x as long, {lost:.2f} s lost in them"
        )
        row = result(f"checkpoint_frontier_{name}", median[name], unit)
        row |= {"durable_seconds": round(durable, 4), "step_ratio": round(slower, 4), "slowed_seconds": round(lost, 4)}
        found.append(with_clocks(row, clocks.get(name, ())))
    return found


def frontier_table(results: Sequence[Result]) -> str:
    """Every method's stall, time until durable and slowed steps as Markdown."""
    lines = ["| | stall | until durable | steps beside it | lost in them |", "|---|---|---|---|---|"]
    for name, words in METHODS.items():
        row = row_of(results, f"checkpoint_frontier_{name}")
        beside = f"{row['step_ratio']:.2f} x | {row['slowed_seconds']:.2f} s" if row["slowed_seconds"] else " | "
        lines.append(f"| {words} | {row['value']:.2f} s | {row['durable_seconds']:.2f} s | {beside} |")
    return "\n".join(lines)


def draw_frontier(results: Sequence[Result]) -> str:
    """Stall against the time until durable, and against what is lost in slowed steps; faint, what no method beats."""
    rows = [row_of(results, f"checkpoint_frontier_{name}") for name in METHODS]
    stall = [row["value"] for row in rows]
    x_ticks = {float(seconds): f"{seconds}" for seconds in range(math.ceil(max(stall)) + 1)}
    x = across(0.0, max(x_ticks))
    parts = [legend([*METHODS.values()], 24)]
    for field, label, bottom in (
        ("durable_seconds", "s until durable", 330.0),
        ("slowed_seconds", "s lost in slowed steps", 640.0),
    ):
        other = [max(0.0, row[field]) for row in rows]  # steps beside a small write may by chance be quicker
        y = Axis(low=0.0, high=max(1.0, math.ceil(2 * max(other)) / 2), start=bottom, stop=bottom - 220.0)
        y_ticks = {float(at): f"{at:g}" for at in ticks(y)}
        parts += [frame(x, y, x_ticks, y_ticks, "s of stall", label)]
        parts += [steps(frontier(list(zip(stall, other, strict=True))), x, y)]
        parts += [dot(*point, index, x, y) for index, point in enumerate(zip(stall, other, strict=True))]
    return svg(700, "Checkpoints of 1 GiB: stall against time until durable and slowed steps", *parts)


METHODS = {
    "torch_save": "torch.save + fsync",
    "safetensors": "safetensors + fsync, no hash",
    "blocking": "ours, blocking, hashed",
    "copied": "ours, copied before the next step",
    "overlapped": "ours, copied beside the next step",
}
BLOCKS = (
    Block(page="docs/checkpoints.md", name="saves", text=frontier_table),
    Block(
        page="docs/checkpoints.md",
        name="checkpoints",
        text=lambda results: quoted(
            results,
            [
                ("training waits, copied beside the next step", "checkpoint_stall"),
                ("training waits, copied before it", "checkpoint_stall_copied"),
                ("saving while training waits", "checkpoint_total"),
                ("stall and slowed steps together, copied beside the next step", "checkpoint_cost"),
                ("reading it back with all hashes", "checkpoint_load"),
                ("planted damage found", "damage_found"),
            ],
        ),
    ),
)
DRAWINGS = (Drawing(file="docs/images/checkpoint-frontier.svg", draw=draw_frontier),)


def measure_loads(state: Mapping[str, Tensor], root: Path, rounds: int) -> Result:
    """Hashes and load against the library's load, which checks nothing; from the page cache, both."""
    directory = save_checkpoint(root / "load", 1, {NAME: state}, {}, config_digest="c")
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    ours, theirs = [], []

    def load() -> None:
        verify_checkpoint(directory)
        load_into(directory, NAME, target)

    def load_theirs() -> None:
        for name, tensor in load_file(directory / NAME).items():
            target[name].copy_(tensor)

    for _ in range(rounds):
        ours.append(timed(load))
        theirs.append(timed(load_theirs))
    mine, other = ([took.wall for took in taken] for taken in (ours, theirs))
    peer = f"safetensors load_file and copy, no hash, {statistics.median(other):.2f} s"
    row = result("checkpoint_load", statistics.median(mine), "s", peer, ratio(mine, other))
    return with_clocks(row, ours, theirs)
