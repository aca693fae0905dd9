"""When the next checkpoint is due: from what the last ones cost this run, and from how often it fails.

    step_done ────────> times of steps ─┐
    save_ended(Saved) ──────────────────┴─> stall + slowed steps ──next_interval──> is_due
    failures of the run so far ─────────────────────────────────────────^

Every rank keeps one for its own report; rank 0's decides for all (`engine`).
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace

from pleinair.checkpoint.interval import IntervalConfig, StepTime, measured_cost, next_interval, slowdown
from pleinair.records.checkpoint import Saved
from pleinair.records.run_events import FailureHistory

_REMEMBERED_STEPS = 1000
_REMEMBERED_SAVES = 6
_TOLD_CHANGE = 1.2


class SaveClock:
    """Measures what checkpoints cost and says when one is due; all times are `time.monotonic()`."""

    def __init__(self, config: IntervalConfig, failures: FailureHistory) -> None:
        self._config, self._failures = config, failures
        self._began = self._saved_at = time.monotonic()
        self._steps: deque[StepTime] = deque(maxlen=_REMEMBERED_STEPS)
        self._saves: deque[Saved] = deque(maxlen=_REMEMBERED_SAVES)
        self._report: dict[str, float] = {}
        self._told_seconds = config.seconds
        self._has_told_slow = False
        self.interval_seconds = config.seconds
        """From the start of one checkpoint to the next."""

    def training_began(self) -> None:
        """What went before, loading above all, is no time without a checkpoint."""
        self._began = self._saved_at = time.monotonic()

    def step_done(self, began: float, ended: float) -> None:
        """A step ran from `began` to `ended`, what it waited for a checkpoint left out."""
        self._steps.append(StepTime(began=began, ended=ended))

    def forget_steps(self) -> None:
        """Steps take another time from now on: those of another resolution are no measure."""
        self._steps.clear()

    def save_began(self) -> None:
        """A checkpoint is begun."""
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time for the next."""
        return time.monotonic() - self._saved_at >= self.interval_seconds

    def save_ended(self, saved: Saved) -> Saved:
        """The same with its slowed steps; the interval is chosen anew."""
        found = slowdown(self._steps, [saved])
        saved = replace(saved, slowed_seconds=None if found is None else max(0.0, found.seconds))
        ended = saved.began + saved.write_seconds
        # What ran beside the write is no measure for the next one.
        clean = [step for step in self._steps if step.ended <= saved.began or step.began >= ended]
        self._steps = deque(clean, maxlen=_REMEMBERED_STEPS)
        self._saves.append(saved)
        self.interval_seconds = next_interval(
            self._config,
            measured_cost(list(self._saves)),
            num_failures=self._failures.num_failures,
            observed_seconds=self._failures.observed_seconds + time.monotonic() - self._began,
        )
        self._report = {
            "checkpoint/stall_seconds": saved.stall_seconds,
            "checkpoint/slowed_seconds": saved.slowed_seconds or 0.0,
            "checkpoint/write_seconds": saved.write_seconds,
            "checkpoint/interval_seconds": self.interval_seconds,
        }
        return saved

    def take_report(self) -> dict[str, float]:
        """What the last checkpoint cost, once."""
        report, self._report = self._report, {}
        return report

    def news(self) -> str | None:
        """A sentence after the first checkpoint that was long in writing, and one where the interval is much longer or
        shorter than what was last told.
        """
        return "; ".join(told for told in (self._slow_write(), self._changed_interval()) if told) or None

    def _slow_write(self) -> str | None:
        saved = self._saves[-1] if self._saves else None
        if self._has_told_slow or saved is None or saved.write_seconds <= self._config.slow_write_seconds:
            return None
        self._has_told_slow = True
        return (
            f"the checkpoint of step {saved.step} was durable after {saved.write_seconds:.0f} s, more than "
            f"{self._config.slow_write_seconds:g} s: a failure before that falls back to the one before. This rank wrote "
            f"{saved.num_bytes / 2**30:.1f} GiB; a faster disk, or more ranks in parallel.mesh.shard, make it shorter"
        )

    def _changed_interval(self) -> str | None:
        change = self.interval_seconds / self._told_seconds
        cost = measured_cost(list(self._saves))
        if cost is None or 1 / _TOLD_CHANGE <= change <= _TOLD_CHANGE:
            return None
        self._told_seconds = self.interval_seconds
        return (
            f"a checkpoint costs {cost.seconds:.2f} s ({cost.stall_seconds:.2f} s of waiting, {cost.slowed_seconds:.2f} s "
            f"in slower steps) and is written in {cost.write_seconds:.1f} s: one every {self.interval_seconds:.0f} s"
        )
