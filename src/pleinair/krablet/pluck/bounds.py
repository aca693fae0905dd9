"""Splits a table's keys into ranges of about the same number of matching rows, by looking at a sample of its pages.

    TABLESAMPLE SYSTEM (p) --> every n-th matching key --> (-inf, a], (a, b], ..., (z, +inf)

Small tables, and tables whose sample comes back empty, are read whole. Ranges cover every key there is or will be, so
a row inserted later belongs to exactly one of them. Quantiles of sampled keys do not care how keys are distributed; a
range that holds more than twice its target all the same is cut when it is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from psycopg import sql

from pleinair.krablet.connections import Connection
from pleinair.krablet.pluck.source import Source, reading, select
from pleinair.krablet.queries import query

CALLS_PER_RANGE = 16
"""A range is worth at most this many calls of the function, ..."""
LEAST_RANGES = 64
"""... and fewer when there would be fewer ranges than this for workers to share."""
SCAN_FACTOR = 64
"""A range holds at most this many times its target in rows that do not match."""
SMALLEST_SAMPLE_PAGES, LARGEST_SAMPLE_PAGES = 2048, 32768
PAGES_PER_RANGE = 4
"""Rows of a page often have neighbouring keys, so a page counts as one observation: this many make a bound."""
_ROWS_PER_PAGE = 50.0  # of a table that was never analysed


@dataclass(frozen=True)
class Range:
    """The keys in (after, up_to], None being no bound, and how many matching rows are expected there."""

    after: str | None
    up_to: str | None
    expected: int


@dataclass(frozen=True)
class Sample:
    """The part of a table that is looked at: `percent` of its pages, with `rows` rows of which `matching` match."""

    percent: float
    rows: int
    matching: int

    @property
    def estimate(self) -> int:
        """Matching rows in the whole table."""
        return round(self.matching * 100 / self.percent)

    @property
    def whole(self) -> bool:
        return self.percent == 100


def take_sample(connection: Connection, source: Source, *, pages: int | None = None) -> Sample:
    """Count in a sample of at least `pages` pages (default: by the size of the table); all of a small table."""
    size, rows_per_page = _pages(connection, source)
    wanted = pages or _sample_pages(size, rows_per_page)
    percent = 100.0 if size <= wanted else 100.0 * wanted / size
    sample = _count(connection, source, percent)
    return sample if sample.rows or sample.whole else _count(connection, source, 100.0)


def _pages(connection: Connection, source: Source) -> tuple[int, float]:
    """The table's size in pages, and the rows on one of them."""
    found = connection.execute(query("pluck", "table_pages"), {"table": source.table}).fetchone()
    assert found is not None
    return int(found[0]), float(found[1] or _ROWS_PER_PAGE)


def _sample_pages(size: int, rows_per_page: float) -> int:
    rows_in_range = CALLS_PER_RANGE * 64
    wanted = int(PAGES_PER_RANGE * size * rows_per_page / rows_in_range)
    return min(max(wanted, SMALLEST_SAMPLE_PAGES), LARGEST_SAMPLE_PAGES)


def _count(connection: Connection, source: Source, percent: float) -> Sample:
    statement = query("pluck", "count_sample").format(**source.identifiers, percent=sql.Literal(percent))
    with reading(connection, source):
        [(rows, matching)] = select(connection, statement)
    return Sample(percent, rows, matching)


def choose_target(estimate: int, batch: int) -> int:
    """How many rows a range should hold, for a function that takes `batch` rows and a table with `estimate` to do."""
    return max(batch, min(CALLS_PER_RANGE * batch, -(-estimate // LEAST_RANGES)))


def plan_ranges(connection: Connection, source: Source, sample: Sample, target: int) -> list[Range]:
    """Ranges that cover all keys, each of about `target` matching rows by the sample."""
    if sample.rows == 0:
        return [Range(None, None, 0)]
    stride = max(round(target * sample.percent / 100), _least_stride(connection, source, sample))
    statement = query("pluck", "sample_bounds").format(
        **source.identifiers,
        percent=sql.Literal(sample.percent),
        stride=sql.Literal(stride),
        scan=sql.Literal(stride * SCAN_FACTOR),
    )
    with reading(connection, source):
        found = select(connection, statement)
    bounds = [(None, 0), *found[:-1], (None, found[-1][1] if found else 0)]
    weight = 100 / sample.percent
    return [
        Range(after, up_to, round((matching - before) * weight))
        for (after, before), (up_to, matching) in pairwise(bounds)
    ]


def _least_stride(connection: Connection, source: Source, sample: Sample) -> int:
    """Matching rows in a few sampled pages; one row when nothing is left to chance."""
    if sample.whole:
        return 1
    pages = max(1.0, _pages(connection, source)[0] * sample.percent / 100)
    return max(1, round(PAGES_PER_RANGE * sample.matching / pages))
