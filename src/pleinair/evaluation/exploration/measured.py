"""A number, where it comes from, and how sure it is: one mechanism for every measure of the suite.

    units (prompts or concepts) x values --mean over units--> statistic --> value
                     |                                                     resampled units --> 95% interval
                     +-- the same units of two subjects, differences resampled in pairs --> Comparison, with its power

A unit is what was asked (a prompt, a pair, a concept) with the mean over its seeds, so that intervals hold for other
prompts of the kind and for other seeds. A statistic is a function of the mean over units: the identity for an accuracy,
an entropy for a histogram.

U units, D values per unit, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""(R, D) means over units -> (R,) values."""

NUM_RESAMPLES = 2000
LEVEL = 0.95
POWER_FACTOR = 2.8
"""Standard errors that a difference needs to be seen four times in five: 1.96 + 0.84."""


def itself(mean_RD: Floats) -> Floats:
    """The statistic of an accuracy: the mean."""
    return mean_RD[:, 0]


def effective_number(mean_RD: Floats) -> Floats:
    """How many kinds a histogram is worth: the exponential of its entropy; 0 for an empty one."""
    total_R1 = mean_RD.sum(axis=1, keepdims=True)
    share_RD = np.divide(mean_RD, total_R1, out=np.zeros_like(mean_RD), where=total_R1 > 0)
    logs_RD = np.log(share_RD, out=np.zeros_like(share_RD), where=share_RD > 0)
    kinds_R: Floats = np.where(total_R1[:, 0] > 0, np.exp(-(share_RD * logs_RD).sum(axis=1)), 0.0)
    return kinds_R


def first_minus_second(mean_RD: Floats) -> Floats:
    """The statistic of a gap: each unit holds (sum, count) of either side; one side empty gives 0."""
    sums_RS, counts_RS = mean_RD[:, (0, 2)], mean_RD[:, (1, 3)]
    share_RS = np.divide(sums_RS, counts_RS, out=np.zeros_like(sums_RS), where=counts_RS > 0)
    gap_R: Floats = np.where((counts_RS > 0).all(axis=1), share_RS[:, 0] - share_RS[:, 1], 0.0)
    return gap_R


def half_distance(mean_RD: Floats) -> Floats:
    """The statistic of a histogram minus a reference: their total variation distance, 0 to 1."""
    apart_R: Floats = np.abs(mean_RD).sum(axis=1) / 2
    return apart_R


STATISTICS: Mapping[str, Statistic] = {
    "default_styles": effective_number,
    "default_style_distance": half_distance,
    "unseen_gap": first_minus_second,
    "tail_gap": first_minus_second,
}
"""By measure; `itself` for all others."""
SHARES = ("transfer", "near_copies", "nearer_to_trained", "text_error")
"""Measures from 0 to 1, beside all that begin with `can_`."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measure of one subject by one judge."""

    name: str
    value: float
    interval: tuple[float, float]
    """95%, bootstrap over units."""
    num_pictures: int
    units: Mapping[str, Sequence[float]]
    """What each unit gave, kept so that two subjects can be compared in pairs."""
    detectable: float
    """The smallest difference to an equal run with other units that would be seen four times in five."""


