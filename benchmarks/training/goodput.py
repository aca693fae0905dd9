"""`python -m benchmarks.training goodput`: what larger runs would make of their time, simulated.

Nothing here is measured on such machines: `cluster.simulator` lives through runs at the rates and repairs that docs/runs.md
names, in seconds on one core. The figures are the same on every machine, as the seeds are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.aims import Aim
from benchmarks.krablet.rounds import Result, result
from benchmarks.training.blocks import Block, Drawing, row_of
from benchmarks.training.drawing import across, frame, legend, line, svg
from pleinair.cluster.simulator import RepairTimes, SimulatedRun, mean_goodput
from pleinair.pages.plot import Axis, Series

GPUS = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
AIMS = (Aim(what="simulated goodput", name="simulated_goodput*", note="no aim; docs/runs.md has the assumptions"),)

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
    """Share of productive time by scenario and number of GPUs; `rounds` has no part in it."""
    rows = [
        result(name_of(gpus, name), 100 * mean_goodput(scenario(gpus)), "%")
        for name, scenario in SCENARIOS.items()
        for gpus in sizes(name)
    ]
    hours = [
        result(f"simulated_hours_between_failures, {gpus} GPUs", plain(gpus).mean_between_failures / 3600, "h")
        for gpus in GPUS
    ]
    return rows + hours


def name_of(gpus: int, scenario: str) -> str:
    """The figure's name."""
    return f"simulated_goodput, {gpus} GPUs, {scenario}"


def plain(gpus: int) -> SimulatedRun:
    """A run at the rate of RSC-1, of which the table tells the time between failures."""
    return SCENARIOS["background, quick repair"](gpus)


def sizes(scenario: str) -> tuple[int, ...]:
    """The numbers of GPUs for which a scenario means something: the bad fabric is a fit to what was told of small runs."""
    return tuple(gpus for gpus in GPUS if gpus <= FITTED_GPUS or not scenario.endswith("bad fabric"))


def table(results: Sequence[Result]) -> str:
    """The shares as Markdown, with the commit of their simulator."""
    lines = [f"| GPUs | hours between failures | {' | '.join(SCENARIOS)} |", "|" + "---|" * (len(SCENARIOS) + 2)]
    for gpus in GPUS:
        hours = row_of(results, f"simulated_hours_between_failures, {gpus} GPUs")["value"]
        shares = [
            f"{row_of(results, name_of(gpus, name))['value']:.1f}%" if gpus in sizes(name) else "beyond the fit"
            for name in SCENARIOS
        ]
        lines.append(f"| {gpus:,} | {hours:.3g} | {' | '.join(shares)} |")
    commits = sorted({row_of(results, name_of(gpus, name))["commit"] for name in SCENARIOS for gpus in sizes(name)})
    return "\n".join([*lines, "", f"`python -m benchmarks.training goodput`, commit {', '.join(commits)}."])


def draw(results: Sequence[Result]) -> str:
    """The shares as lines over the number of GPUs."""
    x = across(GPUS[0], GPUS[-1], logarithmic=True)
    y = Axis(low=70.0, high=100.0, start=330.0, stop=70.0)
    lines = []
    for index, name in enumerate(SCENARIOS):
        shares = [row_of(results, name_of(gpus, name))["value"] for gpus in sizes(name)]
        lines.append(line(Series(name=name, x=sizes(name), y=shares), index, x, y))
    y_ticks = {float(share): f"{share}" for share in range(70, 101, 5)}
    drawn = frame(x, y, {float(gpus): f"{gpus:,}" for gpus in GPUS}, y_ticks, "GPUs (simulated)", "productive time, %")
    return svg(390, "Simulated productive time over the number of GPUs", legend([*SCENARIOS], 24), drawn, *lines)


BLOCKS = (Block(page="docs/runs.md", name="goodput", text=table),)
DRAWINGS = (Drawing(file="docs/images/simulated-goodput.svg", draw=draw),)
