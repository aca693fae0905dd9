"""How often to save: what a checkpoint costs, how often the run fails, and the interval that loses the least time.

    cost  = stall + slowed steps                       measured by the run (`slowdown`, `Saved.stall_seconds`)
    M     = mean seconds between its failures          from the run's own events
    lost  = one cost per interval + half an interval and the write time per failure + the restart

A checkpoint counts only once it is durable: a failure during a write falls back to the one before.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pleinair.records.checkpoint import Saved

IntervalRule = Literal["affordable", "failures", "time"]


@dataclass(frozen=True, kw_only=True)
class CheckpointCost:
    """What one checkpoint costs a run."""

    stall_seconds: float
    """Training waits."""
    slowed_seconds: float = 0.0
    """What the steps beside the write take longer, all together."""
    write_seconds: float = 0.0
    """From the save until it counts."""

    @property
    def seconds(self) -> float:
        """Training time lost."""
        return self.stall_seconds + self.slowed_seconds


@dataclass(frozen=True, kw_only=True)
class IntervalConfig:
    """How the time between checkpoints is chosen."""

    by: IntervalRule = "affordable"
    """`affordable`: every `seconds` where the budget pays for that, else as `failures`. `failures`: where the least time
    is lost (Daly). `time`: every `seconds`, whatever it costs."""
    seconds: float = 30.0
    """Time between checkpoints, never shorter."""
    budget: float = 0.02
    """Share of the time that checkpoints may cost, stall and slowed steps together, for `seconds` to be affordable."""
    slow_write_seconds: float = 30.0
    """A checkpoint that takes longer until it is durable is told of, once."""
    longest_seconds: float = 3600.0
    """Never longer than this when chosen by failures, but for a write that takes longer."""
    expected_seconds_between_failures: float = 24 * 3600.0
    """What is believed before the run has been observed; weighs as one failure."""

    def __post_init__(self) -> None:
        for name in ("seconds", "slow_write_seconds", "longest_seconds", "expected_seconds_between_failures"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")
        if not 0 < self.budget < 1:
            raise ValueError(f"budget is {self.budget}: it must be a share between 0 and 1")


def next_interval(
    config: IntervalConfig, cost: CheckpointCost | None, *, num_failures: int = 0, observed_seconds: float = 0.0
) -> float:
    """Seconds from the start of one checkpoint to the next.

    `cost` is what the last ones were measured to cost, None before the first; `num_failures` and `observed_seconds` are of
    the whole run, restarts included. Never so short that two would be written at once.
    """
    if cost is None or config.by == "time":
        return config.seconds
    shortest = max(config.seconds, cost.write_seconds)
    if config.by == "affordable" and cost.seconds <= config.budget * shortest:
        return shortest
    mean = seconds_between_failures(num_failures, observed_seconds, config.expected_seconds_between_failures)
    best = daly_interval(mean, cost.seconds) + cost.seconds
    return max(shortest, min(best, config.longest_seconds))


def measured_cost(saves: Sequence[Saved]) -> CheckpointCost | None:
    """What a checkpoint of this run costs: medians over the saves, the oldest first and left out, as it pays for memory
    that was never touched before; None where no other is there.
    """
    later = saves[1:]
    if not later:
        return None
    return CheckpointCost(
        stall_seconds=statistics.median(saved.stall_seconds for saved in later),
        slowed_seconds=statistics.median(saved.slowed_seconds or 0.0 for saved in later),
        write_seconds=statistics.median(saved.write_seconds for saved in later),
    )


def seconds_between_failures(num_failures: int, observed_seconds: float, expected: float) -> float:
    """Mean seconds between failures: what was observed, together with one imagined failure after `expected` seconds.

    (The posterior of an exponential rate whose prior weighs one failure.) So no run is believed to fail never, and the
    first failure after a minute does not set the interval alone.
    """
    return (expected + observed_seconds) / (1 + num_failures)


def young_interval(mean_seconds: float, cost_seconds: float) -> float:
    """Training between two checkpoints, sqrt(2 M C) (Young 1974)."""
    return math.sqrt(2 * mean_seconds * cost_seconds)


def daly_interval(mean_seconds: float, cost_seconds: float) -> float:
    """Training between two checkpoints, the higher-order estimate (Daly 2006, Eq. 37); M when they cost more than 2 M."""
    if cost_seconds >= 2 * mean_seconds:
        return mean_seconds
    share = cost_seconds / (2 * mean_seconds)
    return young_interval(mean_seconds, cost_seconds) * (1 + math.sqrt(share) / 3 + share / 9) - cost_seconds


def goodput(interval_seconds: float, cost: CheckpointCost, mean_seconds: float, restart_seconds: float) -> float:
    """Share of the time that is kept training, for `interval_seconds` of training between checkpoints.

    T / (M e^((R + W) / M) (e^((T + C) / M) - 1)), exact for exponential failures (also during a restart) and a blocking
    write (Daly 2006, Eq. 20). A write in the background loses its own time W once more per failure, like a longer restart.
    """
    background = max(0.0, cost.write_seconds - cost.stall_seconds)
    lost = math.exp((restart_seconds + background) / mean_seconds)
    return interval_seconds / (mean_seconds * lost * math.expm1((interval_seconds + cost.seconds) / mean_seconds))


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """When one training step ran; `time.monotonic()`, like `Saved.began`."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass(frozen=True, kw_only=True)
class Slowdown:
    """Steps beside a write, against the others."""

    ratio: float
    """Median step beside a write over the median of the others."""
    seconds: float
    """What the steps beside writes took longer in all; divided by the writes, `CheckpointCost.slowed_seconds`."""
    num_slowed: int
    num_others: int


def slowdown(steps: Sequence[StepTime], writes: Sequence[Saved]) -> Slowdown | None:
    """How much slower steps are while a checkpoint is being written; None where there is nothing to compare.

    A step counts as beside a write when at least half of it is. The stall must not be in the steps' times.
    """
    beside: list[float] = []
    others: list[float] = []
    for step in steps:
        overlap = sum(
            max(0.0, min(step.ended, write.began + write.write_seconds) - max(step.began, write.began))
            for write in writes
        )
        (beside if 2 * overlap >= step.seconds else others).append(step.seconds)
    if not beside or not others:
        return None
    usual = statistics.median(others)
    return Slowdown(
        ratio=statistics.median(beside) / usual,
        seconds=sum(beside) - len(beside) * usual,
        num_slowed=len(beside),
        num_others=len(others),
    )
