"""The column types a table may have, and how a Python value travels into each.

Rows are written as one array per column (`unnest`), so a value must fit its array: scalars travel as themselves, arrays
and JSON as text that Postgres casts. A value that does not fit its column is refused here, by row, before it is sent.
"""

from __future__ import annotations

import datetime
import json
import operator
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pleinair.records.errors import QueueError


@dataclass(frozen=True)
class ColumnType:
    """One SQL type: `name` as Postgres prints it, `transport` the type its values travel as."""

    name: str
    transport: str
    encode: Callable[[Any], object]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("give a str")
    if "\x00" in value:
        raise ValueError("it holds a NUL character, which Postgres cannot store")
    value.encode()  # a file name with undecodable bytes holds lone surrogates, which UTF-8 cannot store
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError("give True, False or None")
    return value


def _integer(value: Any) -> int:
    return operator.index(value)


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError("give a number")
    return float(value)


def _timestamp(value: object) -> datetime.datetime:
    if not isinstance(value, datetime.datetime) or value.tzinfo is None:
        raise TypeError("give a datetime with a time zone")
    return value


def _date(value: object) -> datetime.date:
    if not isinstance(value, datetime.date) or isinstance(value, datetime.datetime):
        raise TypeError("give a date")
    return value


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("give bytes")
    return bytes(value)


def _uuid(value: object) -> str:
    return str(value if isinstance(value, uuid.UUID) else uuid.UUID(_text(value)))


def _json(value: object) -> str:
    """A str is JSON text already, as `Table.read` gives it; anything else is dumped."""
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    if "\\u0000" in text:
        raise ValueError("it holds a NUL character, which Postgres cannot store")
    return _text(text)


def _array_of(encode: Callable[[Any], object]) -> Callable[[Any], str]:
    def literal(value: object) -> str:
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError("give a list")
        return "{" + ",".join(_element(item, encode) for item in value) + "}"

    return literal


def _element(item: object, encode: Callable[[Any], object]) -> str:
    if item is None:
        return "NULL"
    text = str(encode(item)).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


_SCALARS: dict[str, Callable[[Any], object]] = {
    "text": _text,
    "boolean": _boolean,
    "integer": _integer,
    "bigint": _integer,
    "real": _number,
    "double precision": _number,
    "date": _date,
    "uuid": _uuid,
}
_AS_THEY_ARE: Mapping[str, type] = {
    "text": str,
    "boolean": bool,
    "integer": int,
    "bigint": int,
    "real": float,
    "double precision": float,
}
_ALIASES = {
    "bool": "boolean",
    "int": "integer",
    "int4": "integer",
    "int8": "bigint",
    "float4": "real",
    "float8": "double precision",
    "timestamptz": "timestamp with time zone",
}
_TYPES: Mapping[str, ColumnType] = {
    **{name: ColumnType(name, name, encode) for name, encode in _SCALARS.items()},
    **{f"{name}[]": ColumnType(f"{name}[]", "text", _array_of(encode)) for name, encode in _SCALARS.items()},
    "timestamp with time zone": ColumnType("timestamp with time zone", "timestamp with time zone", _timestamp),
    "bytea": ColumnType("bytea", "bytea", _bytes),
    "jsonb": ColumnType("jsonb", "text", _json),
}


def column_type(sql_type: str) -> ColumnType:
    """The type called `sql_type`, aliases such as `timestamptz` included. Raises QueueError with the list of types."""
    name = " ".join(sql_type.lower().split())
    base, brackets = (name[:-2].strip(), "[]") if name.endswith("[]") else (name, "")
    name = _ALIASES.get(base, base) + brackets
    if name not in _TYPES:
        raise QueueError(f"column type {sql_type!r} is not supported: use one of {', '.join(_TYPES)}")
    return _TYPES[name]


def encode_column(column: str, type_: ColumnType, keys: Sequence[Any], values: Sequence[Any]) -> list[object]:
    """Values of one column as they travel. Raises QueueError naming the column, the row's key, the value and the remedy."""
    try:
        if set(map(type, values)) == {_AS_THEY_ARE.get(type_.name)}:
            if type_.name == "text":
                _text("".join(values))  # whether each can be stored, told in one look at all
            return list(values)
        return [None if value is None else type_.encode(_plain(value)) for value in values]
    except (TypeError, ValueError, OverflowError):
        # Looked for only now: a sentence per value, made in advance, costs more than encoding it.
        return [encode_value(f"{column} of {key!r:.60}", type_, value) for key, value in zip(keys, values, strict=True)]


def _plain(value: Any) -> Any:
    """numpy scalars and zero-dimensional tensors give the Python value they hold."""
    return value.item() if getattr(value, "shape", None) == () else value


def encode_value(place: str, type_: ColumnType, value: Any) -> object:
    """`value` as it travels into a column of this type. Raises QueueError naming `place`, the value and the remedy."""
    try:
        return None if value is None else type_.encode(_plain(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise QueueError(f"{place} is {type_.name} and cannot hold {value!r:.80}: {error}") from error
