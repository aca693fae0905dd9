"""Checkpoints of 1 GiB: what training waits, what its steps lose beside a write, and which damage is found.

Every method saves the same 32 tensors of 32 MiB in every round, in turn, after a `sync`: torch.save as one file, the others as
two (weights, moments). The peers are fsynced and take the place of their last one by rename, as ours do; ours hash
besides. The steps are of a network on one thread, so that one of the machine's two hardware threads is the writer's, as the
host's processors are beside an accelerator. A step is 72 GFLOP: 89 million parameters, whose weights and moments fill 1 GiB,
need as much for 135 rows.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.curation.figures import Aim
from benchmarks.krablet.rounds import Result, ratio, result
from pleinair.checkpoint.interval import StepTime, slowdown
from pleinair.checkpoint.store import load_into, save_checkpoint, verify_checkpoint
from pleinair.checkpoint.writer import CheckpointWriter
from pleinair.records.checkpoint import Saved
from pleinair.records.errors import CheckpointError

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
    Aim(what="planted damage found", name="damage_found", least=1),
    Aim(what="where the time goes", name="checkpoint_frontier_*", note="no aim"),
)
NUM_TENSORS, NUM_VALUES = 32, 8 << 20
NUM_STEPS_BEFORE, NUM_STEPS_AFTER, MOST_STEPS = 4, 4, 60
NAME = "model.safetensors"


@dataclass(frozen=True)
class Sample:
    """One save by one method."""

    stall: float
    durable: float
    """Seconds until it would survive a crash."""
    step_ratio: float = 1.0
    slowed: float = 0.0
    """Seconds lost in the steps beside it."""


def measure(rounds: int) -> list[Result]:
    torch.set_num_threads(1)
    state = {f"layers.{number}.weight": torch.randn(NUM_VALUES) for number in range(NUM_TENSORS)}
    with scratch() as root:
        samples = measure_saves(state, root, rounds)
        loads = measure_loads(state, root, rounds)
    return [*rows(samples), loads, measure_damage()]


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
    began = time.monotonic()
    for path, save in saves.items():
        partial = path.with_suffix(".partial")
        save(partial)
        fsync(partial)
        os.replace(partial, path)
        fsync(path.parent)
    seconds = time.monotonic() - began
    return Sample(seconds, seconds)


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
    writer.save(number, files_of(state), {}, config_digest="c")
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
        return Sample(ends[0].stall_seconds, ends[0].write_seconds)
    return Sample(ends[0].stall_seconds, ends[0].write_seconds, found.ratio, found.seconds)


def rows(samples: Mapping[str, list[Sample]]) -> list[Result]:
    stall = {name: [sample.stall for sample in taken] for name, taken in samples.items()}
    cost = {name: [sample.stall + sample.slowed for sample in taken] for name, taken in samples.items()}
    median = {name: statistics.median(taken) for name, taken in stall.items()}
    torch_save = f"torch.save + fsync, {median['torch_save']:.2f} s"
    found = [
        result(
            "checkpoint_stall", median["overlapped"], "s, copied beside the next step", torch_save,
            ratio(stall["overlapped"], stall["torch_save"]),
        ),
        result(
            "checkpoint_stall_copied", median["copied"], "s", torch_save, ratio(stall["copied"], stall["torch_save"])
        ),
        result(
            "checkpoint_total", median["blocking"], "s, with SHA-256",
            f"safetensors save_file + fsync, {median['safetensors']:.2f} s, no hash",
            ratio(stall["blocking"], stall["safetensors"]),
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
        found.append(result(f"checkpoint_frontier_{name}", median[name], unit))
    return found


def measure_loads(state: Mapping[str, Tensor], root: Path, rounds: int) -> Result:
    """Hashes and load against the library's load, which checks nothing; from the page cache, both."""
    directory = save_checkpoint(root / "load", 1, {NAME: state}, {}, config_digest="c")
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    ours, theirs = [], []
    for _ in range(rounds):
        began = time.monotonic()
        verify_checkpoint(directory)
        load_into(directory, NAME, target)
        middle = time.monotonic()
        for name, tensor in load_file(directory / NAME).items():
            target[name].copy_(tensor)
        ours.append(middle - began)
        theirs.append(time.monotonic() - middle)
    peer = f"safetensors load_file and copy, no hash, {statistics.median(theirs):.2f} s"
    return result("checkpoint_load", statistics.median(ours), "s", peer, ratio(ours, theirs))


def measure_damage(num_places: int = 100) -> Result:
    """Share of planted damage that is found, at random places of the weights, beside what loading them finds."""
    draw, ours, library, planted = random.Random(0), 0, 0, 0
    with scratch() as root:
        state = {"w": torch.randn(200_000), "b": torch.randn(300)}
        whole = save_checkpoint(root, 1, {NAME: state, "other.safetensors": state}, {}, config_digest="c")
        for kind in (flip_bit, zero_page, truncate, half_write, swap):
            for _ in range(num_places):
                damaged = Path(shutil.copytree(whole, root / "damaged"))
                kind(damaged / NAME, draw)
                ours += refuses(lambda: verify_checkpoint(damaged))  # noqa: B023
                library += refuses(lambda: load_file(damaged / NAME))  # noqa: B023
                planted += 1
                shutil.rmtree(damaged)
    peer = f"safetensors load_file, {library / planted:.2f}"
    return result("damage_found", ours / planted, f"share of {planted}", peer, ours / library)


def refuses(load: Callable[[], object]) -> bool:
    try:
        load()
    except (CheckpointError, SafetensorError, ValueError):
        return True
    return False


def flip_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def zero_page(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    begin = draw.randrange(len(content) // 4096) * 4096
    path.write_bytes(content[:begin] + bytes(4096) + content[begin + 4096 :])


def truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def half_write(path: Path, draw: random.Random) -> None:
    """As large as it should be, zeros from somewhere on."""
    size = path.stat().st_size
    os.truncate(path, draw.randrange(size - 8))
    os.truncate(path, size)


def swap(path: Path, draw: random.Random) -> None:
    """The bytes of another save of the same shapes."""
    save_file({name: torch.randn_like(tensor) for name, tensor in load_file(path).items()}, path)
