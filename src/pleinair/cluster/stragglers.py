"""Slow ranks: those whose own work takes longer than the others', step after step.

A step lasts as long for every rank, since they wait for each other; what differs is the time before the wait. For
each step r = log(a rank's compute time / median of the others'). A rank is flagged when the median of its last
`window` r is above both log(1 + `slowdown`) and `deviations` standard errors of that median, the spread being
measured over the same window, so that on a noisy machine more is asked. Single slow steps do not move a median.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from pleinair.records.run_events import Step, Straggler

_MEDIAN_ERROR = 1.2533  # standard error of a median over that of a mean, for normal noise
_MAD_TO_SIGMA = 1.4826
_KEPT_STEPS = 64


@dataclass(frozen=True, kw_only=True)
class StragglerConfig:
    """When a rank counts as slow."""

    window: int = 16
    """Step events looked at."""
    slowdown: float = 0.15
    """Least share by which it must be slower."""
    deviations: float = 4.5
    """Standard errors it must be away from the others."""

    def __post_init__(self) -> None:
        if self.window < 4:
            raise ValueError(f"window is {self.window}: a median over fewer than 4 steps says nothing")


class Stragglers:
    """Told of every step event, it says which ranks have become slow."""

    def __init__(self, config: StragglerConfig, num_ranks: int) -> None:
        self._config, self._num_ranks = config, num_ranks
        self._steps: dict[int, dict[int, float]] = {}
        self._ratios = {rank: deque[float](maxlen=config.window) for rank in range(num_ranks)}
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
        for rank, seconds in of_step.items():
            others = statistics.median(other for one, other in of_step.items() if one != rank)
            self._ratios[rank].append(math.log(seconds / others))
        return list(self._look(event.step))

    def _look(self, step: int) -> Iterator[Straggler]:
        for rank, ratios in self._ratios.items():
            if len(ratios) < self._config.window:
                continue
            median = statistics.median(ratios)
            spread = _MAD_TO_SIGMA * statistics.median(abs(ratio - median) for ratio in ratios)
            error = _MEDIAN_ERROR * spread / math.sqrt(len(ratios))
            needed = max(math.log1p(self._config.slowdown), self._config.deviations * error)
            if median > needed and rank not in self._flagged:
                self._flagged.add(rank)
                yield Straggler(rank=rank, slowdown=math.exp(median), step=step)
            elif median < needed / 2:
                self._flagged.discard(rank)

    def _forget_old(self) -> None:
        while len(self._steps) > _KEPT_STEPS:  # a step that not every rank told of
            del self._steps[min(self._steps)]
