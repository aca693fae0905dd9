"""Arrow data into a table, fast: COPY instead of statements.

    batches -> pieces of CHUNK_ROWS -> rows of each shard -> CSV, written by Arrow
            -> on_conflict "error":        COPY into the table
               on_conflict "update", "skip": COPY into a temporary table, then one INSERT .. ON CONFLICT

Text instead of COPY's binary format, because Arrow writes CSV in C++ and Postgres then checks every value.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import errors, sql
from pyarrow import csv

from pleinair.krablet.column_types import column_type, encode_column
from pleinair.krablet.connections import Connection, Session
from pleinair.krablet.queries import comma_separated, query
from pleinair.records.errors import QueueError

CHUNK_ROWS = 100_000
OnConflict = Literal["update", "skip", "error"]
Guard = Callable[[Connection, Sequence[Any]], object]
_PLACE = sql.Identifier("arriving place")  # no declared column can be called so


@dataclass(frozen=True)
class Target:
    """The table that is loaded, as the first shard has it."""

    name: str
    key: str
    types: dict[str, str]
    """Of the columns given, in the order given."""


@dataclass(frozen=True)
class Arriving:
    """Rows for one shard, ready to be written."""

    target: Target
    keys: list[Any]
    lines: bytes
    on_conflict: OnConflict


def load(
    shards: Sequence[Session],
    table: str,
    data: pa.Table | pa.RecordBatchReader | Iterable[pa.RecordBatch],
    *,
    on_conflict: OnConflict = "update",
    shard_of: Callable[[Any], int] | None = None,
    on_progress: Callable[[int], None] | None = None,
    guard: Guard = lambda connection, keys: None,
) -> int:
    """Write Arrow data whose columns are those of the table, or some with the key; the number of rows written.

    A row whose key exists sets the columns given ("update"), is left out ("skip"), or stops the load ("error", which
    is the fastest). Committed by CHUNK_ROWS and shard: after a failure part is written, and loading again is right
    with "update" and "skip". `shard_of` gives the place of a key's shard; `on_progress` is told the rows given so far;
    `guard(connection, keys)` is called first in every transaction and may refuse it by raising.
    Raises QueueError for a column, a type or a value that does not fit.
    """
    if len(shards) > 1 and shard_of is None:
        raise QueueError(f"{len(shards)} shards are given without shard_of: say which shard a key belongs to")
    written = given = 0
    target: Target | None = None
    for chunk in _chunks(data):
        if target is None:
            target = shards[0].run(partial(_target, table=table, names=chunk.column_names))
        for place, rows in _by_shard(chunk, target, shard_of):
            arriving = Arriving(target, rows[target.key].to_pylist(), _as_csv(rows, target), on_conflict)
            written += shards[place].run(partial(_write, arriving=arriving, guard=guard))
        given += chunk.num_rows
        if on_progress is not None:
            on_progress(given)
    return written


def _chunks(data: pa.Table | Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Tables of about CHUNK_ROWS rows, whatever the batches' sizes."""
    held: list[pa.RecordBatch] = []
    batches = data.to_batches(max_chunksize=CHUNK_ROWS) if isinstance(data, pa.Table) else data
    for batch in batches:
        for start in range(0, batch.num_rows, CHUNK_ROWS):
            held.append(batch.slice(start, CHUNK_ROWS))
            if sum(piece.num_rows for piece in held) >= CHUNK_ROWS:
                yield pa.Table.from_batches(held)
                held = []
    if held:
        yield pa.Table.from_batches(held)


def _target(connection: Connection, *, table: str, names: Sequence[str]) -> Target:
    types: dict[str, str] = dict(connection.execute(query("catalog", "column_types"), {"table": table}).fetchall())
    keys = [name for (name,) in connection.execute(query("catalog", "primary_key"), {"table": table})]
    if not types or len(keys) != 1:
        raise QueueError(f"there is no table {table!r} with a key of one column: declare it with db.table(...)")
    if unknown := [name for name in names if name not in types]:
        raise QueueError(f"table {table} has no column {unknown[0]!r}: declare it, or use one of {', '.join(types)}")
    if keys[0] not in names:
        raise QueueError(f"the data for table {table} has no key: give the column {keys[0]!r}")
    return Target(table, keys[0], {name: types[name] for name in names})


