"""A queue stage: which rows are to be done, and the protocol by which workers do them.

                     claim                complete
    ready row  ------------------> leased ---------> done (the condition no longer holds)
       ^  ^                        |  |
       |  `--- not_before passes --+  | fail: error and a delay that doubles per attempt
       `------ lease runs out --------'       (2 s .. 1 h, +-20%)

The table is the queue: a row is ready while the stage's condition holds, and nothing else says so. The state of a claim
is six columns of the row, `<stage>_tried_at, _attempts, _error, _leased_until, _not_before, _token`; all times are
Postgres's. A token fences: results of a worker whose lease ran out and whose row was claimed again are not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from pleinair.krablet.connections import Connection, Session
from pleinair.krablet.queries import checked_name, comma_separated, condition, query
from pleinair.records.errors import QueueError

if TYPE_CHECKING:
    from pleinair.krablet.rows import Arrays
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

Outcome = Mapping[str, object] | Exception
"""What became of one row: the columns to write, or why it failed."""


@dataclass(frozen=True)
class Claim:
    """Rows leased to one worker under one token. `rows` are given to the worker, aligned with `keys` and `attempts`."""

    token: int
    keys: list[Any]
    rows: list[dict[str, Any]]
    attempts: list[int]

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, start: int, end: int) -> Claim:
        """The rows from `start` to `end`, under the same token."""
        return Claim(self.token, self.keys[start:end], self.rows[start:end], self.attempts[start:end])


@dataclass(frozen=True)
class Depth:
    """The rows a stage still has to do, each counted once."""

    claimable: int
    leased: int
    waiting: int
    stuck: int

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
class Settled:
    """What completing a claim did: rows written, rows failed, and rows whose lease had passed to another worker."""

    completed: int = 0
    failed: int = 0
    lost: int = 0

    def __add__(self, other: Settled) -> Settled:
        return Settled(self.completed + other.completed, self.failed + other.failed, self.lost + other.lost)


@dataclass(frozen=True)
class StageSpec:
    """A stage with the function that does it, for worker processes: importable as "module:function".

    The function is called as `function(batch, **arguments)`; `arguments` must survive JSON.
    """

    table: str
    stage: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    batch: int | None = None


class Stage:
    """A declared queue stage; made by `Table.stage`."""

    def __init__(
        self,
        session: Session,
        table: Table,
        name: str,
        *,
        ready: str,
        writes: Sequence[str],
        batch: int,
        lease_seconds: float,
        reads: Sequence[str] | None,
    ) -> None:
        self.session = session
        self.table = table
        self.name = name
        self.ready = ready
        self.writes = tuple(writes)
        self.reads = None if reads is None else tuple(reads)
        self.batch = batch
        self.lease_seconds = lease_seconds
        _check_stage(self)

    def __repr__(self) -> str:
        return f"Stage({self.label}, ready={self.ready!r}, writes={list(self.writes)})"

    @property
    def label(self) -> str:
        """The stage's name among all stages: "table.stage"."""
        return f"{self.table.name}.{self.name}"

    def spec(self, function: str, *, batch: int | None = None, **arguments: Any) -> StageSpec:
        """This stage done by `function` ("module:function"), called as `function(batch, **arguments)`."""
        return StageSpec(self.table.name, self.name, function, arguments, batch)

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
        }

    @property
    def given_columns(self) -> tuple[str, ...]:
        """The columns a worker is given, the key first."""
        wanted = self.table.columns if self.reads is None else self.reads
        return (self.table.key, *(name for name in wanted if name != self.table.key))

    def claim(self, n: int | None = None) -> Claim | None:
        """Lease up to `n` rows (default: the stage's batch), least recently tried first; None when none is claimable.

        A row whose worker died twice comes alone.
        """
        return exchange(self.session, None, self, n or self.batch)[1]

    def complete(self, claim: Claim, results: Sequence[Outcome]) -> Settled:
        """Write results, aligned with `claim.rows`; an Exception in place of a result fails its row."""
        return exchange(self.session, settlement(self, claim, results))[0]

    def fail(self, claim: Claim, errors: Exception | Sequence[Exception]) -> int:
        """Record why the rows failed; they wait, longer after every attempt. The number of rows recorded."""
        outcomes = [errors] * len(claim) if isinstance(errors, Exception) else list(errors)
        return self.complete(claim, outcomes).failed

    def release(self, claim: Claim) -> int:
        """Give rows back untried, at once; the number that were still ours."""
        return self.session.run(lambda connection: release_rows(connection, self, claim))

    def renew(self, claim: Claim) -> int:
        """Move the lease of a claim to now + `lease_seconds`; the number of rows still ours."""
        return self.session.run(lambda connection: renew_lease(connection, self, claim))

    def depth(self, *, give_up_after: int = STUCK_AFTER) -> Depth:
        """How many rows are still to do; costs a scan of just those."""
        return self.session.run(lambda connection: stage_depth(connection, self, give_up_after))

    def stuck(self, *, attempts: int = STUCK_AFTER, limit: int = 100) -> list[StuckRow]:
        """The rows that failed at least `attempts` times, worst first."""
        statement = query("claims", "stuck_rows").format(**self.identifiers, limit=sql.Literal(limit))
        found = self.session.run(lambda connection: connection.execute(statement, {"attempts": attempts}).fetchall())
        return [StuckRow(*row) for row in found]

    def retry(self) -> int:
        """Let every failed row be tried again at once, its attempts forgotten; the number of rows."""
        statement = query("claims", "retry_rows").format(**self.identifiers)
        return self.session.run(lambda connection: connection.execute(statement, {}).rowcount)

    def stats(self) -> StageStats:
        """Everything there is to know about the stage; reads the whole table."""
        statement = query("claims", "stage_stats").format(**self.identifiers)
        found = self.session.run(lambda connection: connection.execute(statement, {}).fetchone())
        assert found is not None
        return StageStats(*found)


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


