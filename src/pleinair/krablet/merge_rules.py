"""What happens when two mutations meet on one column: the rules, in Python inside a flush and in SQL against the row.

    rule        column types              two mutations                  NULL
    last        all                       the later one stays            sets NULL
    max, min    scalars                   the greater, the lesser        changes nothing
    sum         integers and floats       their sum                      changes nothing
    coalesce    all                       the earlier one stays          changes nothing
    json_merge  jsonb                     later top-level keys replace   changes nothing
    union       arrays of exact types     every element once, in order   changes nothing

Every rule is associative, so merging a flush first and the row afterwards gives what one mutation at a time would give.
(A sum of floats is, as ever, exact only up to rounding.) Text is compared by code points on both sides, whatever the
collation of the database.
"""

from __future__ import annotations

import datetime
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import sql

from pleinair.krablet.column_types import ColumnType, column_type, encode_value
from pleinair.krablet.queries import query
from pleinair.records.errors import QueueError

ABSENT: Final = object()
"""Stands for a column that no mutation of a key has given; NULL is a value."""

Fold = Callable[[list[Any], Sequence[int], Sequence[Any]], None]
"""`fold(merged, places, values)`: merge every value into `merged[place]`, in order."""

_NUMBERS = ("integer", "bigint", "real", "double precision")
_SCALARS = (*_NUMBERS, "text", "boolean", "date", "uuid", "bytea", "timestamp with time zone")
_EXACT_ARRAYS = ("text[]", "boolean[]", "integer[]", "bigint[]", "date[]", "uuid[]")


@dataclass(frozen=True)
class MergeRule:
    """One rule: `types` it can be declared for (None: all), and how values meet in Python."""

    name: str
    types: tuple[str, ...] | None
    fold: Fold


def _replace(merged: list[Any], places: Sequence[int], values: Sequence[Any]) -> None:
    for place, value in zip(places, values, strict=True):
        merged[place] = value


def _folding(combine: Callable[[Any, Any], Any]) -> Fold:
    def fold(merged: list[Any], places: Sequence[int], values: Sequence[Any]) -> None:
        for place, value in zip(places, values, strict=True):
            earlier = merged[place]
            if earlier is ABSENT or earlier is None:
                merged[place] = value
            elif value is not None:
                merged[place] = combine(earlier, value)

    return fold


def _greater(earlier: Any, later: Any) -> Any:
    """NaN is greater than every number, as Postgres has it."""
    return later if later > earlier or later != later else earlier


def _lesser(earlier: Any, later: Any) -> Any:
    return later if later < earlier or earlier != earlier else earlier


def _earlier(earlier: Any, later: Any) -> Any:
    return earlier


_RULES: Mapping[str, MergeRule] = {
    rule.name: rule
    for rule in (
        MergeRule("last", None, _replace),
        MergeRule("max", _SCALARS, _folding(_greater)),
        MergeRule("min", _SCALARS, _folding(_lesser)),
        MergeRule("sum", _NUMBERS, _folding(operator.add)),
        MergeRule("coalesce", None, _folding(_earlier)),
        # Objects are dicts, sets are the keys of a dict, which keep their order: both merge with `|`.
        MergeRule("json_merge", ("jsonb",), _folding(operator.or_)),
        MergeRule("union", _EXACT_ARRAYS, _folding(operator.or_)),
    )
}


def check_rules(table: str, key: str, columns: Mapping[str, str], merge: Mapping[str, str]) -> None:
    """Raises QueueError for a rule that does not exist, does not suit its column, or has no column."""
    for column, name in merge.items():
        if name not in _RULES:
            raise QueueError(f"merge rule {name!r} of {table}.{column} is unknown: use one of {', '.join(_RULES)}")
        if column == key or column not in columns:
            what = "is the key, which never changes" if column == key else "is not among the columns"
            raise QueueError(f"merge names {table}.{column}, which {what}: take it out of merge")
        types = _RULES[name].types
        if types is not None and columns[column] not in types:
            raise QueueError(
                f"merge rule {name!r} cannot hold for {table}.{column}, which is {columns[column]}: "
                f"it is for {', '.join(types)}"
            )


@dataclass(frozen=True)
class MergedColumn:
    """A column with its type and rule, as the funnel writes it."""

    table: str
    name: str
    type: ColumnType
    rule: MergeRule

    def prepare(self, values: list[Any], owner: str = "") -> list[Any]:
        """The values in the form they are merged in. Raises QueueError for the first that does not fit."""
        if self._are_ready(values):
            return values
        place = f"{self.table}.{self.name}{owner}"
        return [None if value is None else self._prepared(place, value) for value in values]

    def _are_ready(self, values: list[Any]) -> bool:
        """A glance at all types at once spares a call for every value; most columns pass."""
        plain = _PLAIN.get(self.type.name)
        if plain is None or not plain.issuperset(map(type, values)):
            return False
        return self.type.name != "text" or _is_storable_text(values)

    def _prepared(self, place: str, value: Any) -> Any:
        if self.rule.name == "json_merge":
            return _object(place, self.type, value)
        if self.rule.name == "union":
            return _set(place, self.type, value)
        return encode_value(place, self.type, value)

    def finish(self, values: list[Any]) -> list[Any]:
        """Merged values in the form they travel in."""
        if self.rule.name == "union":
            return [None if value is None else self.type.encode(list(value)) for value in values]
        if self.rule.name == "json_merge":
            return [None if value is None else self.type.encode(value) for value in values]
        return values

    def assignment(self) -> sql.Composed:
        """`column = <the rule, of the stored and the arriving value>`."""
        by_code_points = self.type.name == "text" and self.rule.name in ("max", "min")
        name = f"rule_{self.rule.name}" + ("_text" if by_code_points else "")
        column = sql.Identifier(self.name)
        return sql.SQL("{} = {}").format(column, query("funnel", name).format(column=column))


_NONE = type(None)
_PLAIN: Mapping[str, frozenset[type]] = {
    "text": frozenset({str, _NONE}),
    "boolean": frozenset({bool, _NONE}),
    "integer": frozenset({int, _NONE}),
    "bigint": frozenset({int, _NONE}),
    "real": frozenset({float, _NONE}),
    "double precision": frozenset({float, _NONE}),
    "date": frozenset({datetime.date, _NONE}),
    "bytea": frozenset({bytes, _NONE}),
}


def _is_storable_text(values: list[Any]) -> bool:
    try:
        return b"\x00" not in "".join(filter(None, values)).encode()
    except UnicodeEncodeError:
        return False


def _object(place: str, type_: ColumnType, value: Any) -> dict[str, Any]:
    text = str(encode_value(place, type_, value))
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise QueueError(f"{place} is merged as JSON and {value!r:.80} is none: {error}") from error
    if not isinstance(parsed, dict):
        raise QueueError(f"{place} is merged as a JSON object and {value!r:.80} is none: give a dict")
    return parsed


def _set(place: str, type_: ColumnType, value: Any) -> dict[Any, None]:
    encode_value(place, type_, value)
    element = column_type(type_.name.removesuffix("[]"))
    listed = value.tolist() if hasattr(value, "tolist") else value
    return dict.fromkeys(encode_value(place, element, item) for item in listed)


def merged_column(table: str, name: str, type_: ColumnType, rule: str = "last") -> MergedColumn:
    """The column `name` under a rule that `check_rules` has passed."""
    return MergedColumn(table, name, type_, _RULES[rule])