def _by_shard(chunk: pa.Table, target: Target, shard_of: Callable[[Any], int] | None) -> Iterator[tuple[int, pa.Table]]:
    if chunk[target.key].null_count:
        raise QueueError(f"a row for table {target.name} has no key: give {target.key!r} in every row")
    if shard_of is None:
        yield 0, chunk
        return
    places = np.fromiter(map(shard_of, chunk[target.key].to_pylist()), np.int64, chunk.num_rows)
    for place in np.unique(places).tolist():
        yield place, chunk.filter(pa.array(places == place))


def _as_csv(rows: pa.Table, target: Target) -> bytes:
    columns = [_writable(rows[name], f"{target.name}.{name}", type_) for name, type_ in target.types.items()]
    written = io.BytesIO()
    options = csv.WriteOptions(include_header=False, quoting_style="needed")
    try:
        csv.write_csv(pa.Table.from_arrays(columns, list(target.types)), written, options)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise QueueError(
            f"the data for table {target.name} cannot be written: {error}; cast it in Arrow first"
        ) from error
    return written.getvalue()


def _writable(column: pa.ChunkedArray, place: str, sql_type: str) -> pa.ChunkedArray | pa.Array:
    """The column as Arrow's CSV can carry it; text is quoted there, so that it is told from NULL."""
    type_ = column.type
    if pa.types.is_dictionary(type_):
        return _writable(column.cast(type_.value_type), place, sql_type)
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        return pa.array([None if value is None else f"\\x{value.hex()}" for value in column.to_pylist()], pa.string())
    if pa.types.is_timestamp(type_) and (type_.tz is None) == ("with time zone" in sql_type):
        raise QueueError(f"{place} is {sql_type} and cannot hold {type_}: give times with a time zone")
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        declared = column_type(sql_type)
        values = column.to_pylist()
        rows = [f"row {number}" for number in range(len(values))]
        return pa.array(encode_column(place, declared, rows, values), pa.string())
    if pa.types.is_null(type_):
        return column.cast(pa.string())
    if pa.types.is_timestamp(type_) and type_.unit == "ns":
        return pc.cast(column, pa.timestamp("us", type_.tz), safe=False)
    return column


def _write(connection: Connection, *, arriving: Arriving, guard: Guard) -> int:
    target, table = arriving.target, sql.Identifier(arriving.target.name)
    columns = comma_separated([sql.Identifier(name) for name in target.types])
    try:
        with connection.transaction():
            guard(connection, arriving.keys)
            if arriving.on_conflict == "error":
                return _copy(connection, table, columns, arriving.lines)
            connection.execute(query("bulk", "create_arriving").format(table=table, columns=columns))
            connection.execute(query("bulk", "number_arriving").format(place=_PLACE))
            _copy(connection, sql.Identifier("pg_temp", "arriving"), columns, arriving.lines)
            return connection.execute(_merge(target, table, columns, arriving.on_conflict)).rowcount
    except errors.UniqueViolation as error:
        raise QueueError(
            f"loading table {target.name}: {_detail(error)}; load with on_conflict='update' or 'skip'"
        ) from error
    except psycopg.DataError as error:
        raise QueueError(
            f"loading table {target.name}: {_detail(error)}; correct the value, nothing of this piece is in"
        ) from error


def _copy(connection: Connection, table: sql.Identifier, columns: sql.Composed, lines: bytes) -> int:
    with connection.cursor() as cursor:
        with cursor.copy(query("bulk", "copy_rows").format(table=table, columns=columns)) as copy:
            copy.write(lines)
        return cursor.rowcount


def _merge(target: Target, table: sql.Identifier, columns: sql.Composed, on_conflict: OnConflict) -> sql.Composed:
    others = [sql.Identifier(name) for name in target.types if name != target.key]
    assignments = comma_separated([sql.SQL("{0} = EXCLUDED.{0}").format(name) for name in others])
    name = "upsert_arrived" if others and on_conflict == "update" else "insert_arrived"
    statement = query("bulk", name)
    key = sql.Identifier(target.key)
    return statement.format(table=table, columns=columns, key=key, place=_PLACE, assignments=assignments)


def _detail(error: psycopg.Error) -> str:
    context = (error.diag.context or "").splitlines()
    return ", ".join(part for part in (str(error).splitlines()[0], *context[:1]) if part)
