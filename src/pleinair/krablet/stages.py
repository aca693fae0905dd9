"""A queue stage: which rows are to be done, and what may be asked of it.

                     claim                complete
    ready row  ------------------> leased ---------> done (the condition no longer holds)
       ^  ^                        |  |
       |  `--- not_before passes --+  | fail: error and a delay that doubles per attempt
       `------ lease runs out --------'       (2 s .. 1 h, +-20%)

The table is the queue: a row is ready while the stage's condition holds, and nothing else says so. The state of a claim
is six columns of the row, `<stage>_tried_at, _attempts, _error, _leased_until, _not_before, _token`; all times are
Postgres's. Two partial indexes are the queue: `<table>_<stage>_ready`, rows that never failed in the order they are
taken, and `<table>_<stage>_again`, rows that failed by the time of their next try. Neither holds a column that a claim
writes: an index on tried_at, as the report prints it, costs an entry per claim in every index and, under a snapshot
held by somebody, a walk over all dead ones (docs/krablet.md has the numbers, and those of a narrow table beside it).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from pleinair.krablet.claims import (
    Claim,
    Outcome,
    Settled,
    Sweep,
    allowed_rows,
    exchange,
    on_holders,
    release_rows,
    renew_lease,
    settle,
    settlement,
)
from pleinair.krablet.connections import Connection
from pleinair.krablet.queries import checked_name, condition, query
from pleinair.krablet.shards import NUM_SLOTS
from pleinair.records.errors import QueueError

if TYPE_CHECKING:
    from pleinair.krablet.shards import Shards
    from pleinair.krablet.tables import Table

STATE_COLUMNS: Mapping[str, str] = {
    "tried_at": "timestamp with time zone",
    "attempts": "integer NOT NULL DEFAULT 0",
    "error": "text",
    "leased_until": "timestamp with time zone",
    "not_before": "timestamp with time zone",
    "token": "bigint",
}
STUCK_AFTER = 4
"""Attempts after which a row counts as stuck: by then it has waited about 2 + 4 + 8 seconds."""


@dataclass(frozen=True)
class Depth:
    """The rows a stage still has to do, each counted once."""

    claimable: int = 0
    leased: int = 0
    waiting: int = 0
    stuck: int = 0

    def __add__(self, other: Depth) -> Depth:
        return Depth(
            self.claimable + other.claimable,
            self.leased + other.leased,
            self.waiting + other.waiting,
            self.stuck + other.stuck,
        )

    @property
    def ready(self) -> int:
        """Rows whose condition holds and that nobody holds: claimable, waiting for a retry, or stuck."""
        return self.claimable + self.waiting + self.stuck

    @property
    def pending(self) -> int:
        """Rows that a run still waits for: all but the stuck."""
        return self.claimable + self.leased + self.waiting


@dataclass(frozen=True)
class StuckRow:
    """A row that keeps failing, and why."""

    key: str
    attempts: int
    error: str | None
    tried_at: datetime | None
    not_before: datetime | None


@dataclass(frozen=True)
class ErrorGroup:
    """Rows of a stage that fail with the same exception."""

    kind: str
    rows: int
    fewest_attempts: int
    most_attempts: int
    sample_key: str
    sample_error: str

    def __add__(self, other: ErrorGroup) -> ErrorGroup:
        worse = self if self.most_attempts >= other.most_attempts else other
        fewest = min(self.fewest_attempts, other.fewest_attempts)
        return ErrorGroup(
            self.kind, self.rows + other.rows, fewest, worse.most_attempts, worse.sample_key, worse.sample_error
        )


@dataclass(frozen=True)
class StageControl:
    """What a person set on a running stage."""

    paused: bool
    rows_per_second: float | None


@dataclass(frozen=True)
class StageStats:
    """The state of a stage: counts of rows, and the rate of the last five minutes."""

    ready: int
    leased: int
    done: int
    failed: int
    most_attempts: int
    rows_per_second: float
    oldest_seconds: float | None
    """Age of the oldest attempt among the rows still to do; None when none of them was tried."""


@dataclass(frozen=True)
class StageSpec:
    """A stage with what does it, for worker processes: importable as "module:function" or "module:Class".

    A function, which may be async, is called as `function(batch, **arguments)`; a class is built once in each process as
    `Class(**arguments)` and its instance called with batches. `arguments` must survive JSON.
    """

    table: str
    stage: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None
    slots: int | None = None
    """Batches of this stage in work at once in each process; None: it shares the slots of the run."""


class Stage:
    """A declared queue stage; made by `Table.stage`."""

    def __init__(
        self,
        table: Table,
        name: str,
        *,
        ready: str,
        writes: Sequence[str],
        batch: int,
        lease_seconds: float,
        reads: Sequence[str] | None,
        order: str | None = None,
    ) -> None:
        self.table = table
        self.name = name
        self.ready = ready
        self.writes = tuple(writes)
        self.reads = None if reads is None else tuple(reads)
        self.batch = batch
        self.lease_seconds = lease_seconds
        self.order = order
        self.limited = False
        """Whether a limit on rows per second was set, as far as this process knows; `control` asks again."""
        self.written = frozenset(writes)
        self._statements: dict[Hashable, str] = {}
        self._sweeps: dict[int, Sweep] = {}
        _check_stage(self)

    def __repr__(self) -> str:
        return f"Stage({self.label}, ready={self.ready!r}, writes={list(self.writes)})"

    @property
    def shards(self) -> Shards:
        """Where its rows are."""
        return self.table.shards

    @property
    def label(self) -> str:
        """The stage's name among all stages: "table.stage"."""
        return f"{self.table.name}.{self.name}"

    def spec(self, function: str, *, batch: int | None = None, slots: int | None = None, **arguments: Any) -> StageSpec:
        """This stage done by "module:function", called as `function(batch, **arguments)`, or by "module:Class"."""
        return StageSpec(self.table.name, self.name, function, arguments, batch, slots)

    @cached_property
    def identifiers(self) -> dict[str, sql.Composable]:
        """What a query of this stage may name: the table, its key, the six state columns."""
        state = {column: sql.Identifier(f"{self.name}_{column}") for column in STATE_COLUMNS}
        return {
            **state,
            "table": sql.Identifier(self.table.name),
            "key": sql.Identifier(self.table.key),
            "key_type": sql.SQL(self.table.column_type(self.table.key).name),
            "ready": condition(self.ready),
            "table_name": sql.Literal(self.table.name),
            "stage_name": sql.Literal(self.name),
        }

    def statement(self, kind: Hashable, compose: Callable[[], sql.Composed]) -> str:
        """The text of a statement that is sent again and again, composed once: composing costs as much as sending."""
        if kind not in self._statements:
            self._statements[kind] = compose().as_string()
        return self._statements[kind]

    @cached_property
    def ordering(self) -> sql.Composable:
        """What fresh rows are sorted by: the order given, then the key."""
        key = sql.Identifier(self.table.key)
        return key if self.order is None else sql.SQL("({}), {}").format(condition(self.order), key)

    @property
    def given_columns(self) -> tuple[str, ...]:
        """The columns a worker is given, the key first."""
        wanted = self.table.columns if self.reads is None else self.reads
        return (self.table.key, *(name for name in wanted if name != self.table.key))

    def claim(self, n: int | None = None) -> Claim | None:
        """Lease up to `n` rows of one shard (default: the stage's batch); None when none is claimable anywhere.

        Fresh rows in the stage's order, going on where the last claim of this object ended; when none is left, those
        that failed and have waited. A row whose worker died twice comes alone. None also while the stage is paused or
        its limit is spent.
        """
        for shard in self.shards.all:
            sweep = self._sweeps.setdefault(shard.number, Sweep(ordered=self.order is not None))
            more = True
            while more:
                ask, allowed = sweep.ask(), allowed_rows(shard, self, n or self.batch)
                if allowed == 0:
                    break
                claim = exchange(shard, None, self, allowed, ask)[1]
                if claim is not None:
                    sweep.took(ask, claim)
                    return claim
                more = sweep.took(ask, claim)
        return None

    def complete(self, claim: Claim, results: Sequence[Outcome]) -> Settled:
        """Write results, aligned with `claim.rows`; an Exception in place of a result fails its row."""
        return settle(self.shards, settlement(self, claim, results))

    def fail(self, claim: Claim, errors: Exception | Sequence[Exception]) -> int:
        """Record why the rows failed; they wait, longer after every attempt. The number of rows recorded."""
        outcomes = [errors] * len(claim) if isinstance(errors, Exception) else list(errors)
        return self.complete(claim, outcomes).failed

    def release(self, claim: Claim) -> int:
        """Give rows back untried, at once; the number that were still ours."""
        return on_holders(self.shards, self, claim, release_rows)

    def renew(self, claim: Claim) -> int:
        """Move the lease of a claim to now + `lease_seconds`; the number of rows still ours."""
        return on_holders(self.shards, self, claim, renew_lease)

    def depth(self, *, give_up_after: int = STUCK_AFTER) -> Depth:
        """How many rows are still to do; costs a scan of just those."""
        return sum(self.shards.each(lambda connection: stage_depth(connection, self, give_up_after)), Depth())

    def stuck(self, *, attempts: int = STUCK_AFTER, limit: int = 100) -> list[StuckRow]:
        """The rows that failed at least `attempts` times, worst first."""
        statement = query("claims", "stuck_rows").format(**self.identifiers, limit=sql.Literal(limit))
        found = self.shards.each(lambda connection: connection.execute(statement, {"attempts": attempts}).fetchall())
        rows = [StuckRow(*row) for of_shard in found for row in of_shard]
        return sorted(rows, key=lambda row: -row.attempts)[:limit]

    def errors(self) -> list[ErrorGroup]:
        """Why rows fail, grouped by exception, the most frequent first, each with a sample row."""
        statement = query("claims", "stage_errors").format(**self.identifiers)
        found = self.shards.each(lambda connection: connection.execute(statement, {}).fetchall())
        groups: dict[str, ErrorGroup] = {}
        for group in [ErrorGroup(*row) for of_shard in found for row in of_shard]:
            groups[group.kind] = groups[group.kind] + group if group.kind in groups else group
        return sorted(groups.values(), key=lambda group: (-group.rows, group.kind))

    def pause(self) -> None:
        """Let no worker claim rows until `resume`; rows in work are finished."""
        self._set("pause_stage", paused=True)

    def resume(self) -> None:
        """Undo `pause`."""
        self._set("pause_stage", paused=False)

    def limit(self, rows_per_second: float | None) -> None:
        """Let workers claim at most so many rows a second in all, each shard its share; None takes the limit off."""
        if rows_per_second is not None and rows_per_second <= 0:
            raise QueueError(f"rows_per_second is {rows_per_second}: give a positive number, None, or pause the stage")
        for shard in self.shards:
            share = len(self.shards.slots(shard.number)) / NUM_SLOTS
            limit = None if rows_per_second is None else rows_per_second * share
            shard.session.run(lambda c, limit=limit: self._send(c, "limit_stage", rows_per_second=limit))  # type: ignore[misc]
        self.limited = rows_per_second is not None

    def control(self) -> StageControl:
        """What a person has set on this stage."""
        found = self.shards.each(lambda connection: self._send(connection, "stage_control").fetchall())
        paused, limits = zip(*[row for [row] in found], strict=True)
        self.limited = None not in limits
        return StageControl(any(paused), sum(limits) if self.limited else None)

    def _set(self, name: str, **values: object) -> None:
        self.shards.each(lambda connection: self._send(connection, name, **values))

    def _send(self, connection: Connection, name: str, **values: object) -> psycopg.Cursor[Any]:
        return connection.execute(query("watching", name), {"table": self.table.name, "stage": self.name, **values})

    def retry(self) -> int:
        """Let every failed row be tried again at once, its attempts forgotten; the number of rows."""
        statement = query("claims", "retry_rows").format(**self.identifiers)
        return sum(self.shards.each(lambda connection: connection.execute(statement, {}).rowcount))

    def stats(self) -> StageStats:
        """Everything there is to know about the stage; reads the whole table."""
        statement = query("claims", "stage_stats").format(**self.identifiers)
        found = self.shards.each(lambda connection: connection.execute(statement, {}).fetchall())
        ready, leased, done, failed, attempts, rates, oldest = zip(*[row for [row] in found], strict=True)
        ages = [seconds for seconds in oldest if seconds is not None]
        return StageStats(
            sum(ready), sum(leased), sum(done), sum(failed), max(attempts), sum(rate or 0.0 for rate in rates),
            max(ages, default=None),
        )  # fmt: skip


