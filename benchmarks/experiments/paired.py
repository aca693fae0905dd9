"""Differences of runs that share seed, prompts and noise, and the one word that their intervals allow."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.experiments.drawn import spread

REACHED, UNDECIDED, NOT_REACHED = "reached", "undecided", "not reached"
Interval = tuple[float, float]


def over_seeds(differences: Sequence[float]) -> Interval:
    """Student's 95% interval of a mean over seeds; NaN for a single one."""
    mean, half = spread(differences)
    return mean - half, mean + half


def verdict(differences: Sequence[float], *others: Interval) -> str:
    """Whether differences, one a seed, lie above 0: by their interval over seeds and by every other one, over prompts say."""
    return said_of([over_seeds(differences), *others], 0.0)


def word(mean: float, half: float, aim: float = 0.0) -> str:
    """Whether a mean with half of its 95% interval lies above an aim."""
    return said_of([(mean - half, mean + half)], aim)


def said_of(intervals: Sequence[Interval], aim: float) -> str:
    """`not reached` where one of the intervals lies below the aim; NaN, of a single seed, decides nothing."""
    if all(low > aim for low, _ in intervals):
        return REACHED
    return NOT_REACHED if any(high < aim for _, high in intervals) else UNDECIDED


def less(first: Sequence[float], second: Sequence[float], share: float = 1.0) -> list[float]:
    """What `first` has beyond `share` of `second`, seed by seed."""
    return [one - share * other for one, other in zip(first, second, strict=True)]
