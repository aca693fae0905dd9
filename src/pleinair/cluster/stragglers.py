"""Slow ranks: those whose own work takes longer than the others', step after step.

A step lasts as long for every rank, since they wait for each other; what differs is the time before the wait. For
every step and rank, r = log(its compute time / median of the others'), and a one-sided cumulative sum (Page 1954):

    s <- max(0, s + clip(r, +-LARGEST) - log(1 + slowdown))          flagged when s > alarm

Noise has a negative drift and comes back to 0; a rank that is 30% slower adds 0.12 a step and is flagged after about
ten. A single slow step, of whatever length, counts as LARGEST at most. (A median over a window that is compared with its
own spread was tried first: it met the change later and gave more false alarms.)
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from pleinair.records.run_events import Step, Straggler

LARGEST = 0.3
_KEPT_STEPS = 64
_KEPT_RATIOS = 16


@dataclass(frozen=True, kw_only=True)
class StragglerConfig:
    """When a rank counts as slow."""

    slowdown: float = 0.15
    """Share by which a rank may be slower for ever without being flagged."""
    alarm: float = 1.0
    """Sum of log ratios beyond that at which it is flagged; smaller is sooner, with more false alarms."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ValueError(f"{name} is {value}: give a positive number")


class Stragglers:
    """Told of every step event, it says which ranks have become slow."""

    def __init__(self, config: StragglerConfig, num_ranks: int) -> None:
        self._config, self._num_ranks = config, num_ranks
        self._steps: dict[int, dict[int, float]] = {}
        self._sums = dict.fromkeys(range(num_ranks), 0.0)
        self._ratios = {rank: deque[float](maxlen=_KEPT_RATIOS) for rank in range(num_ranks)}
        self._flagged: set[int] = set()

    def hear(self, event: Step) -> list[Straggler]:
        """Ranks that are flagged by this event; each once, until it has been like the others again."""
        if event.compute_seconds is None or event.compute_seconds <= 0 or self._num_ranks < 2:
            return []
        of_step = self._steps.setdefault(event.step, {})
        of_step[event.rank] = event.compute_seconds
        if len(of_step) < self._num_ranks:
            self._forget_old()
            return []
        del self._steps[event.step]
        found = []
        for rank, seconds in of_step.items():
            others = statistics.median(other for one, other in of_step.items() if one != rank)
            if self._add(rank, math.log(seconds / others)):
                slowdown = math.exp(statistics.median(self._ratios[rank]))
                found.append(Straggler(rank=rank, slowdown=slowdown, step=event.step))
        return found

    def _add(self, rank: int, ratio: float) -> bool:
        """Whether this ratio makes the rank a straggler."""
        self._ratios[rank].append(ratio)
        moved = self._sums[rank] + max(-LARGEST, min(ratio, LARGEST)) - math.log1p(self._config.slowdown)
        self._sums[rank] = min(max(0.0, moved), 2.0 * self._config.alarm)
        if self._sums[rank] == 0.0:
            self._flagged.discard(rank)
        if self._sums[rank] <= self._config.alarm or rank in self._flagged:
            return False
        self._flagged.add(rank)
        return True

    def _forget_old(self) -> None:
        while len(self._steps) > _KEPT_STEPS:  # a step that not every rank told of
            del self._steps[min(self._steps)]
