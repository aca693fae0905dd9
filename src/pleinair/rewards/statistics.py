"""What is known of each value over a run: its mean and spread so far, and whether it still behaves as at the start.

    batch --Moments: all so far--> global spread, for floors
          --reference: the first WINDOW values, then frozen--\\
          --recent: the last WINDOW values-------------------> alarms: drift, saturation, constancy; refusal of outliers
          --batches: the latest means over groups------------> refusal of leaps (see `leaps`)

A reward that training climbs is meant to rise, so drift is said, not punished. What a sound reward never does (a value far
outside all that was seen, a whole batch that leaves the others at once, the same number for everything, batch after batch)
is for `combine` to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pleinair.records.errors import ConfigError
from pleinair.rewards.advantages import Groups, members
from pleinair.rewards.leaps import REMEMBERED, Batch, batch_of, standard_errors

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
    """Standard deviations from the mean of all so far at which a value is taken for a broken reward's; inf: never. Until a
    window was seen, and where nothing varied yet, the deviation counts as at least 1 and as large as the mean."""
    leap: float = 5.0
    """Standard errors by which a batch's mean may leave the recent batches at once, see `leaps`; inf: any number."""
    constant_batches: int = 8
    """Batches in a row of one and the same number at which a reward is taken for broken; 0: never."""

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ConfigError(f"window is {self.window}: give 2 or more values")
        for name in ("mean_drift", "outlier", "leap"):
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
    batches: list[Batch] = field(default_factory=list)
    """The latest."""

    @property
    def std(self) -> float:
        """Of all values so far; 0 before the second."""
        return (self.squares / self.count) ** 0.5 if self.count > 1 else 0.0

    @property
    def yardstick(self) -> float:
        """What outliers are measured by: the spread so far, at least of the order of 1 and the mean where little is known."""
        size = max(1.0, abs(self.mean))
        is_known = self.count >= self.config.window and self.std > 1e-6 * size
        return self.std if is_known else max(self.std, size)

    def after(self, values_N: Floats, groups_N: Groups) -> ValueStatistics:
        """What is known once a batch has been seen; this one stays as it was, so that a refused batch leaves no trace."""
        exact = values_N.astype(np.float64)
        still = [bool(np.ptp(exact[rows]) == 0) for rows in members(groups_N) if len(rows) > 1]
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
            still=(self.still + still)[-self.config.window :],
            constant_for=self.constant_for + 1 if alike else 0,
            batches=[*self.batches, batch_of(exact, groups_N)][-REMEMBERED:],
        )

    def outliers(self, values_N: Floats) -> npt.NDArray[np.bool_]:
        """(N,): far outside all that was seen; nothing is before something was."""
        if not self.count:
            return np.zeros(len(values_N), np.bool_)
        return np.asarray(np.abs(values_N.astype(np.float64) - self.mean) > self.config.outlier * self.yardstick)

    def leap(self, values_N: Floats, groups_N: Groups, width: float) -> float:
        """Standard errors by which a batch leaves the recent ones at once. `width`: of the value's bounds; inf: it has none."""
        if not self.batches:
            return 0.0
        span = width if np.isfinite(width) else self.yardstick
        now = batch_of(values_N.astype(np.float64), groups_N)
        return standard_errors(self.batches, now, spread=self.std, span=span)

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
        told = {name: getattr(self, name) for name in names}
        return {**told, "batches": [list(astuple(one)) for one in self.batches]}


def restored(config: StatisticsConfig, state: Mapping[str, Any]) -> ValueStatistics:
    """The inverse of `as_state`; a state of before batches were remembered has none. Raises ConfigError for another state."""
    try:
        batches = [Batch(*one) for one in state.get("batches", [])]
        return ValueStatistics(config=config, **{**state, "batches": batches})
    except (TypeError, AttributeError) as other:
        raise ConfigError(
            f"this is no state of a value's statistics ({other}): use one that this version saved"
        ) from other
