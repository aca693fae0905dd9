"""What a query returns, as a stream of Arrow batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from psycopg import sql

from pleinair.krablet.connections import Connection

_SCALARS = {
    "text": pa.string(),
    "boolean": pa.bool_(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "date": pa.date32(),
    "uuid": pa.string(),
    "timestamp with time zone": pa.timestamp("us", tz="UTC"),
    "bytea": pa.binary(),
    "jsonb": pa.string(),
}
_SENT_AS_TEXT = ("jsonb", "uuid")


def arrow_type(sql_type: str) -> pa.DataType:
    base = sql_type.removesuffix("[]")
    return _SCALARS[base] if base == sql_type else pa.list_(_SCALARS[base])


def selected(columns: Mapping[str, str]) -> sql.Composed:
    """The columns of a SELECT, those without an Arrow type of their own (JSON, UUID) cast to text."""
    return sql.SQL(", ").join([_selected(name, sql_type) for name, sql_type in columns.items()])


def _selected(name: str, sql_type: str) -> sql.Composable:
    if sql_type.removesuffix("[]") not in _SENT_AS_TEXT:
        return sql.Identifier(name)
    text = "text[]" if sql_type.endswith("[]") else "text"
    return sql.SQL("{0}::{1} AS {0}").format(sql.Identifier(name), sql.SQL(text))


def stream_batches(
    connection: Connection, statement: sql.Composed, parameters: Any, columns: Mapping[str, str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Batches of at most `batch_rows` rows from a server-side cursor: memory does not grow with the result."""
    schema = pa.schema([pa.field(name, arrow_type(sql_type)) for name, sql_type in columns.items()])
    with connection.transaction(), connection.cursor(name="pleinair_read", binary=True) as cursor:
        cursor.execute(statement, parameters)
        while rows := cursor.fetchmany(batch_rows):
            arrays = [
                pa.array(list(values), field.type)
                for values, field in zip(zip(*rows, strict=True), schema, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)
