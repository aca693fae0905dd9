"""Verdicts made again from columns: under changed limits, for real or on trial, without a look at any picture.

columns of `images`  --read_measures-->  arrays  --judge_all-->  verdicts  --judge_again-->  rows whose verdict changed
                                                                 `-------- on_trial -------> who would come and go
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pleinair.config.overrides import from_document, to_document
from pleinair.curation.filters import FILTERS, PIXEL_FILTERS, PROBE_FILTERS, Filter, first_failing, with_sizes
from pleinair.curation.limits import Limits, LimitTable
from pleinair.curation.probe import COLUMNS as PROBE_COLUMNS
from pleinair.curation.stages import MEASURES, verdicts_from
from pleinair.krablet import Database, Table

UNKNOWN = None
"""The verdict on a picture whose columns are not enough for one."""
Verdicts = list[str | None]

_NUMBERS = ("width", "height", "aspect", *MEASURES, "ocr_share")
_WORDS = ("image_name", "source", "style", "damage", "probe_drop", "hashes_drop", "pixels_drop")
_FILTERS = "filters"
_PROBED = "probe_drop IS NOT NULL"


@dataclass(frozen=True)
class Judged:
    """What a judging did: pictures judged, verdicts changed, pictures that must be looked at again."""

    num_judged: int
    num_changed: int
    num_unknown: int


@dataclass(frozen=True)
class Measured:
    """Some pictures as columns: words as lists, measures as arrays of float64 with NaN for NULL."""

    words: Mapping[str, list[Any]]
    measures: Mapping[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.words["image_name"])


def read_measures(images: Table, where: str = _PROBED, *, more: Sequence[str] = ()) -> Iterator[Measured]:
    """The measured pictures of a warehouse, some thousands at a time; `more` are further columns, kept as words."""
    for batch in images.read(where=where, columns=[*_WORDS, *_NUMBERS, *more]):
        numbers = {name: batch.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False) for name in _NUMBERS}
        yield Measured(
            {name: batch.column(name).to_pylist() for name in (*_WORDS, *more)},
            with_sizes({name: values.astype(np.float64) for name, values in numbers.items()}),
        )


def judge_where_limits_changed(db: Database, images: Table, table: LimitTable) -> None:
    """Judge all that was measured by these limits, unless the last judging was by the same."""
    now = json.dumps({"limits": to_document(table), "measures": [*PROBE_COLUMNS, *MEASURES]}, sort_keys=True)
    # What captioning has read since the last curation changes verdicts too.
    if _last(db) == now and not table.uses_ocr():
        return
    # Stopped in between, no limits hold for all rows, and the next run judges once more whatever its limits are.
    _limits_table(db).upsert([{"stage": _FILTERS, "limits": None}])
    judge_again(images, table)
    _limits_table(db).upsert([{"stage": _FILTERS, "limits": now}])


def last_limits(db: Database) -> LimitTable | None:
    """The limits that the verdicts in the warehouse follow; None where none do."""
    last = _last(db)
    return from_document(LimitTable, json.loads(last)["limits"]) if last else None


def _limits_table(db: Database) -> Table:
    return db.table("curation_limits", key="stage", columns={"stage": "text", "limits": "text"})


def _last(db: Database) -> str | None:
    found = [
        row["limits"] for batch in _limits_table(db).read() for row in batch.to_pylist() if row["stage"] == _FILTERS
    ]
    return found[0] if found else None


def judge_again(images: Table, table: LimitTable) -> Judged:
    """Write the verdicts of probe and pixels anew where they change under these limits, and take back what followed."""
    total = Judged(0, 0, 0)
    for measured in read_measures(images):
        updates = list(changed_rows(measured, table))
        images.update(updates)
        unknown = sum(row.get("probe_drop", "") is None or row.get("pixels_drop", "") is None for row in updates)
        total = Judged(total.num_judged + len(measured), total.num_changed + len(updates), total.num_unknown + unknown)
    return total


def changed_rows(measured: Measured, table: LimitTable) -> Iterator[dict[str, Any]]:
    """Updates for the rows whose verdict is another now."""
    probes, pixels = judge_all(measured, table)
    for place, name in enumerate(measured.words["image_name"]):
        changed = _changed("probe", "hashes", measured.words["probe_drop"][place], probes[place])
        if not changed and probes[place] == "" and measured.words["pixels_drop"][place] is not None:
            changed = _changed("pixels", "captions", measured.words["pixels_drop"][place], pixels[place])
        if changed:
            yield {"image_name": name, **changed}


def _changed(stage: str, after: str, old: str | None, new: str | None) -> dict[str, Any]:
    """Columns to write for one verdict. Where a picture stays dropped, for whatever reason, nothing after it changes."""
    if old == new:
        return {}
    follows = {} if old and new else verdicts_from(after)
    return {**follows, f"{stage}_drop": new}


def judge_all(measured: Measured, table: LimitTable) -> tuple[Verdicts, Verdicts]:
    """Verdicts of probe and pixels; `UNKNOWN` where a picture was never measured so far."""
    limits = limits_of_each(measured, table)
    damage = measured.words["damage"]
    probes = _reasons(PROBE_FILTERS, measured, limits, table.resolution)
    # Without a width the header was broken; undecoded and no bomb any more is unknown.
    probes = [reason or harm for reason, harm in zip(probes, damage, strict=True)]
    pixels: Verdicts = list(_reasons(PIXEL_FILTERS, measured, limits, table.resolution))
    for at in np.flatnonzero(np.isnan(sum(measured.measures[name] for name in MEASURES))):
        pixels[at] = UNKNOWN
    return probes, pixels


def _reasons(
    filters: Sequence[Filter], measured: Measured, limits: Mapping[str, NDArray[np.float64]], resolution: int
) -> list[str | None]:
    """The reason of the first filter against each picture, empty where there is none."""
    places = first_failing(filters, measured.measures, limits, resolution)
    reasons: list[str | None] = [""] * len(measured)
    for at in np.flatnonzero(places >= 0):
        one = filters[places[at]]
        known = {name: float(measured.measures[name][at]) for name in ("width", "height")}
        value = float(measured.measures[one.column(resolution)][at])
        reasons[at] = one.reason(value, float(limits[one.limit][at]), known)
    return reasons


def limits_of_each(measured: Measured, table: LimitTable) -> dict[str, NDArray[np.float64]]:
    """By field of the limits, the limit of every picture."""
    kinds: dict[tuple[str | None, str | None], int] = {}
    pairs = zip(measured.words["source"], measured.words["style"], strict=True)
    which = np.array([kinds.setdefault(pair, len(kinds)) for pair in pairs], dtype=np.int64)
    of_kind = [table.of(*kind) for kind in kinds]
    return {
        one.limit: np.array([limit_of(one, limits) for limits in of_kind], dtype=np.float64)[which] for one in FILTERS
    }


def limit_of(one: Filter, limits: Limits) -> float:
    """The value of a filter's limit."""
    return float(getattr(limits.of(one.stage), one.limit))
