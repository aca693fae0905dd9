"""Two clocks around one piece of work: the wall's, and the processor time of the whole process with its threads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.krablet.rounds import Result


@dataclass(frozen=True, kw_only=True)
class Took:
    """Seconds."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Took:
    """What one call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)


def with_clocks(row: Result, ours: Sequence[Took], peer: Sequence[Took] = ()) -> Result:
    """The row with medians of both clocks, of ours and of what it is held against; seconds.

    Rows that were measured before have none: readers take them with `get`.
    """
    told = dict(row)
    for prefix, taken in (("", ours), ("peer_", peer)):
        if taken:
            told[f"{prefix}wall_seconds"] = round(statistics.median(one.wall for one in taken), 4)
            told[f"{prefix}cpu_seconds"] = round(statistics.median(one.cpu for one in taken), 4)
    return told


def clocks_of(row: Result) -> str:
    """Wall and processor time as a table's cell; empty for a row that has none."""
    wall, cpu = row.get("wall_seconds"), row.get("cpu_seconds")
    return "" if wall is None or cpu is None else f"{wall:.3g} / {cpu:.3g} s"