def _check_stage(stage: Stage) -> None:
    checked_name("stage", stage.name, 28)
    where = f"stage {stage.label}"
    if not stage.writes:
        raise QueueError(f"{where} writes no column: name in `writes` the columns its worker returns")
    for column in (*stage.writes, *(stage.reads or ())):
        if column not in stage.table.columns:
            raise QueueError(f"{where} names the column {column!r}, which table {stage.table.name} does not have")
    if stage.table.key in stage.writes:
        raise QueueError(f"{where} writes the key {stage.table.key!r}: a key never changes; leave it out of `writes`")
    for state in STATE_COLUMNS:
        if f"{stage.name}_{state}" in stage.table.columns:
            raise QueueError(f"{where} keeps its state in {stage.name}_{state}: rename that column of the table")
    if stage.batch < 1:
        raise QueueError(f"{where} has batch {stage.batch}: give 1 or more rows")
    if stage.lease_seconds <= 0:
        raise QueueError(f"{where} has lease_seconds {stage.lease_seconds}: give a positive number of seconds")


def stage_depth(connection: Connection, stage: Stage, give_up_after: int) -> Depth:
    statement = query("claims", "stage_depth").format(**stage.identifiers)
    found = connection.execute(statement, {"give_up_after": give_up_after}).fetchone()
    assert found is not None
    return Depth(*found)
