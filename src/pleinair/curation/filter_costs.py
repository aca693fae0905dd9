"""What each limit costs in pictures, before it is applied: read from columns, no picture is opened.

read_measures -> costs: per filter and source the values, the limit, and the pictures nearest to it on both sides
              -> trial: who would go, and who would come back, under other limits
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pleinair.curation.filters import FILTERS, Filter, as_stored
from pleinair.curation.limits import LimitTable
from pleinair.curation.replay import Measured, judge_all, limits_of_each
from pleinair.krablet import Table

NUM_NEAREST = 5
"""Pictures shown of each source, on each side of a limit."""


@dataclass(frozen=True, order=True)
class Near:
    """A picture near a limit."""

    distance: float
    """From its own limit, 0 or more; on a logarithmic measure the difference of logarithms."""
    image_name: str
    source: str = field(compare=False)
    value: float = field(compare=False)
    image_path: str | None = field(compare=False)


@dataclass
class SourceCost:
    """One filter over the pictures of one source, more being added."""

    values: list[NDArray[np.float32]] = field(default_factory=list)
    limits: set[float] = field(default_factory=set)
    """More than one where styles of the source have limits of their own."""
    num_unknown: int = 0
    num_dropped: int = 0
    """By this filter, whatever the others say."""
    dropped: list[Near] = field(default_factory=list)
    """The pictures beyond the limit that are nearest to it."""
    kept: list[Near] = field(default_factory=list)
    """Those within it: the first to go if it moved."""

    def known(self) -> NDArray[np.float32]:
        """All values, sorted."""
        return np.sort(np.concatenate(self.values)) if self.values else np.zeros(0, np.float32)


@dataclass
class FilterCost:
    """One filter over all sources."""

    filter: Filter
    by_source: dict[str, SourceCost] = field(default_factory=dict)

    def add(self, measured: Measured, limits: NDArray[np.float64], resolution: int) -> None:
        """Count some more pictures."""
        values, sources = measured.measures[self.filter.column(resolution)], measured.words["source"]
        known, failing = ~np.isnan(values), self.filter.fails(values, limits)
        distance = np.abs(self._scaled(values) - self._scaled(limits))
        names, which = np.unique(np.array([source or "" for source in sources]), return_inverse=True)
        for number, name in enumerate(names):
            own, cost = which == number, self.by_source.setdefault(str(name), SourceCost())
            cost.values.append(as_stored(values[own & known]))
            cost.limits |= set(np.unique(limits[own]).tolist())
            cost.num_unknown += int((own & ~known).sum())
            cost.num_dropped += int((own & failing).sum())
            cost.dropped = _nearest(cost.dropped, measured, values, distance, own & failing)
            cost.kept = _nearest(cost.kept, measured, values, distance, own & known & ~failing)

    def _scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log10(np.maximum(values, 1e-3)) if self.filter.logarithmic else values


def _nearest(
    found: list[Near],
    measured: Measured,
    values: NDArray[np.float64],
    distance: NDArray[np.float64],
    among: NDArray[np.bool_],
) -> list[Near]:
    places = np.flatnonzero(among)
    places = places[np.argsort(distance[places], kind="stable")[:NUM_NEAREST]]
    words = measured.words
    new = [
        Near(
            float(distance[at]),
            words["image_name"][at],
            words["source"][at],
            float(values[at]),
            words["image_path"][at],
        )
        for at in places
    ]
    return sorted([*found, *new])[:NUM_NEAREST]


@dataclass
class Trial:
    """What other limits would change. Counts are by (source, kind of reason)."""

    num_judged: int = 0
    num_kept: int = 0
    """Under the limits of now, probe and pixels only."""
    would_go: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Pictures that stay now, by the reason they would go for."""
    would_return: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Pictures dropped now, by the reason they were; those never measured are in `unknown`."""
    unknown: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Pictures that would pass the probe again and whose pixels nobody has measured, by the reason of now."""

    def add(self, measured: Measured, now: LimitTable, then: LimitTable) -> None:
        """Judge some more pictures by both."""
        for source, old, new in zip(
            measured.words["source"], _final(measured, now), _final(measured, then), strict=True
        ):
            self.num_judged += 1
            self.num_kept += old == ""
            if old == "" and new:
                self.would_go[source, new.partition(":")[0]] += 1
            elif old and new == "":
                self.would_return[source, old.partition(":")[0]] += 1
            elif old and new is None:
                self.unknown[source, old.partition(":")[0]] += 1


def _final(measured: Measured, table: LimitTable) -> list[str | None]:
    """The verdict of probe and pixels together."""
    return [probe if probe != "" else pixels for probe, pixels in zip(*judge_all(measured, table), strict=True)]


def filter_costs(pictures: Iterable[Measured], table: LimitTable, now: LimitTable) -> tuple[list[FilterCost], Trial]:
    """The cost of every filter under the limits of `table`, and what they would change of `now`, in one pass.

    `pictures` must carry the column `image_path`. All values are held in memory, about 70 bytes a picture.
    """
    costs, trial = [FilterCost(one) for one in FILTERS], Trial()
    for measured in pictures:
        limits = limits_of_each(measured, table)
        for cost in costs:
            cost.add(measured, limits[cost.filter.limit], table.resolution)
        trial.add(measured, now, table)
    return costs, trial


def has_measures(images: Table) -> bool:
    """Whether any picture was measured."""
    return images.count("probe_drop IS NOT NULL") > 0
