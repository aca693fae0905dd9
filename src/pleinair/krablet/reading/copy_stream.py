"""One SELECT on one shard as a stream of Arrow batches, through binary COPY.

    BEGIN READ ONLY -> prepare (one statement, its columns) -> COPY (statement) TO STDOUT -> COMMIT

Text that people wrote is only ever sent in the extended protocol, which refuses a second statement, and first alone,
so that it cannot close the parenthesis around it. Rows are asked for while the last batch is being used; when nobody
takes them, Postgres waits in its send.
"""

from __future__ import annotations

import select
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg
import pyarrow as pa
from psycopg import errors
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from pleinair.krablet.connections import Connection, UnreachableError, describe
from pleinair.krablet.reading.copy_binary import Field, arrow_schema, decode_rows
from pleinair.krablet.reading.limits import Run
from pleinair.krablet.reading.pools import ShardPool
from pleinair.krablet.reading.requests import ReadError
from pleinair.records.errors import DatabaseError

BATCH_ROWS = 16_384
BATCH_BYTES = 2 * 2**20
_POLL_MILLISECONDS = 100  # how long a wait goes without looking whether the read is still wanted
_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_OUTAGES = (errors.AdminShutdown, errors.CrashShutdown, errors.CannotConnectNow)


@dataclass(frozen=True)
class ShardQuery:
    """A statement for one shard, its values already in it."""

    pool: ShardPool
    statement: bytes


class Wire:
    """A connection in a read-only transaction of one snapshot; no wait outlives the run."""

    def __init__(self, connection: Connection, run: Run) -> None:
        self.connection = connection
        self._pg: PGconn = connection.pgconn
        self._run = run
        self._poll = select.poll()
        self._poll.register(self._pg.socket, select.POLLIN)

    def begin(self) -> None:
        left = self._run.seconds_left
        milliseconds = 0 if left is None else max(1, int(left * 1000))
        self._pg.send_query(
            b"BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL statement_timeout = %d" % milliseconds
        )
        self._result()

    def commit(self) -> None:
        self._pg.send_query(b"COMMIT")
        self._result()

    def describe(self, statement: bytes) -> list[Field]:
        """The columns of one statement, which is parsed and not run; none if it gives no rows."""
        self._pg.send_prepare(b"", statement)
        self._result()
        self._pg.send_describe_prepared(b"")
        found = self._result()
        return [Field((found.fname(place) or b"").decode(), found.ftype(place)) for place in range(found.nfields)]

    def rows(self, statement: bytes) -> list[tuple[str | None, ...]]:
        """All rows of a small result, as text."""
        self._pg.send_query_params(statement, None)
        found = self._result()
        columns = range(found.nfields)
        cells = [[found.get_value(row, column) for column in columns] for row in range(found.ntuples)]
        return [tuple(None if cell is None else bytes(cell).decode() for cell in row) for row in cells]

    def copied(self, statement: bytes) -> Iterator[list[bytes]]:
        """The rows of a statement in COPY format, in lists of about BATCH_BYTES."""
        self._pg.send_query_params(b"COPY (" + statement + b"\n) TO STDOUT (FORMAT BINARY)", None)
        self._result(copying=True)
        rows: list[bytes] = []
        size, header = 0, True
        while (row := self._copy_message()) is not None:
            if header:
                row, header = _without_header(row), False
            if len(row) <= 2:  # an empty header message, or the trailer
                continue
            # Copied: a hundred thousand memoryviews alive cost the garbage collector five times the reading itself.
            rows.append(bytes(row))
            size += len(row)
            if size >= BATCH_BYTES or len(rows) >= BATCH_ROWS:
                yield rows
                rows, size = [], 0
        self._result()
        if rows:
            yield rows

    def _copy_message(self) -> memoryview | None:
        while True:
            length, message = self._pg.get_copy_data(1)
            if length > 0:
                return message
            if length < 0:
                return None
            self._wait()
            self._pg.consume_input()

    def _result(self, *, copying: bool = False) -> PGresult:
        """The last result of what was sent. Raises the server's error."""
        self._flush()
        last: PGresult | None = None
        while (result := self._next_result()) is not None:
            if result.status == ExecStatus.FATAL_ERROR:
                self._drain()
                raise errors.error_from_result(result, encoding="utf-8")
            last = result
            if copying and result.status == ExecStatus.COPY_OUT:
                break
        assert last is not None, "a command has a result"
        return last

    def _next_result(self) -> PGresult | None:
        while self._pg.is_busy():
            self._wait()
            self._pg.consume_input()
        return self._pg.get_result()

    def _drain(self) -> None:
        with suppress(psycopg.Error):
            while self._next_result() is not None:
                pass

    def _flush(self) -> None:
        while self._pg.flush():
            self._run.check()
            self._poll.modify(self._pg.socket, select.POLLIN | select.POLLOUT)
            self._poll.poll(_POLL_MILLISECONDS)
            self._poll.modify(self._pg.socket, select.POLLIN)
            self._pg.consume_input()

    def _wait(self) -> None:
        while True:
            self._run.check()
            if self._poll.poll(_POLL_MILLISECONDS):
                return


