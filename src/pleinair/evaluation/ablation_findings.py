"""What a switch's trainings showed: cells, verdicts on four axes, and whether the report's outcome was reproduced.

    SwitchRuns (results of both sides, their costs) --judge--> Findings     the page and numbers.json are made of these

Stability, performance, efficiency and simplicity are the report's four aims of an ablation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pleinair.evaluation.ablation import (
    HORIZONS,
    ArmCost,
    Cell,
    Interval,
    RunResult,
    Verdict,
    cost_verdict,
    interval_of,
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
    verdicts = {
        "stability": stability(runs),
        "performance": performance_verdict(intervals, margin, runs.names),
        **_costs(runs),
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


def _costs(runs: SwitchRuns) -> dict[str, Verdict]:
    if runs.averages is not None:
        return {
            "efficiency": Verdict(
                overall="first", words="by construction: an EMA holds every weight once more and moves it every step"
            ),
            "simplicity": Verdict(overall=runs.simpler or "equal", words=runs.why_simpler),
        }
    if not runs.costs:
        missing = Verdict(overall="missing", words="no verdict: costs were not measured")
        return {"efficiency": missing, "simplicity": missing}
    seconds = [
        math.log(b / a)
        for first, second in runs.costs.values()
        for a, b in zip(first.cpu_seconds, second.cpu_seconds, strict=True)
    ]
    efficiency = cost_verdict(interval_of(seconds), EFFICIENCY_MARGIN, runs.names, "CPU time of a step")
    some = next(iter(runs.costs.values()))
    return {
        "efficiency": Verdict(overall=efficiency.overall, words=f"{efficiency.words}; {_relative(runs)}"),
        "simplicity": simplicity_verdict(*some, runs.simpler, runs.why_simpler, runs.names),
    }


def _relative(runs: SwitchRuns) -> str:
    """FLOPs and memory of the second side over the first, at each resolution."""
    told = []
    for resolution, (first, second) in sorted(runs.costs.items()):
        steps = [one.flops_per_step + one.extra_flops_per_step for one in (first, second)]
        flops = steps[1] / steps[0] - 1
        memory = second.peak_bytes / first.peak_bytes - 1
        told.append(f"{resolution} px: FLOPs {100 * flops:+.1f}%, memory {100 * memory:+.1f}%")
    return "; ".join(told)


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
