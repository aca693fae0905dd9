"""What people and autoscalers watch: depth, rate, failures and workers of every stage, on every shard.

Counting what is pending costs a scan of it, so counts are kept and made anew only as often as counting takes a small
share of the time; a count that takes too long is cut off and the planner's estimate stands in, marked as such.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import sql

from pleinair.krablet.connections import Connection
from pleinair.krablet.database import Database
from pleinair.krablet.queries import query
from pleinair.krablet.shards import Shard
from pleinair.krablet.stages import STUCK_AFTER, Stage
from pleinair.records.errors import DatabaseError

COUNTING_SHARE = 0.02
"""Share of the time that is spent counting, at most."""
LONGEST_COUNT_SECONDS = 5.0
LIVE_SECONDS = 20.0


@dataclass(frozen=True)
class StageGauge:
    """One stage on one shard. Counts are exact unless `estimated`."""

    table: str
    stage: str
    shard: int
    claimable: int = 0
    leased: int = 0
    waiting: int = 0
    expired: int = 0
    """Leased rows whose worker died or hung, not yet claimed again."""
    stuck: int = 0
    most_attempts: int = 0
    oldest_seconds: float | None = None
    """Age of the oldest attempt among rows still to do."""
    estimated: bool = False

    @property
    def depth(self) -> int:
        """Rows still to do."""
        return self.claimable + self.leased + self.waiting + self.expired


@dataclass(frozen=True)
class StageWork:
    """What workers did on a stage: rates over five minutes, and sums over the log's week."""

    completed_per_second: float = 0.0
    failed_per_second: float = 0.0
    completed: int = 0
    failed: int = 0
    lost: int = 0


@dataclass(frozen=True)
class LiveWorker:
    """A worker seen in the last seconds."""

    worker: str
    host: str
    pid: int
    stages: tuple[str, ...]
    age_seconds: float
    seen_seconds: float


@dataclass(frozen=True)
class Watched:
    """Everything there is to see, at one moment."""

    gauges: tuple[StageGauge, ...] = ()
    work: Mapping[str, StageWork] = field(default_factory=dict)
    """By "table.stage"."""
    workers: tuple[LiveWorker, ...] = ()
    away: Mapping[int, str] = field(default_factory=dict)
    """Shards that do not answer, and why."""

    def depth(self, label: str) -> int:
        """Rows a stage has still to do on all shards that answer."""
        return sum(gauge.depth for gauge in self.gauges if f"{gauge.table}.{gauge.stage}" == label)

    def eta_seconds(self, label: str) -> float | None:
        """Seconds until a stage is done at the rate of the last five minutes; None while there is no rate."""
        rate = self.work.get(label, StageWork()).completed_per_second
        return self.depth(label) / rate if rate > 0 else None


class Watcher:
    """Looks at a warehouse again and again; `look` costs little however often it is called."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shards = database.shards.fresh(0.0)
        self._counted: dict[tuple[str, int], StageGauge] = {}
        self._due: dict[tuple[str, int], float] = {}

    def look(self) -> Watched:
        """What is known now, counted anew where that is due."""
        self._shards.reload()
        stages, away = self._database.declared_stages(), {}
        for shard in self._shards:
            try:
                for stage in stages:
                    self._count(shard, stage)
            except DatabaseError as gone:
                away[shard.number] = str(gone)
        present = {stage.label for stage in stages}
        gauges = [gauge for (label, number), gauge in self._counted.items() if label in present and number not in away]
        work = self._shards.catalog.run(_work)
        return Watched(tuple(gauges), work, tuple(self._shards.catalog.run(_workers)), away)

    def _count(self, shard: Shard, stage: Stage) -> None:
        name = (stage.label, shard.number)
        if time.monotonic() < self._due.get(name, 0.0):
            return
        began = time.monotonic()
        gauge = shard.session.run(lambda connection: stage_gauge(connection, stage))
        self._counted[name] = replace(gauge, shard=shard.number)
        self._due[name] = time.monotonic() + (time.monotonic() - began) / COUNTING_SHARE

    def close(self) -> None:
        """Close the watcher's connections."""
        self._shards.close()


def stage_gauge(connection: Connection, stage: Stage) -> StageGauge:
    """Counts of one stage on one server; estimated when counting takes longer than `LONGEST_COUNT_SECONDS`."""
    statement = query("watching", "stage_gauges").format(**stage.identifiers)
    timeout = sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(round(1000 * LONGEST_COUNT_SECONDS)))
    try:
        with connection.transaction():
            connection.execute(timeout)
            found = connection.execute(statement, {"stuck_after": STUCK_AFTER}).fetchone()
        assert found is not None
        return StageGauge(stage.table.name, stage.name, 0, *found)
    except psycopg.errors.QueryCanceled:
        indexes = {kind: f"{stage.table.name}_{stage.name}_{kind}" for kind in ("ready", "again")}
        found = connection.execute(query("watching", "estimated_depth"), indexes).fetchone()
        assert found is not None
        ready, again = (count or 0 for count in found)
        return StageGauge(stage.table.name, stage.name, 0, claimable=ready, waiting=again, estimated=True)


def _work(connection: Connection) -> dict[str, StageWork]:
    rows = connection.execute(query("watching", "recent_work"))
    return {f"{table}.{stage}": StageWork(*numbers) for table, stage, *numbers in rows}


def _workers(connection: Connection) -> Iterator[LiveWorker]:
    for worker, host, pid, stages, age, seen in connection.execute(
        query("watching", "live_workers"), {"seconds": LIVE_SECONDS}
    ).fetchall():
        yield LiveWorker(str(worker), host, pid, tuple(stages), age, seen)
