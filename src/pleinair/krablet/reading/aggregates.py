"""Aggregates over all shards from aggregates of each: asked for in parts that can be put together exactly.

    count  ->  count          sum of the counts
    sum    ->  sum            integers as text, summed without bound; floating point in double precision
    avg    ->  sum, count     divided once, at the end
    min    ->  min            the least; NaN above all numbers
    max    ->  max

Memory grows with the number of groups, which counts against the limit of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from psycopg import sql

from pleinair.krablet.reading.limits import Run
from pleinair.krablet.reading.requests import Aggregate, LimitError, ReadError

INTEGERS = ("smallint", "integer", "bigint")
FLOATS = ("real", "double precision")
_NAN = object()  # NaN is not equal to itself, and Postgres groups all NaN together


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Combined:
    """One aggregate of a scan: its partial expressions, and how partial values become the result."""

    name: str
    partials: tuple[sql.Composable, ...]
    merge: Callable[[Any, Any], Any]
    finish: Callable[..., Any] = _unchanged
    arrow: pa.DataType | None = None
    """None: that of the partial value."""


def combined(name: str, aggregate: Aggregate, column: sql.Composable, ordered: sql.Composable, type_: str) -> Combined:
    """`column` is the expression, `ordered` the same with a collation if it is text. Raises ReadError for its type."""
    count = sql.SQL("count({})").format(column)
    if aggregate.function == "count":
        return Combined(name, (count,), _added, arrow=pa.int64())
    if aggregate.function in ("min", "max"):
        chosen = sql.SQL(f"{aggregate.function}({{}})").format(ordered)
        return Combined(name, (chosen,), _least if aggregate.function == "min" else _greatest)
    if type_ not in INTEGERS + FLOATS:
        raise ReadError(
            f"cannot compute {aggregate.function}({aggregate.column}), which is {type_}: "
            "give an integer or floating-point column"
        )
    whole = type_ in INTEGERS
    total = sql.SQL("sum({})::text" if whole else "sum({}::double precision)").format(column)
    if aggregate.function == "avg":
        return Combined(name, (total, count), _added, _divided, pa.float64())
    return Combined(name, (total,), _added, _as_number if whole else _unchanged, pa.int64() if whole else pa.float64())


def _as_number(value: Any) -> Any:
    return None if value is None else int(value)


def _added(left: Any, right: Any) -> Any:
    if left is None or right is None:
        return right if left is None else left
    return _number(left) + _number(right)


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) else value


def _divided(total: Any, count: int) -> float | None:
    return None if not count else _number(total) / count


def _least(left: Any, right: Any) -> Any:
    if left is None or right is None:
        return right if left is None else left
    return right if _is_nan(left) or right < left else left


def _greatest(left: Any, right: Any) -> Any:
    if left is None or right is None:
        return right if left is None else left
    return left if _is_nan(left) or not (_is_nan(right) or right > left) else right


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


class Groups:
    """Partial rows of all shards, put together by group: the first `num_keys` columns, then the partial values."""

    def __init__(self, schema: pa.Schema, num_keys: int, aggregates: Sequence[Combined], run: Run) -> None:
        self._schema = schema
        self._num_keys = num_keys
        self._aggregates = aggregates
        self._run = run
        self._merges = [each.merge for each in aggregates for _ in each.partials]
        self._found: dict[tuple[Any, ...], list[Any]] = {}

    @property
    def schema(self) -> pa.Schema:
        keys = [self._schema.field(place) for place in range(self._num_keys)]
        place, results = self._num_keys, []
        for each in self._aggregates:
            results.append(pa.field(each.name, each.arrow or self._schema.field(place).type))
            place += len(each.partials)
        return pa.schema([*keys, *results])

    def add(self, batches: Iterable[pa.RecordBatch]) -> None:
        for batch in batches:
            columns = [_plain(column) for column in batch.columns]
            for row in zip(*columns, strict=True):
                self._add(tuple(_NAN if _is_nan(value) else value for value in row[: self._num_keys]), row)
            if self._run.limits.rows is not None and len(self._found) > self._run.limits.rows:
                raise LimitError(
                    f"the read came to its limit of {self._run.limits.rows:,} rows: group by fewer columns, "
                    "narrow `where`, or raise the limit"
                )

    def _add(self, key: tuple[Any, ...], row: tuple[Any, ...]) -> None:
        values = row[self._num_keys :]
        held = self._found.get(key)
        if held is None:
            self._found[key] = list(values)
            return
        for place, (merge, value) in enumerate(zip(self._merges, values, strict=True)):
            held[place] = merge(held[place], value)

    def table(self) -> pa.Table:
        """One row per group, in the order of their first appearance."""
        schema = self.schema
        keys = [[math.nan if value is _NAN else value for value in column] for column in zip(*self._found, strict=True)]
        columns = [*(keys or [[] for _ in range(self._num_keys)]), *self._results()]
        return pa.Table.from_arrays(
            [_array(field, values) for field, values in zip(schema, columns, strict=True)], schema=schema
        )

    def _results(self) -> list[list[Any]]:
        place, results = 0, []
        for each in self._aggregates:
            width = len(each.partials)
            results.append([each.finish(*held[place : place + width]) for held in self._found.values()])
            place += width
        return results


def _storage(type_: pa.DataType) -> pa.DataType:
    """Dates and times are handled as the integers they are: Python's end with the year 9999."""
    if pa.types.is_timestamp(type_):
        return pa.int64()
    return pa.int32() if pa.types.is_date32(type_) else type_


def _plain(column: pa.Array) -> list[Any]:
    values: list[Any] = _as(column, _storage(column.type)).to_pylist()
    return values


def _as(column: pa.Array, type_: pa.DataType) -> pa.Array:
    return column if column.type == type_ else column.view(type_)


def _array(field: pa.Field, values: list[Any]) -> pa.Array:
    try:
        return _as(pa.array(values, _storage(field.type)), field.type)
    except (OverflowError, pa.ArrowInvalid) as error:
        raise ReadError(
            f"{field.name} is beyond 64 bits: compute avg and count instead of sum, or split the rows with `where`"
        ) from error
