"""Ablations judged: paired differences with intervals, and the rules that make verdicts of them.

    runs of both sides, equal seeds --log(second / first)--> Interval --margin--> an outcome per resolution and horizon
    outcomes of 2 resolutions x 2 horizons --performance_verdict--> one verdict, or a sentence that says where they differ

Both sides of a pair share data order, noise and timesteps, so what is left between seeds is how the difference varies. With
three seeds an interval is wide (4.3 standard errors each way); `detectable` says how large a difference would have been seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from pleinair.ablation.results import HORIZONS, ArmCost

Outcome = Literal["first", "second", "equal", "unclear"]
Overall = Literal["first", "second", "equal", "unclear", "mixed", "missing"]
CONFIDENCE = 0.95
POWER = 0.8
_INTEGRATION_POINTS = 4001


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean of paired differences with its 95% t interval."""

    mean: float
    low: float
    high: float
    num: int
    """Pairs."""
    detectable: float
    """The difference that such a comparison finds with a chance of 80%."""

    def outcome(self, margin: float) -> Outcome:
        """Which side's value is lower, so better: beyond 0 with confidence, or inside the margin with confidence.

        A difference that is surely there but surely smaller than the margin counts as equal.
        """
        if -margin <= self.low and self.high <= margin:
            return "equal"
        if self.low > 0:
            return "first"
        return "second" if self.high < 0 else "unclear"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which side is better in one respect, and what that rests on."""

    overall: Overall
    words: str


@lru_cache
def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t, by bisection on its distribution.

    With x = sqrt(degrees) tan(angle) the density becomes cos(angle)^(degrees - 1), which is smooth on a finite range.
    """
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(f"probability {probability} with {degrees} degrees: give one in (0, 1) and at least 1 degree")
    whole = math.sqrt(math.pi) * math.gamma(degrees / 2) / math.gamma((degrees + 1) / 2)
    low, high = -math.pi / 2, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        angles = np.linspace(0.0, angle, _INTEGRATION_POINTS)
        below = 0.5 + float(np.trapezoid(np.cos(angles) ** (degrees - 1), angles)) / whole
        low, high = (angle, high) if below < probability else (low, angle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def paired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """log(second / first) over pairs: 0.01 is one per cent more. Raises ValueError for fewer than two pairs."""
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} values: give at least two pairs")
    return interval_of([math.log(b / a) for a, b in zip(first, second, strict=True)])


def interval_of(differences: Sequence[float]) -> Interval:
    """Mean, 95% t interval and detectable size of differences."""
    num = len(differences)
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(num)
    reach = t_quantile(0.5 + CONFIDENCE / 2, num - 1)
    detectable = (reach + t_quantile(POWER, num - 1)) * error
    return Interval(mean=mean, low=mean - reach * error, high=mean + reach * error, num=num, detectable=detectable)


Cell = tuple[int, str]
"""Resolution and horizon."""


def performance_verdict(
    cells: Mapping[Cell, Interval | None], margin: float, names: tuple[str, str] = ("first", "second")
) -> Verdict:
    """One verdict where at least two horizons and two resolutions agree; else the sentence says where they do not."""
    known = {cell: interval for cell, interval in cells.items() if interval is not None}
    resolutions, horizons = ({cell[place] for cell in cells} for place in (0, 1))
    if len(resolutions) < 2 or len(horizons) < 2 or len(known) < len(cells):
        absent = [name_of(cell) for cell in cells if cell not in known]
        needed = f"missing: {', '.join(absent)}" if absent else "it needs two horizons and two resolutions"
        return Verdict(overall="missing", words=f"no verdict: {needed}")
    outcomes = {name_of(cell): interval.outcome(margin) for cell, interval in known.items()}
    return agreement(outcomes, names, "at both resolutions and both horizons")


def agreement(outcomes: Mapping[str, Outcome], names: tuple[str, str], everywhere: str) -> Verdict:
    """One verdict where all places have one outcome, told as `everywhere`; else the sentence says which has which."""
    found = set(outcomes.values())
    if len(found) == 1:
        overall = found.pop()
        return Verdict(overall=overall, words=f"{_phrase(overall, names)} {everywhere}")
    places = "; ".join(
        f"{_phrase(one, names)} at {', '.join(place for place, outcome in outcomes.items() if outcome == one)}"
        for one in ("first", "second", "equal", "unclear")
        if one in found
    )
    if found - {"unclear"} in ({"first"}, {"second"}, {"equal"}):
        return Verdict(overall="unclear", words=f"not settled: {places}")
    return Verdict(overall="mixed", words=f"the trend does not hold: {places}")


def cost_verdict(interval: Interval, margin: float, names: tuple[str, str], what: str) -> Verdict:
    """A verdict on one number of which less is better."""
    outcome = interval.outcome(margin)
    return Verdict(overall=outcome, words=f"{_phrase(outcome, names)}: {what} {percent(interval)}")


def simplicity_verdict(
    first: ArmCost,
    second: ArmCost,
    judged: Literal["first", "second", "equal"] | None,
    why: str,
    names: tuple[str, str],
) -> Verdict:
    """Our judgement where there is one, else fewer parameters and fewer modules."""
    sizes = f"{second.parameters - first.parameters:+,} parameters, {second.modules - first.modules:+} modules"
    if judged is not None:
        return Verdict(overall=judged, words=f"{_phrase(judged, names)}: {why} ({sizes})")
    signs = {np.sign(second.parameters - first.parameters), np.sign(second.modules - first.modules)} - {0}
    overall: Overall = "equal" if not signs else "mixed" if len(signs) == 2 else "first" if 1 in signs else "second"
    return Verdict(overall=overall, words=f"{_phrase(overall, names)} by size alone ({sizes})")


def trend(cells: Mapping[Cell, Sequence[float]], place: int) -> Interval | None:
    """How the difference changes from the lower to the higher resolution (`place` 0) or from short to long (1).

    `cells` holds the differences seed by seed. None where there are no two values to compare, or fewer than two seeds.
    """
    order = (
        sorted({cell[0] for cell in cells})
        if place == 0
        else [one for one in HORIZONS if (any(c[1] == one for c in cells))]
    )
    if len(order) < 2 or any(len(values) < 2 for values in cells.values()):
        return None
    ends = [
        np.mean([values for cell, values in cells.items() if cell[place] == end], axis=0)
        for end in (order[0], order[-1])
    ]
    return interval_of([float(change) for change in ends[1] - ends[0]])


def reproduction(verdict: Verdict, claim: str | None) -> str:
    """Whether a verdict is what the report found."""
    if claim is None:
        return "no claim"
    if verdict.overall == claim:
        return "reproduced"
    return "undecided" if verdict.overall in ("unclear", "missing") else "not reproduced"


def name_of(cell: Cell) -> str:
    """`64 px, long`."""
    return f"{cell[0]} px {cell[1]}"


def percent(interval: Interval) -> str:
    """`+1.2% (0.4 to 2.0)`."""
    low, high = (100 * math.expm1(end) for end in (interval.low, interval.high))
    return f"{100 * math.expm1(interval.mean):+.1f}% ({low:+.1f} to {high:+.1f})"


def _phrase(overall: Overall, names: tuple[str, str]) -> str:
    told = {"first": f"{names[0]} better", "second": f"{names[1]} better", "equal": "no difference that matters"}
    return told.get(overall, overall)
