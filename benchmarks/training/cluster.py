"""`python -m benchmarks.training.cluster`: how long training stands still when a rank dies or hangs, and what larger runs
would make of their time.

The program is `tests/training/killed_run.py`: our engine on two ranks, FSDP2 over gloo, a small transformer, checkpoints
in the background. A repair lasts from the last heartbeat before the fault until the run is where it had been, and its
parts come from the event log alone: detect, decide, start (Python, torch, the meeting), load, warm-up, recompute. The
simulated table rests on the rates that docs/runs.md names; `--plot FILE.html` draws it.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.curation.figures import Aim
from benchmarks.krablet.rounds import Result, ratio, result
from pleinair.cluster.goodput import REPAIR_PARTS, Repair, measure_goodput
from pleinair.cluster.launcher import LaunchConfig, launch
from pleinair.cluster.simulator import RepairTimes, SimulatedRun, mean_goodput, no_failure_probability
from pleinair.cluster.watchdog import WatchdogConfig
from pleinair.pages.html import Html
from pleinair.pages.page import Section, page, write_page
from pleinair.pages.plot import Series, line_plot
from pleinair.records.run_events import EVENTS, Event, Loaded, Step, read_events
from tests.training.killed_run import command, environment

FAULTS = {"kill": "rank_kill_seconds", "stop": "rank_hang_seconds", "sleep": "rank_hang_asleep_seconds"}
"""What a rank does to itself, and the row of its repair."""
WATCHDOG_SECONDS = 5.0
PEER_SECONDS = 90.0
"""What torchrun is given for the whole run, which takes it about 20 s where it comes back."""
GPUS = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384)

AIMS = (
    Aim(what="a rank is killed: seconds until the run is where it was", name="rank_kill_seconds", most=15),
    Aim(what="the same, the worst try", name="rank_kill_seconds_worst", most=15),
    Aim(what="the same, against torchrun", name="rank_kill_peer", note="no aim"),
    Aim(what="a rank is stopped (SIGSTOP), watchdog 5 s", name="rank_hang_seconds", most=WATCHDOG_SECONDS + 15),
    Aim(what="the same, the worst try", name="rank_hang_seconds_worst", most=WATCHDOG_SECONDS + 15),
    Aim(what="a rank sleeps while the other waits in a collective", name="rank_hang_asleep_seconds", most=WATCHDOG_SECONDS + 15),
    Aim(what="the same, the worst try", name="rank_hang_asleep_seconds_worst", most=WATCHDOG_SECONDS + 15),
    Aim(what="simulated goodput, %", name="simulated_goodput*", note="no aim; docs/runs.md has the assumptions"),
)  # fmt: skip

BLOCKING = {"stall_seconds": 30.0, "write_seconds": 30.0, "slowdown_seconds": 0.0}
"""A checkpoint of 30 s, as in the Krea 2 report, that training waits for."""
BACKGROUND = {"stall_seconds": 0.5, "write_seconds": 30.0, "slowdown_seconds": 3.0}
"""The same write in the background."""
SLOW_REPAIR = RepairTimes(detect=600.0, decide=60.0, start=120.0, load=120.0, warm_up=300.0)
"""A collective's timeout of ten minutes, and somebody or something that restarts: 20 minutes in all."""
QUICK_REPAIR = RepairTimes(detect=30.0, decide=5.0, start=60.0, load=60.0, warm_up=120.0)
BAD_FABRIC = {"per_1000_node_days": 3.79, "fabric_per_day": 1.818, "fabric_exponent": 2.0}
"""Fitted to 'under 128 GPUs days, a very large run never 24 h'; 10% for a day at 1024 GPUs."""
FITTED_GPUS = 2048

SCENARIOS: dict[str, Callable[[int], SimulatedRun]] = {
    "blocking, slow repair": lambda n: SimulatedRun(num_gpus=n, repair=SLOW_REPAIR, **BLOCKING),
    "blocking, quick repair": lambda n: SimulatedRun(num_gpus=n, repair=QUICK_REPAIR, **BLOCKING),
    "background, quick repair": lambda n: SimulatedRun(num_gpus=n, repair=QUICK_REPAIR, **BACKGROUND),
    "background, quick repair, bad fabric": lambda n: SimulatedRun(
        num_gpus=n, repair=QUICK_REPAIR, **BACKGROUND, **BAD_FABRIC
    ),
}


def measure(rounds: int) -> list[Result]:
    """The repairs, measured in turn, and the simulated shares."""
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
    return [*rows, result("rank_kill_peer", statistics.median(kills), "s", *took), *simulated()]


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


def simulated() -> Iterator[Result]:
    """Share of productive time by scenario and number of GPUs."""
    for name, scenario in SCENARIOS.items():
        for gpus in (1024, largest(name)):
            share = 100 * mean_goodput(scenario(gpus))
            yield result(f"simulated_goodput, {gpus} GPUs, {name}", share, "%")


def table() -> str:
    """The simulated shares as Markdown."""
    lines = [f"| GPUs | hours between failures | {' | '.join(SCENARIOS)} |", "|" + "---|" * (len(SCENARIOS) + 2)]
    for gpus in GPUS:
        runs = [scenario(gpus) for name, scenario in SCENARIOS.items() if gpus <= largest(name)]
        shares = [f"{mean_goodput(run):.1%}" for run in runs] + ["beyond the fit"] * (len(SCENARIOS) - len(runs))
        lines.append(f"| {gpus:,} | {runs[0].mean_between_failures / 3600:.3g} | {' | '.join(shares)} |")
    return "\n".join(lines)


def largest(name: str) -> int:
    """The number of GPUs up to which a scenario means something: the bad fabric is a fit to what was told of small runs."""
    return FITTED_GPUS if name.endswith("bad fabric") else GPUS[-1]


def write_plot(target: Path) -> None:
    """The table as lines over the number of GPUs."""
    series = [
        Series(
            name=name,
            x=[math.log2(gpus) for gpus in GPUS if gpus <= largest(name)],
            y=[100 * mean_goodput(scenario(gpus)) for gpus in GPUS if gpus <= largest(name)],
        )
        for name, scenario in SCENARIOS.items()
    ]
    drawing = line_plot(series, x_label="log2 of the number of GPUs", y_label="productive time, %")
    shown = Section(heading="Goodput", body=drawing, lead="Simulated; docs/runs.md has the assumptions.")
    write_page(target, page("What larger runs would make of their time", Html(""), [shown]))


def main() -> None:
    """Print the figures and the table; nothing is written unless a plot is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="draw the simulated table into this page")
    parser.add_argument("--table", action="store_true", help="the simulated table alone")
    options = parser.parse_args()
    if options.plot is not None:
        write_plot(options.plot)
    if not options.table:
        for row in measure(options.rounds):
            print(f"{row['value']:10.4g} {row['unit']:3} {row['name']}  {row['peer']}")
    print(table())
    day = no_failure_probability(SCENARIOS["background, quick repair, bad fabric"](1024), 24.0)
    print(f"bad fabric, 1024 GPUs: {day:.0%} of days pass without a failure")


if __name__ == "__main__":
    main()