def _without_header(message: memoryview) -> memoryview:
    assert bytes(message[:11]) == _SIGNATURE, "COPY data begins with its signature"
    extension = int.from_bytes(message[15:19], "big")
    return message[19 + extension :]


@contextmanager
def reading(pool: ShardPool, run: Run) -> Iterator[Wire]:
    """A read-only transaction on a shard. Errors of Postgres come out as ours and name the shard."""
    try:
        connection, wire = _begun(pool, run)
        done = False
        try:
            yield wire
            wire.commit()
            done = True
        finally:
            (pool.give_back if done else pool.abandon)(connection)
    except psycopg.Error as error:
        raise _explained(error, pool, run) from error


def _begun(pool: ShardPool, run: Run) -> tuple[Connection, Wire]:
    """A connection may have died unseen since its last use; then all idle ones have, and one new one is tried."""
    connection, new = pool.take()
    while True:
        wire = Wire(connection, run)
        try:
            wire.begin()
            return connection, wire
        except BaseException as error:
            pool.abandon(connection)
            if new or not isinstance(error, psycopg.OperationalError):
                raise
        connection, new = pool.take(fresh=True)


def _explained(error: psycopg.Error, pool: ShardPool, run: Run) -> DatabaseError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    left = run.seconds_left
    if isinstance(error, errors.QueryCanceled) and left is not None and left < 1:
        return run.out_of_time()
    if isinstance(error, _OUTAGES) or (isinstance(error, psycopg.OperationalError) and error.sqlstate is None):
        where = describe(pool.dsn)
        return UnreachableError(f"shard {pool.name} went away ({where}): {reason}; see its log, then read again")
    return ReadError(f"shard {pool.name} refuses the query: {reason}")


def copy_batches(wire: Wire, query: ShardQuery, fields: Sequence[Field]) -> Generator[pa.RecordBatch, None, None]:
    """The batches of a statement whose columns are known. Raises ReadError when the shard has other columns."""
    schema = arrow_schema(fields)
    found = wire.describe(query.statement)
    if found != list(fields):
        raise ReadError(f"shard {query.pool.name} has other columns than the first: {_difference(found, fields)}")
    for rows in wire.copied(query.statement):
        yield decode_rows(rows, fields, schema)


def _difference(found: Sequence[Field], expected: Sequence[Field]) -> str:
    known = arrow_schema(expected)
    pairs = [(mine.name, mine, other) for mine, other in zip(found, expected, strict=False) if mine != other]
    if not pairs:
        return f"{len(found)} columns instead of {len(expected)}; declare the table alike on all shards"
    name, mine, other = pairs[0]
    return (
        f"column {name} has the type with object id {mine.oid}, not {other.oid} ({known.field(other.name).type}); "
        "declare the table alike on all shards"
    )
