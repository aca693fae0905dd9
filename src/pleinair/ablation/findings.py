"""What a switch's trainings showed: cells, verdicts on four axes, and whether the report's outcome was reproduced.

    SwitchRuns (results of both sides, their costs) --judge--> Findings     the page and numbers.json are made of these

Stability, performance, efficiency and simplicity are the report's four aims of an ablation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pleinair.ablation.results import HORIZONS, ArmCost, RunResult
from pleinair.ablation.verdicts import (
    Cell,
    Interval,
    Outcome,
    Verdict,
    agreement,
    cost_verdict,
    paired,
    percent,
    performance_verdict,
    reproduction,
    simplicity_verdict,
    trend,
)

AXES = ("stability", "performance", "efficiency", "simplicity")
STABILITY_MARGIN = 0.05
EFFICIENCY_MARGIN = 0.02


@dataclass(frozen=True, kw_only=True)
class SwitchRuns:
    """Both sides of a switch as far as they are trained."""

    name: str
    names: tuple[str, str]
    """Of the sides."""
    settings: tuple[str, str]
    """How the sides differ, in overrides."""
    words: str
    """What the report says."""
    claims: Mapping[str, str | None]
    """Axis -> the side the report found better."""
    results: tuple[Sequence[RunResult], Sequence[RunResult]]
    """Trainings of the first and of the second side."""
    costs: Mapping[int, tuple[ArmCost, ArmCost]]
    """Resolution -> cost of a step of both sides; empty for sides that are not trained."""
    simpler: Literal["first", "second", "equal"] | None = None
    """A judgement stated beforehand."""
    why_simpler: str = ""
    """Its reason."""
    largest_multiples: tuple[float | None, float | None] = (None, None)
    """The largest multiple of its learning rate at which each side still trains."""
    averages: tuple[str, str] | None = None
    """Sides that are averages of the first side's trainings (`pma`, `ema`)."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A switch judged."""

    name: str
    names: tuple[str, str]
    settings: tuple[str, str]
    words: str
    cells: Mapping[Cell, Interval | None]
    """Relative difference of the error on unseen pairs, second over first; None where fewer than two pairs are there."""
    values: Mapping[Cell, Sequence[tuple[int, float, float]]]
    """Seed, error of the first side, of the second."""
    verdicts: Mapping[str, Verdict]
    """By axis."""
    reproduced: Mapping[str, str]
    """By axis: reproduced, not reproduced, undecided, or no claim."""
    costs: Mapping[int, tuple[ArmCost, ArmCost]]
    """Resolution -> cost of a step of both sides."""
    cpu: Mapping[int, Interval]
    """Resolution -> relative difference of the CPU time of a step, second over first, paired by round."""
    trends: Mapping[str, Interval | None]
    """How the difference changes with the horizon and with the resolution."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """What else was counted, in words."""


def judge(runs: SwitchRuns, cells: Sequence[Cell], margin: float) -> Findings:
    """Findings of a switch over the cells that were to be trained."""
    values = {cell: pairs(runs, cell) for cell in cells}
    intervals = {
        cell: paired([a for _, a, _ in found], [b for _, _, b in found]) if len(found) > 1 else None
        for cell, found in values.items()
    }
    changes = {cell: _differences(found, values, cell) for cell, found in values.items()}
    cpu = {resolution: paired(a.cpu_seconds, b.cpu_seconds) for resolution, (a, b) in sorted(runs.costs.items())}
    verdicts = {
        "stability": stability(runs),
        "performance": performance_verdict(intervals, margin, runs.names),
        "efficiency": efficiency(runs, cpu),
        "simplicity": simplicity(runs),
    }
    return Findings(
        name=runs.name,
        names=runs.names,
        settings=runs.settings,
        words=runs.words,
        cells=intervals,
        values=values,
        verdicts=verdicts,
        reproduced={axis: reproduction(verdicts[axis], runs.claims.get(axis)) for axis in AXES},
        costs=runs.costs,
        cpu=cpu,
        trends={"horizon": trend(changes, 1), "resolution": trend(changes, 0)},
        figures=_figures(runs),
    )


def pairs(runs: SwitchRuns, cell: Cell) -> list[tuple[int, float, float]]:
    """Seed and both sides' errors, for the seeds that both have."""
    found = [
        _errors(side, cell, average) for side, average in zip(_sides(runs), runs.averages or (None, None), strict=True)
    ]
    return [(seed, found[0][seed], found[1][seed]) for seed in sorted(found[0].keys() & found[1].keys())]


def stability(runs: SwitchRuns) -> Verdict:
    """Spread of the gradient norm over all pairs of trainings; a side that diverges loses."""
    if runs.averages is not None:
        return Verdict(overall="equal", words="the same trainings")
    first, second = ({(one.resolution, one.seed): one for one in side} for side in runs.results)
    both = sorted(first.keys() & second.keys())
    lost = tuple(sum(side[pair].diverged is not None for pair in both) for side in (first, second))
    if lost[0] != lost[1]:
        better: Literal["first", "second"] = "first" if lost[0] < lost[1] else "second"
        return Verdict(overall=better, words=f"{lost[0]} and {lost[1]} of {len(both)} trainings diverged")
    whole = [pair for pair in both if first[pair].diverged is None and second[pair].diverged is None]
    if len(whole) < 2:
        return Verdict(overall="missing", words=f"no verdict: {len(whole)} pairs of trainings")
    ratio = paired([first[pair].gradient_ratio for pair in whole], [second[pair].gradient_ratio for pair in whole])
    spikes = [sum(side[pair].num_spikes for pair in whole) for side in (first, second)]
    steps = [sum(side[pair].num_steps for pair in whole) for side in (first, second)]
    told = " and ".join(f"{count} in {num:,} steps" for count, num in zip(spikes, steps, strict=True))
    spread = cost_verdict(ratio, STABILITY_MARGIN, runs.names, "spread of the gradient norm")
    return Verdict(overall=spread.overall, words=f"{spread.words}; spikes: {told}{_multiples(runs)}")


