"""A budget of divergence: preference training ends where it has moved too far from where it began.

    records of the last steps --means over a window--> drift, winners that got worse     } over a limit: the run ends
    held-out error against the reference, where measured -> rise                          }

"The winner never gets worse" is no promise that a loss can keep: it is a number that is watched. The hook's memory is the
run's own records, so a resumed run decides as it would have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pleinair.records.errors import ConfigError
from pleinair.training.engine import Run
from pleinair.training.records import StepRecord, read_records

RISE = "validation_rise/loss"


@dataclass(frozen=True, kw_only=True)
class DivergenceConfig:
    """Limits; None leaves a quantity out, and at least one must be there."""

    drift: float | None = 0.05
    """Mean |v - v_ref|^2 on pretraining rows, in the unit of the flow loss."""
    winners_worse: float | None = None
    """Share of winners whose error rose above the reference's."""
    validation_rise: float | None = None
    """Rise of the held-out flow loss against the reference; needs `Validation` with a reference."""
    window: int = 20
    """Steps over which drift and winners are averaged; nothing is decided before there are as many."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"window is {self.window}: give at least 1 step")
        limits = {name: getattr(self, name) for name in ("drift", "winners_worse", "validation_rise")}
        if all(limit is None for limit in limits.values()):
            raise ConfigError(f"none of {', '.join(limits)} has a limit: set one, or leave the hook out")
        for name, limit in limits.items():
            if limit is not None and limit <= 0:
                raise ConfigError(f"{name} is {limit}: give a positive limit, or None for none")


class Divergence:
    """The hook (`Stops`): ends the run, for good, once the budget is spent."""

    def __init__(self, config: DivergenceConfig) -> None:
        self.config = config
        self._recent: dict[str, deque[float]] = {
            name: deque(maxlen=config.window) for name in ("drift", "winners_worse")
        }

    def begin(self, run: Run[Any]) -> None:
        """Take up the records of the steps before."""
        for record in read_records(run.run_dir / "steps.jsonl"):
            if record.step < run.step:
                self._remember(record)

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Nothing: others measure."""
        return {}

    def stop_reason(self, run: Run[Any], record: StepRecord) -> str | None:
        """Which limit is passed, in a sentence. Raises ConfigError where nothing measures what has a limit."""
        self._remember(record)
        for name, recent in self._recent.items():
            limit = getattr(self.config, name)
            if limit is None:
                continue
            if name not in record.metrics:
                raise ConfigError(
                    f"{name} has a limit and step {record.step} no such number: measure it, or set it to None"
                )
            if len(recent) == self.config.window and (mean := sum(recent) / len(recent)) > limit:
                return f"{_WORDS[name]} is {mean:.4g} over the last {len(recent)} steps, the budget is {limit:g}"
        rise, limit = record.metrics.get(RISE), self.config.validation_rise
        if limit is not None and rise is not None and rise > limit:
            return f"the held-out flow loss is {rise:.4g} above the reference's, the budget is {limit:g}"
        return None

    def _remember(self, record: StepRecord) -> None:
        for name, recent in self._recent.items():
            if name in record.metrics:
                recent.append(record.metrics[name])


_WORDS = {"drift": "the drift on pretraining data", "winners_worse": "the share of winners that got worse"}
