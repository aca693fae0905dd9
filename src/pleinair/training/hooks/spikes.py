"""Loss and gradient spikes: found against the recent past, told with the pictures that caused them.

    spike:   value > median + threshold * 1.4826 * MAD      over the last `window` steps of the phase, for loss or gradient norm

Median and median absolute deviation do not move for the spikes themselves. A line in `spikes.jsonl` holds the step and the
keys of all pictures of its batch.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pleinair.records.errors import ConfigError, PleinairError
from pleinair.training.engine import Run
from pleinair.training.records import StepRecord, keep_records_before, read_records

DEVIATIONS_PER_MAD = 1.4826
"""Of a normal distribution."""
LEAST_SPREAD = 0.01
"""Spread taken at least, as a share of the median: a flat loss is no reason to call noise a spike."""


class SpikeError(PleinairError):
    """A step's loss or gradient is far outside the recent ones, and the policy is to stop."""


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """What is a spike, and what is done about it."""

    policy: Literal["note", "skip", "stop"] = "note"
    """Write it down; also leave the update out; or stop before the update."""
    window: int = 100
    """Steps that a value is compared with."""
    least_steps: int = 20
    """Steps of a phase before anything is called a spike."""
    threshold: float = 8.0
    """Robust standard deviations above the median."""

    def __post_init__(self) -> None:
        if not 3 <= self.least_steps <= self.window:
            raise ConfigError(f"least_steps is {self.least_steps}: give 3 to window, {self.window}")
        if self.threshold <= 0:
            raise ConfigError(f"threshold is {self.threshold}: it must be positive")


class Spikes:
    """The hook. Its memory is the run's own records, so a resumed run judges as it would have."""

    def __init__(self, config: SpikeConfig) -> None:
        self.config = config
        self._phase: str | None = None
        self._recent: deque[tuple[float, float]] = deque(maxlen=config.window)

    def begin(self, run: Run[Any]) -> None:
        """Take up the records of the steps before."""
        keep_records_before(run.run_dir / "spikes.jsonl", run.step)
        for record in read_records(run.run_dir / "steps.jsonl"):
            if record.step < run.step:
                self._remember(record.phase, record.loss, record.grad_norm)

    def allows_update(self, run: Run[Any], loss: float, grad_norm: float) -> bool:
        """Judge a step before its update; raises SpikeError when the policy is to stop."""
        assert run.phase is not None
        sigmas = self._sigmas(run.phase.name, loss, grad_norm)
        self._remember(run.phase.name, loss, grad_norm)
        if not any(value > self.config.threshold for value in sigmas.values()):
            return True
        found = {"step": run.step, "phase": run.phase.name, "loss": loss, "grad_norm": grad_norm, "sigmas": sigmas}
        self._write_down(run, {**found, "policy": self.config.policy, "keys": run.all_keys()})
        return self.config.policy != "skip"

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Nothing: all is done before the update."""
        return {}

    def _write_down(self, run: Run[Any], found: Mapping[str, Any]) -> None:
        if run.mesh.rank == 0:
            with (run.run_dir / "spikes.jsonl").open("a") as file:
                file.write(json.dumps(found) + "\n")
        shown = ", ".join(found["keys"][:8])
        told = (
            f"a spike at step {run.step}: loss {found['loss']:.4g}, gradient norm {found['grad_norm']:.4g}; its pictures "
            f"({shown} ...) are in {run.run_dir / 'spikes.jsonl'}"
        )
        if self.config.policy == "stop":
            raise SpikeError(f"{told}; look at them, lower the learning rate, or set the policy to skip or note")
        run.say(told)

    def _sigmas(self, phase: str, loss: float, grad_norm: float) -> dict[str, float]:
        """How far each value lies above the recent ones, in robust standard deviations; nothing at a phase's start."""
        if phase != self._phase or len(self._recent) < self.config.least_steps:
            return {}
        losses, norms = zip(*self._recent, strict=True)
        return {"loss": robust_sigmas(loss, losses), "grad_norm": robust_sigmas(grad_norm, norms)}

    def _remember(self, phase: str, loss: float, grad_norm: float) -> None:
        if phase != self._phase:
            self._phase = phase
            self._recent.clear()
        self._recent.append((loss, grad_norm))


def robust_sigmas(value: float, recent: Iterable[float]) -> float:
    """(value - median) / (1.4826 MAD)."""
    values = np.fromiter(recent, float)
    median = float(np.median(values))
    spread = DEVIATIONS_PER_MAD * float(np.median(np.abs(values - median)))
    return (value - median) / max(spread, LEAST_SPREAD * abs(median), 1e-12)
