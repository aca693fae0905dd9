"""A plain function as a hook, and the signs of life that those outside a run look for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pleinair.training.engine import Run, StepHook
from pleinair.training.records import StepRecord


class EachStep:
    """Calls `function(record, total steps)` after every step on every rank. Raise from it to stop."""

    def __init__(self, function: StepHook) -> None:
        self.function = function

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Call it."""
        self.function(record, run.total_steps)
        return {}


class Heart(Protocol):
    """What tells a rank's life to others (`records.run_events.Heartbeat`)."""

    def __call__(self, step: int, compute_seconds: float | None = None) -> None:
        """So many steps are done."""
        ...

    def loaded(self, step: int) -> None:
        """Training goes on after so many steps."""
        ...

    def saved(
        self, step: int, *, stall_seconds: float, write_seconds: float, slowed_seconds: float | None = None
    ) -> None:
        """A checkpoint is durable."""
        ...

    def stopped(self, step: int, reason: str) -> None:
        """Training ended early, by its own decision."""
        ...


class Beats:
    """Tells a heart of the start, of every step, of every checkpoint, and of an early end."""

    def __init__(self, heart: Heart) -> None:
        self.heart = heart

    def begin(self, run: Run[Any]) -> None:
        """The state is loaded."""
        self.heart.loaded(run.step)

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """One more step is done."""
        self.heart(record.step + 1, run.compute_seconds)
        return {}

    def save_ended(self, outcome: Any) -> None:
        """A checkpoint is there, or was refused."""
        if getattr(outcome, "reason", None) is None:
            self.heart.saved(
                outcome.step,
                stall_seconds=outcome.stall_seconds,
                write_seconds=outcome.write_seconds,
                slowed_seconds=outcome.slowed_seconds,
            )

    def stopped_early(self, step: int, reason: str) -> None:
        """A hook ended the run."""
        self.heart.stopped(step, reason)
