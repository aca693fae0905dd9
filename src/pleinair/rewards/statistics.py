"""What is known of each value over a run: its mean and spread so far, and whether it still behaves as at the start.

    batch --Moments: all so far--> global spread, for floors
          --reference: the first WINDOW values, then frozen--\\
          --recent: the last WINDOW values-------------------> alarms: drift, saturation, constancy; refusal of outliers

A reward that training climbs is meant to rise, so drift is said, not punished. What a sound reward never does (a value far
outside all that was seen, the same number for everything, batch after batch) is for `combine` to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pleinair.records.errors import ConfigError

Floats = npt.NDArray[np.floating[Any]]
AlarmKind = Literal["mean drifted", "spread drifted", "saturated", "constant"]


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """When a value is said to behave otherwise than at the start."""

    window: int = 256
    """Values in the reference, taken at the start, and in what is held against it."""
    mean_drift: float = 3.0
    """Largest move of the mean, in the reference's standard deviations."""
    spread_drift: float = 4.0
    """Largest factor between the two standard deviations, either way."""
    saturated_share: float = 0.9
    """Of the latest groups: so many that do not vary, and the value has no more to teach."""
    outlier: float = 30.0
    """Standard deviations from the mean of all so far at which a value is taken for a broken reward's; inf: never."""
    constant_batches: int = 8
    """Batches in a row of one and the same number at which a reward is taken for broken; 0: never."""

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ConfigError(f"window is {self.window}: give 2 or more values")
        for name in ("mean_drift", "outlier"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a number above 0")
        if not self.spread_drift > 1:
            raise ConfigError(f"spread_drift is {self.spread_drift}: give a factor above 1")
        if not 0 < self.saturated_share <= 1:
            raise ConfigError(f"saturated_share is {self.saturated_share}: give a share above 0")
        if self.constant_batches < 0:
            raise ConfigError(f"constant_batches is {self.constant_batches}: give 0 or more")


@dataclass(frozen=True)
class Alarm:
    """A value that behaves otherwise than at the start; `str()` makes a sentence of it."""

    value: str
    kind: AlarmKind
    now: float
    before: float

    def __str__(self) -> str:
        return f"{self.value}: {self.kind}, {self.now:.4g} against {self.before:.4g}"


@dataclass
class ValueStatistics:
    """One value over a run."""

    config: StatisticsConfig
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""
    reference: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    still: list[bool] = field(default_factory=list)
    """Of the latest groups: whether it did not vary."""
    constant_for: int = 0
    """Batches in a row in which it was one number."""

    @property
    def std(self) -> float:
        """Of all values so far; 0 before the second."""
        return (self.squares / self.count) ** 0.5 if self.count > 1 else 0.0

    def after(self, values_N: Floats, still_groups: list[bool]) -> ValueStatistics:
        """What is known once a batch has been seen; this one stays as it was, so that a refused batch leaves no trace."""
        exact = values_N.astype(np.float64)
        num, batch_mean = len(exact), float(exact.mean())
        count, gap = self.count + num, batch_mean - self.mean
        room = self.config.window - len(self.reference)
        alike = num > 1 and float(np.ptp(exact)) == 0.0 and (not self.recent or self.recent[-1] == exact[0])
        return ValueStatistics(
            config=self.config,
            count=count,
            mean=self.mean + gap * num / count,
            # Chan, Golub and LeVeque: moments of two parts from those of each.
            squares=self.squares + float(((exact - batch_mean) ** 2).sum()) + gap**2 * self.count * num / count,
            reference=self.reference + exact[: max(room, 0)].tolist(),
            recent=(self.recent + exact.tolist())[-self.config.window :],
            still=(self.still + still_groups)[-self.config.window :],
            constant_for=self.constant_for + 1 if alike else 0,
        )

    def outliers(self, values_N: Floats) -> npt.NDArray[np.bool_]:
        """(N,): far outside all that was seen, once a window was."""
        if self.count < self.config.window or self.std == 0:
            return np.zeros(len(values_N), np.bool_)
        return np.asarray(np.abs(values_N.astype(np.float64) - self.mean) > self.config.outlier * self.std)

    def alarms(self, name: str) -> list[Alarm]:
        """How it behaves otherwise than at the start; nothing before two windows were seen."""
        if self.count < 2 * self.config.window:
            return []
        found: list[Alarm] = []
        was, now = np.array(self.reference), np.array(self.recent)
        if abs(now.mean() - was.mean()) > self.config.mean_drift * max(float(was.std()), 1e-12):
            found.append(Alarm(name, "mean drifted", float(now.mean()), float(was.mean())))
        smaller, larger = sorted((float(was.std()), float(now.std())))
        if larger > self.config.spread_drift * smaller:
            found.append(Alarm(name, "spread drifted", float(now.std()), float(was.std())))
        if self.still and np.mean(self.still) >= self.config.saturated_share:
            found.append(Alarm(name, "saturated", float(np.mean(self.still)), self.config.saturated_share))
        if self.constant_for:
            found.append(Alarm(name, "constant", float(self.constant_for), 0.0))
        return found

    def as_state(self) -> dict[str, Any]:
        """As JSON."""
        names = ("count", "mean", "squares", "reference", "recent", "still", "constant_for")
        return {name: getattr(self, name) for name in names}


def restored(config: StatisticsConfig, state: Mapping[str, Any]) -> ValueStatistics:
    """The inverse of `as_state`. Raises ConfigError for another state."""
    try:
        return ValueStatistics(config=config, **state)
    except TypeError as other:
        raise ConfigError(
            f"this is no state of a value's statistics ({other}): use one that this version saved"
        ) from other