def _multiples(runs: SwitchRuns) -> str:
    first, second = runs.largest_multiples
    if first is None or second is None:
        return ""
    return f"; trains at up to {first:g} and {second:g} times its learning rate, of those tried"


def efficiency(runs: SwitchRuns, cpu: Mapping[int, Interval]) -> Verdict:
    """CPU time of a step, in pairs of rounds; where it is equal, memory. One verdict where all resolutions agree."""
    if not cpu:
        if runs.averages is None:
            return Verdict(overall="missing", words="no verdict: costs were not measured")
        words = "by construction, not measured: an EMA holds every weight once more and moves it every step"
        return Verdict(overall="first", words=words)
    outcomes = {f"{resolution} px": _cheaper(interval, *runs.costs[resolution]) for resolution, interval in cpu.items()}
    found = agreement(outcomes, runs.names, "at every resolution")
    told = "; ".join(_told_costs(resolution, cpu[resolution], *runs.costs[resolution]) for resolution in cpu)
    return Verdict(overall=found.overall, words=f"{found.words}; {told}{_whole_trainings(runs)}")


def _cheaper(cpu: Interval, first: ArmCost, second: ArmCost) -> Outcome:
    outcome, memory = cpu.outcome(EFFICIENCY_MARGIN), math.log(second.peak_bytes / first.peak_bytes)
    if outcome != "equal" or abs(memory) <= EFFICIENCY_MARGIN:
        return outcome
    return "first" if memory > 0 else "second"


def _told_costs(resolution: int, cpu: Interval, first: ArmCost, second: ArmCost) -> str:
    """CPU time, FLOPs and memory of the second side over the first."""
    steps = [one.flops_per_step + one.extra_flops_per_step for one in (first, second)]
    flops, memory = steps[1] / steps[0] - 1, second.peak_bytes / first.peak_bytes - 1
    return f"{resolution} px: CPU time {percent(cpu)}, FLOPs {100 * flops:+.1f}%, memory {100 * memory:+.1f}%"


def _whole_trainings(runs: SwitchRuns) -> str:
    """What whole trainings to the long horizon took, in pairs of equal seeds, where that was recorded."""
    if runs.averages is not None:
        return ""
    first, second = (
        {(one.resolution, one.seed): one.cpu_seconds["long"] for one in side if "long" in one.cpu_seconds}
        for side in runs.results
    )
    both = sorted(first.keys() & second.keys())
    if len(both) < 2:
        return ""
    taken = paired([first[pair] for pair in both], [second[pair] for pair in both])
    return f"; whole trainings, {len(both)} pairs: CPU time {percent(taken)}"


def simplicity(runs: SwitchRuns) -> Verdict:
    """Our judgement where there is one, else what is counted."""
    if runs.averages is not None:
        return Verdict(overall=runs.simpler or "equal", words=runs.why_simpler)
    if not runs.costs:
        return Verdict(overall="missing", words="no verdict: costs were not measured")
    return simplicity_verdict(*next(iter(runs.costs.values())), runs.simpler, runs.why_simpler, runs.names)


def _sides(runs: SwitchRuns) -> tuple[Sequence[RunResult], Sequence[RunResult]]:
    return runs.results if runs.averages is None else (runs.results[0], runs.results[0])


def _errors(side: Sequence[RunResult], cell: Cell, average: str | None) -> dict[int, float]:
    resolution, horizon = cell
    found = {}
    for one in side:
        errors = one.validation if average is None else one.averages
        if one.resolution == resolution and horizon in errors:
            found[one.seed] = errors[horizon]["loss" if average is None else average]
    return found


def _differences(
    found: Sequence[tuple[int, float, float]], values: Mapping[Cell, Sequence[tuple[int, float, float]]], cell: Cell
) -> list[float]:
    """log(second / first) of the seeds that every cell has, in order."""
    seeds = set.intersection(*({seed for seed, _, _ in rows} for rows in values.values()))
    return [math.log(b / a) for seed, a, b in found if seed in seeds]


def _figures(runs: SwitchRuns) -> dict[str, str]:
    """Averages against the last and the decayed weights, where they are what is compared."""
    if runs.averages is None:
        return {}
    told = {}
    for average in runs.averages:
        for other in ("last", "decayed"):
            for resolution in sorted({one.resolution for one in runs.results[0]}):
                for horizon in HORIZONS:
                    rows = [
                        one.averages[horizon]
                        for one in runs.results[0]
                        if one.resolution == resolution and horizon in one.averages
                    ]
                    if len(rows) > 1:
                        against = paired([row[other] for row in rows], [row[average] for row in rows])
                        told[f"{average.upper()} against the {other} weights, {resolution} px {horizon}"] = percent(
                            against
                        )
    return told
