"""`python -m benchmarks.training cluster`: how long training stands still when a rank dies or hangs.

The program is `tests/training/killed_run.py`: our engine on two ranks, FSDP2 over gloo, a small transformer, checkpoints
in the background. A repair lasts from the last heartbeat before the fault until the run is where it had been, and its
parts come from the event log alone: detect, decide, start (Python, torch, the meeting), load, warm-up, recompute.
Wall time only: a repair is mostly waiting, and what the ranks use of a processor says nothing of how long the run stands still.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.aims import Aim
from benchmarks.krablet.rounds import Result, ratio, result
from benchmarks.training.blocks import Block, quoted
from pleinair.cluster.goodput import REPAIR_PARTS, Repair, measure_goodput
from pleinair.cluster.launcher import LaunchConfig, launch
from pleinair.cluster.watchdog import WatchdogConfig
from pleinair.records.run_events import EVENTS, Event, Loaded, Step, read_events
from tests.training.killed_run import command, environment

FAULTS = {"kill": "rank_kill_seconds", "stop": "rank_hang_seconds", "sleep": "rank_hang_asleep_seconds"}
"""What a rank does to itself, and the row of its repair."""
WATCHDOG_SECONDS = 5.0
PEER_SECONDS = 90.0
"""What torchrun is given for the whole run, which takes it about 20 s where it comes back."""

AIMS = (
    Aim(what="a rank is killed: seconds until the run is where it was", name="rank_kill_seconds", most=15),
    Aim(what="the same, the worst try", name="rank_kill_seconds_worst", most=15),
    Aim(what="the same, against torchrun", name="rank_kill_peer", note="no aim"),
    Aim(what="a rank is stopped (SIGSTOP), watchdog 5 s", name="rank_hang_seconds", most=WATCHDOG_SECONDS + 15),
    Aim(what="the same, the worst try", name="rank_hang_seconds_worst", most=WATCHDOG_SECONDS + 15),
    Aim(what="a rank sleeps while the other waits in a collective", name="rank_hang_asleep_seconds", most=WATCHDOG_SECONDS + 15),
    Aim(what="the same, the worst try", name="rank_hang_asleep_seconds_worst", most=WATCHDOG_SECONDS + 15),
)  # fmt: skip
BLOCKS = (
    Block(
        page="docs/runs.md",
        name="repairs",
        text=lambda results: quoted(
            results,
            [
                ("SIGKILL of a rank, until the run is where it was", "rank_kill_seconds"),
                ("the same, the worst try", "rank_kill_seconds_worst"),
                ("the same against torchrun", "rank_kill_peer"),
                ("SIGSTOP of a rank, watchdog of 5 s", "rank_hang_seconds"),
                ("the same, the worst try", "rank_hang_seconds_worst"),
                ("a rank sleeps, watchdog of 5 s", "rank_hang_asleep_seconds"),
                ("the same, the worst try", "rank_hang_asleep_seconds_worst"),
            ],
        ),
    ),
)


def measure(rounds: int) -> list[Result]:
    """The repairs, measured in turn."""
    repairs: dict[str, list[Repair]] = {fault: [] for fault in FAULTS}
    peer: list[float] = []
    for number in range(rounds):
        for fault, found in repairs.items():
            found.append(measure_goodput(events_of(fault, 12 + number, launch_ours)).repairs[0])
            print(f"  round {number + 1}, {FAULTS[fault]}: {told(found[-1])}", flush=True)
        try:
            peer.append(pause(events_of("kill", 12 + number, launch_torchrun)))
            print(f"  round {number + 1}, killed under torchrun: {peer[-1]:.1f} s", flush=True)
        except subprocess.SubprocessError as failed:  # its ranks sometimes do not find each other again
            print(f"  round {number + 1}, killed under torchrun: {type(failed).__name__}", flush=True)
    rows = [row for fault, found in repairs.items() for row in of_fault(fault, found)]
    kills = [repair.seconds for repair in repairs["kill"]]
    came_back = f"came back {len(peer)} times of {rounds}"
    shown = f"torchrun, same program, {came_back}, not counting steps done again"
    took = (f"{shown}: {statistics.median(peer):.1f} s", ratio(kills[: len(peer)], peer)) if peer else (shown, None)
    return [*rows, result("rank_kill_peer", statistics.median(kills), "s", *took)]


def of_fault(fault: str, repairs: Sequence[Repair]) -> Iterator[Result]:
    """The median and the worst, each with the parts of such a repair."""
    ordered = sorted(repairs, key=lambda repair: repair.seconds)
    shown = {"": ordered[(len(ordered) - 1) // 2], "_worst": ordered[-1]}
    for suffix, repair in shown.items():
        yield result(f"{FAULTS[fault]}{suffix}", repair.seconds, f"s of {len(repairs)} tries", f"parts: {told(repair)}")


def told(repair: Repair) -> str:
    """The parts of a repair in seconds."""
    return ", ".join(f"{name} {repair.part(name):.1f}" for name in REPAIR_PARTS)


def events_of(fault: str, step: int, launcher: Callable[[Path, list[str]], None]) -> list[Event]:
    """What happens to two ranks of which one meets a fault in its first attempt."""
    with tempfile.TemporaryDirectory(prefix="pleinair-bench-") as folder:
        launcher(Path(folder), command(Path(folder), step + 10, [f"{fault}:1:{step}:1"], save_seconds=0.1))
        return read_events(Path(folder) / EVENTS)


def launch_ours(run_dir: Path, words: list[str]) -> None:
    """Run it under our launcher."""
    watchdog = WatchdogConfig(training_floor_seconds=WATCHDOG_SECONDS)
    config = LaunchConfig(
        run_dir=run_dir, nproc=2, heartbeat_seconds=0.0, watchdog=watchdog, show_rank=None, environment=environment()
    )
    outcome = launch(words, config, on_message=lambda said: None)
    assert (outcome.outcome, outcome.attempts) == ("done", 2), outcome


def launch_torchrun(run_dir: Path, words: list[str]) -> None:
    """Run it under torch's launcher."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    with (run_dir / "log").open("wb") as log:
        subprocess.run(
            [*torchrun, *words[1:]], env={**os.environ, **environment(), "PLEINAIR_HEARTBEAT_SECONDS": "0"},
            stdout=log, stderr=log, check=True, timeout=PEER_SECONDS,
        )  # fmt: skip


def pause(events: list[Event]) -> float:
    """From the last step of the first attempt to the first step of the second."""
    again = [index for index, event in enumerate(events) if isinstance(event, Loaded) and event.rank == 0][1]
    before = max(event.at for event in events[:again] if isinstance(event, Step))
    return next(event.at for event in events[again:] if isinstance(event, Step)) - before
