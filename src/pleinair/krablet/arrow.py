"""Which Arrow type a declared column has, and how it is selected."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
from psycopg import sql

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
