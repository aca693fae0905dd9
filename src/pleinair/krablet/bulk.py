"""Arrow data into a table, fast: COPY instead of statements.

    batches -> pieces of CHUNK_ROWS -> rows of each shard, sorted by key, one per key -> CSV, written by Arrow
            -> COPY into the table -- a key exists --> COPY into a temporary table, then one INSERT .. ON CONFLICT

Most loads bring new rows, and plain COPY costs a third of the merge (0.2 s of processor time against 0.6 for 150k narrow
rows), so it is tried until the first key that exists; the piece it then repeats leaves dead rows for vacuum. Text
instead of COPY's binary format, because Arrow writes CSV in C++ and Postgres then checks every value.
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


@dataclass(frozen=True)
class Target:
    """The table that is loaded, as the first shard has it."""

    name: str
    key: str
    types: dict[str, str]
    """Of the columns given, in the order given."""

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier(self.name)

    @property
    def columns(self) -> sql.Composed:
        return comma_separated([sql.Identifier(name) for name in self.types])


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
    is the fastest). Of a key given twice the later row stays. Committed by CHUNK_ROWS and shard: after a failure part
    is written, and loading again is right with "update" and "skip". `shard_of` gives the place of a key's shard;
    `on_progress` is told the rows given so far; `guard(connection, keys)` is called first in every transaction and may
    refuse it by raising. Raises QueueError for a column, a type or a value that does not fit.
    """
    if len(shards) > 1 and shard_of is None:
        raise QueueError(f"{len(shards)} shards are given without shard_of: say which shard a key belongs to")
    written = given = 0
    writers: list[_Writer] = []
    for chunk in _chunks(data):
        if not writers:
            target = shards[0].run(partial(_target, table=table, names=chunk.column_names))
            writers = [_Writer(target, on_conflict, guard) for _ in shards]
        for place, rows in _by_shard(chunk, target, shard_of):
            lines = _as_csv(rows if on_conflict == "error" else _one_per_key(rows, target.key), target)
            keys = rows[target.key].to_pylist()
            written += shards[place].run(partial(writers[place].write, lines=lines, keys=keys))
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


def _one_per_key(rows: pa.Table, key: str) -> pa.Table:
    """Sorted by key, so that two loads never deadlock; of a repeated key the last row."""
    places = pa.array(np.arange(rows.num_rows))
    keys = pa.table({"key": rows[key], "place": places})
    ordered = rows.take(pc.sort_indices(keys, [("key", "ascending"), ("place", "ascending")])).combine_chunks()
    if len(ordered) < 2:
        return ordered
    last = pc.not_equal(ordered[key].slice(1), ordered[key].slice(0, len(ordered) - 1))
    if pc.all(last).as_py():
        return ordered
    return ordered.filter(pa.chunked_array([*last.chunks, pa.array([True])]))


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


class _Writer:
    """Writes the pieces of one shard; it merges from the first key on that exists."""

    def __init__(self, target: Target, on_conflict: OnConflict, guard: Guard) -> None:
        self._target = target
        self._on_conflict = on_conflict
        self._guard = guard
        self._all_new = True

    def write(self, connection: Connection, *, lines: bytes, keys: Sequence[Any]) -> int:
        try:
            return self._write(connection, lines, keys)
        except errors.UniqueViolation as error:
            raise QueueError(
                f"loading table {self._target.name}: {_detail(error)}; load with on_conflict='update' or 'skip'"
            ) from error
        except (psycopg.DataError, errors.CardinalityViolation) as error:
            raise QueueError(
                f"loading table {self._target.name}: {_detail(error)}; correct the value, nothing of this piece is in"
            ) from error

    def _write(self, connection: Connection, lines: bytes, keys: Sequence[Any]) -> int:
        if self._all_new:
            try:
                with connection.transaction():
                    self._guard(connection, keys)
                    return _copy(connection, self._target.table, self._target.columns, lines)
            except errors.UniqueViolation:
                if self._on_conflict == "error":
                    raise
                self._all_new = False
        with connection.transaction():
            self._guard(connection, keys)
            created = query("bulk", "create_arriving").format(table=self._target.table, columns=self._target.columns)
            connection.execute(created)
            _copy(connection, sql.Identifier("pg_temp", "arriving"), self._target.columns, lines)
            return connection.execute(_merge(self._target, self._on_conflict)).rowcount


def _copy(connection: Connection, table: sql.Identifier, columns: sql.Composed, lines: bytes) -> int:
    with connection.cursor() as cursor:
        with cursor.copy(query("bulk", "copy_rows").format(table=table, columns=columns)) as copy:
            copy.write(lines)
        return cursor.rowcount


def _merge(target: Target, on_conflict: OnConflict) -> sql.Composed:
    others = [sql.Identifier(name) for name in target.types if name != target.key]
    assignments = comma_separated([sql.SQL("{0} = EXCLUDED.{0}").format(name) for name in others])
    statement = query("bulk", "upsert_arrived" if others and on_conflict == "update" else "insert_arrived")
    key = sql.Identifier(target.key)
    return statement.format(table=target.table, columns=target.columns, key=key, assignments=assignments)


def _detail(error: psycopg.Error) -> str:
    context = (error.diag.context or "").splitlines()
    return ", ".join(part for part in (str(error).splitlines()[0], *context[:1]) if part)