def create_stage(connection: Connection, stage: Stage) -> None:
    """Create the state columns and the partial index, or change what differs; save the declaration."""
    try:
        with connection.transaction():
            connection.execute(query("catalog", "lock_schema"))
            _add_state_columns(connection, stage)
            _create_ready_index(connection, stage)
            connection.execute(query("catalog", "save_stage"), _declaration(stage))
    except (psycopg.ProgrammingError, psycopg.DataError, psycopg.NotSupportedError) as error:
        raise QueueError(
            f"stage {stage.label} cannot use ready = {stage.ready!r}: {str(error).splitlines()[0]}; "
            "write an immutable SQL condition over the columns of the table"
        ) from error


def _declaration(stage: Stage) -> dict[str, object]:
    return {
        "table": stage.table.name,
        "name": stage.name,
        "ready": stage.ready,
        "writes": list(stage.writes),
        "reads": None if stage.reads is None else list(stage.reads),
        "batch": stage.batch,
        "lease_seconds": stage.lease_seconds,
    }


def _add_state_columns(connection: Connection, stage: Stage) -> None:
    existing: dict[str, str] = dict(
        connection.execute(query("catalog", "column_types"), {"table": stage.table.name}).fetchall()
    )
    for state, sql_type in STATE_COLUMNS.items():
        if f"{stage.name}_{state}" not in existing:
            statement = query("catalog", "add_column").format(
                table=stage.identifiers["table"], column=stage.identifiers[state], type=sql.SQL(sql_type)
            )
            connection.execute(statement)


def _create_ready_index(connection: Connection, stage: Stage) -> None:
    index = f"{stage.table.name}_{stage.name}_ready"
    saved = connection.execute(
        query("catalog", "load_stage"), {"table": stage.table.name, "name": stage.name}
    ).fetchone()
    exists = connection.execute(query("catalog", "index_exists"), {"index": index}).fetchone()
    if saved is not None and saved[0] == stage.ready and exists == (True,):
        return
    named = {"index": sql.Identifier(index), "table": stage.identifiers["table"]}
    connection.execute(query("catalog", "drop_ready_index").format(**named))
    # Without parameters the text goes as it is, so the condition is not to have its % doubled.
    statement = query("catalog", "create_ready_index").format(
        **named, tried_at=stage.identifiers["tried_at"], ready=sql.SQL(stage.ready)
    )
    connection.execute(statement)


