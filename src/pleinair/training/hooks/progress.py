"""A plain function as a hook: a progress line, a heartbeat, a check that ends the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pleinair.training.engine import Run
from pleinair.training.records import StepRecord


class EachStep:
    """Calls `function(record, total steps)` after every step on every rank. Raise from it to stop."""

    def __init__(self, function: Callable[[StepRecord, int], None]) -> None:
        self.function = function

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Call it."""
        self.function(record, run.total_steps)
        return {}


class Beats:
    """Calls `heartbeat(step)` after every step on every rank, where others look for silent ones."""

    def __init__(self, heartbeat: Callable[[int], None]) -> None:
        self.heartbeat = heartbeat

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Call it."""
        self.heartbeat(record.step)
        return {}