def measured(
    name: str,
    units: Mapping[str, Sequence[float] | float],
    num_pictures: int,
    *,
    seed: int = 0,
) -> Measured:
    """The measure of these units. Raises ValueError for none, or a value that is not finite."""
    # In the order of their names, so that the same resamples are drawn whatever the order of work.
    ordered = sorted(units.items())
    listed = {unit: [value] if isinstance(value, (int, float)) else list(value) for unit, value in ordered}
    values_UD = as_array(name, listed)
    statistic = STATISTICS.get(name, itself)
    resampled_R = statistic(resampled_means(values_UD, seed))
    low, high = np.quantile(resampled_R, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    value = float(statistic(values_UD.mean(axis=0, keepdims=True))[0])
    deviation = float(resampled_R.std())
    if name.startswith("can_") or name in SHARES:
        low, high, deviation = unanimous(value, len(listed)) or (low, high, deviation)
    return Measured(
        name=name,
        value=value,
        # A resample repeats units, which lowers an entropy: the interval is widened to hold its own value.
        interval=(min(float(low), value), max(float(high), value)),
        num_pictures=num_pictures,
        units=listed,
        detectable=POWER_FACTOR * 2**0.5 * deviation,
    )


def unanimous(value: float, num_units: int) -> tuple[float, float, float] | None:
    """Interval and deviation of a share of which all units say 0 or all say 1; None for any other.

    No resample differs from another there, and yet other prompts might: Clopper and Pearson's interval, and the deviation
    of Jeffreys' estimate.
    """
    if value not in (0.0, 1.0):
        return None
    bound = ((1 - LEVEL) / 2) ** (1 / num_units)
    share = (num_units * value + 0.5) / (num_units + 1)
    deviation = (share * (1 - share) / num_units) ** 0.5
    return (bound, 1.0, deviation) if value else (0.0, 1 - bound, deviation)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two subjects differ on the units they share."""

    difference: float
    """Second minus first."""
    interval: tuple[float, float]
    num_units: int
    detectable: float
    """The smallest difference that would be seen four times in five."""

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval leaves zero out, else 0."""
        return int(self.interval[0] > 0) - int(self.interval[1] < 0)


def compare(first: Measured, second: Measured, *, seed: int = 0) -> Comparison:
    """Second minus first, by a bootstrap that takes the same units of both. Raises ValueError when they share none."""
    shared = [unit for unit in first.units if unit in second.units]
    if first.name != second.name or not shared:
        raise ValueError(
            f"{first.name} and {second.name} share {len(shared)} units: compare one measure on one set of prompts"
        )
    before_UD, after_UD = (as_array(one.name, {unit: one.units[unit] for unit in shared}) for one in (first, second))
    both_UD = np.concatenate([before_UD, after_UD], axis=1)
    depth = before_UD.shape[1]

    statistic = STATISTICS.get(first.name, itself)

    def difference(mean_RD: Floats) -> Floats:
        return statistic(mean_RD[:, depth:]) - statistic(mean_RD[:, :depth])

    resampled_R = difference(resampled_means(both_UD, seed))
    low, high = np.quantile(resampled_R, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Comparison(
        difference=float(difference(both_UD.mean(axis=0, keepdims=True))[0]),
        interval=(float(low), float(high)),
        num_units=len(shared),
        detectable=POWER_FACTOR * float(resampled_R.std()),
    )


def as_array(name: str, units: Mapping[str, Sequence[float]]) -> Floats:
    """(U, D). Raises ValueError for no units, or values that are not finite."""
    if len(units) < 2:
        raise ValueError(
            f"{name} rests on {len(units)} of what was asked: an interval needs two or more, draw more prompts"
        )
    values_UD = np.array(list(units.values()), np.float64)
    if not np.isfinite(values_UD).all():
        bad = next(unit for unit, row in zip(units, values_UD, strict=True) if not np.isfinite(row).all())
        raise ValueError(f"{name} of {bad!r} is {units[bad]}: pictures and scores must be finite")
    return values_UD


def resampled_means(values_UD: Floats, seed: int) -> Floats:
    """(R, D): the mean over units drawn with replacement, R times."""
    num_units = len(values_UD)
    drawn_RU = np.random.default_rng(seed).multinomial(num_units, np.full(num_units, 1 / num_units), NUM_RESAMPLES)
    means_RD: Floats = drawn_RU @ values_UD / num_units
    return means_RD


def mean_by_unit(
    units: Sequence[str], values: npt.NDArray[np.floating[Any]] | npt.NDArray[np.bool_]
) -> dict[str, float]:
    """The mean of each unit's values, units in their first order."""
    sums: dict[str, list[float]] = {}
    for unit, value in zip(units, values, strict=True):
        sums.setdefault(unit, []).append(float(value))
    return {unit: sum(found) / len(found) for unit, found in sums.items()}