@dataclass(frozen=True)
class Settlement:
    """How a claim ends: what each of its rows became, and the results already encoded."""

    stage: Stage
    claim: Claim
    outcomes: list[Outcome]
    arrays: Arrays | None

    def part(self, start: int, end: int) -> Settlement:
        return settlement(self.stage, self.claim.part(start, end), self.outcomes[start:end])


def settlement(stage: Stage, claim: Claim, results: Sequence[Outcome]) -> Settlement:
    """Results as they will be written; one that cannot be written becomes the exception that says why."""
    if len(results) != len(claim):
        raise QueueError(
            f"stage {stage.label} got {len(results)} results for {len(claim)} rows: "
            "return one dict (or exception) per row, in order"
        )
    outcomes = [_complete_result(stage, key, result) for key, result in zip(claim.keys, results, strict=True)]
    try:
        return Settlement(stage, claim, outcomes, _encoded(stage, claim, outcomes))
    except QueueError as error:
        if len(claim) == 1:
            return Settlement(stage, claim, [error], None)
        alone = [settlement(stage, claim.part(i, i + 1), outcomes[i : i + 1]).outcomes[0] for i in range(len(claim))]
        return Settlement(stage, claim, alone, _encoded(stage, claim, alone))


def _complete_result(stage: Stage, key: object, result: Outcome) -> Outcome:
    if isinstance(result, Exception) or (isinstance(result, Mapping) and result.keys() == set(stage.writes)):
        return result
    got = sorted(result) if isinstance(result, Mapping) else type(result).__name__
    return QueueError(f"the result for {key!r:.60} is {got}: return a dict with exactly {sorted(stage.writes)}")


def _encoded(stage: Stage, claim: Claim, outcomes: Sequence[Outcome]) -> Arrays | None:
    results = [(key, row) for key, row in zip(claim.keys, outcomes, strict=True) if isinstance(row, Mapping)]
    rows = [{**row, stage.table.key: key} for key, row in results]
    return stage.table.arrays(stage.writes, rows) if rows else None


def exchange(
    session: Session, settling: Settlement | None, stage: Stage | None = None, n: int = 0
) -> tuple[Settled, Claim | None]:
    """Settle one claim and take the next. A result the database refuses fails its row alone."""
    try:
        return session.run(lambda connection: settle_and_claim(connection, settling, stage, n))
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        if settling is None:
            raise
        settled = _settle_by_halves(session, settling, error)
        return settled, session.run(lambda connection: settle_and_claim(connection, None, stage, n))[1]


def _settle_by_halves(session: Session, settling: Settlement, error: Exception) -> Settled:
    size = len(settling.claim)
    if size == 1:
        refused = Settlement(settling.stage, settling.claim, [error], None)
        return session.run(lambda connection: settle_and_claim(connection, refused))[0]
    return _settle_part(session, settling.part(0, size // 2)) + _settle_part(session, settling.part(size // 2, size))


def _settle_part(session: Session, part: Settlement) -> Settled:
    try:
        return session.run(lambda connection: settle_and_claim(connection, part))[0]
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        return _settle_by_halves(session, part, error)


def settle_and_claim(
    connection: Connection, settling: Settlement | None, stage: Stage | None = None, n: int = 0
) -> tuple[Settled, Claim | None]:
    """Settle one claim and take the next in one round trip and one commit. The two may be of different stages."""
    with connection.pipeline():
        settled = None if settling is None else _send_settlement(connection, settling)
        claimed = None if stage is None else claim_rows(connection, stage, n)
    outcome = Settled() if settled is None or settling is None else _read_settlement(*settled, held=len(settling.claim))
    return outcome, None if claimed is None or stage is None else _read_claim(stage, claimed.fetchall())


def _send_settlement(
    connection: Connection, settling: Settlement
) -> tuple[psycopg.Cursor[Any] | None, psycopg.Cursor[Any] | None]:
    stage, token, arrays = settling.stage, settling.claim.token, settling.arrays
    if len(settling.claim) > 1:
        hold_rows(connection, stage, settling.claim)
    pairs = zip(settling.claim.keys, settling.outcomes, strict=True)
    failures = [(key, describe_error(outcome)) for key, outcome in pairs if isinstance(outcome, Exception)]
    return (
        complete_rows(connection, stage, token, arrays) if arrays else None,
        fail_rows(connection, stage, token, failures) if failures else None,
    )


def _read_settlement(completion: psycopg.Cursor[Any] | None, failure: psycopg.Cursor[Any] | None, held: int) -> Settled:
    written = [] if completion is None else [ended for (ended,) in completion.fetchall()]
    completed, still_ready = written.count(True), written.count(False)
    failed = still_ready + (0 if failure is None else failure.rowcount)
    return Settled(completed, failed, held - completed - failed)


def claim_rows(connection: Connection, stage: Stage, n: int) -> psycopg.Cursor[Any]:
    columns = comma_separated([sql.Identifier(name) for name in stage.given_columns])
    statement = query("claims", "claim_rows").format(**stage.identifiers, batch=sql.Literal(n), columns=columns)
    return connection.cursor(binary=True).execute(statement, {"lease_seconds": stage.lease_seconds})


def _read_claim(stage: Stage, found: list[tuple[Any, ...]]) -> Claim | None:
    if not found:
        return None
    columns = stage.given_columns
    return Claim(
        token=found[0][0],
        keys=[row[2] for row in found],
        rows=[dict(zip(columns, row[2:], strict=True)) for row in found],
        attempts=[row[1] for row in found],
    )


def hold_rows(connection: Connection, stage: Stage, claim: Claim) -> None:
    statement = query("claims", "hold_rows").format(**stage.identifiers)
    connection.execute(statement, {"keys": claim.keys, "token": claim.token})


def complete_rows(connection: Connection, stage: Stage, token: int, arrays: Arrays) -> psycopg.Cursor[Any]:
    statement = query("claims", "complete_rows").format(
        **stage.identifiers,
        results=comma_separated([sql.SQL("{} = result.{}").format(*pair) for pair in arrays.written()]),
        written=comma_separated([sql.SQL("result.{1} AS {0}").format(*pair) for pair in arrays.written()]),
        values=arrays.casts,
        arrays=arrays.arrays,
        names=arrays.names,
    )
    return connection.cursor().execute(statement, {**arrays.parameters, "token": token})


def fail_rows(
    connection: Connection, stage: Stage, token: int, failures: Sequence[tuple[Any, str]]
) -> psycopg.Cursor[Any]:
    statement = query("claims", "fail_rows").format(**stage.identifiers)
    keys, errors = zip(*failures, strict=True)
    return connection.cursor().execute(statement, {"keys": list(keys), "errors": list(errors), "token": token})


def describe_error(error: Exception) -> str:
    """An exception as one bounded line that any text column can hold."""
    text = f"{type(error).__name__}: {error}".replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    return " ".join(text.split())[:2000]


def renew_lease(connection: Connection, stage: Stage, claim: Claim) -> int:
    statement = query("claims", "renew_lease").format(**stage.identifiers)
    parameters = {"keys": claim.keys, "token": claim.token, "lease_seconds": stage.lease_seconds}
    return connection.execute(statement, parameters).rowcount


def release_rows(connection: Connection, stage: Stage, claim: Claim) -> int:
    statement = query("claims", "release_rows").format(**stage.identifiers)
    return connection.execute(statement, {"keys": claim.keys, "token": claim.token}).rowcount


def stage_depth(connection: Connection, stage: Stage, give_up_after: int) -> Depth:
    statement = query("claims", "stage_depth").format(**stage.identifiers)
    found = connection.execute(statement, {"give_up_after": give_up_after}).fetchone()
    assert found is not None
    return Depth(*found)
