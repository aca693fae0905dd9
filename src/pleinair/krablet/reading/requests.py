"""What a reader asks of the shards, as values that travel as JSON; and how a read is refused.

    ScanRequest   filter, columns, order, limit, aggregates over one table of every shard
    GetRequest    rows by key
    SqlRequest    one SELECT, as a person wrote it

`where` and SQL are texts of people: they run in a read-only transaction, one statement at a time. Values go through
`params`, with psycopg's placeholders (`%s`, `%(name)s`; a literal % is then %%).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

from pleinair.records.errors import DatabaseError

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_ORDER = re.compile(r"(\w+)(?:\s+(asc|desc))?(?:\s+nulls\s+(first|last))?", re.IGNORECASE)
_AGGREGATE = re.compile(r"(count|sum|min|max|avg)\s*\(\s*(\*|\w+)\s*\)", re.IGNORECASE)


class ReadError(DatabaseError):
    """A read was refused or failed; the request must change."""


class LimitError(ReadError):
    """A read came to a limit of rows, bytes or time."""


class MovingError(ReadError):
    """The shards that were asked do not hold every slot once: slots are moving, or a shard was not asked."""


class CancelledError(ReadError):
    """Whoever asked for the rows has gone."""


@dataclass(frozen=True)
class Order:
    """One term of an order; NULLs come last ascending and first descending unless said otherwise, as in Postgres."""

    column: str
    descending: bool = False
    nulls_first: bool = False

    @classmethod
    def parse(cls, text: str) -> Order:
        """From `length`, `length DESC`, `length DESC NULLS LAST`."""
        found = _ORDER.fullmatch(text.strip())
        if found is None:
            raise ReadError(
                f"cannot order by {text!r}: give a column, then ASC or DESC, then NULLS FIRST or NULLS LAST"
            )
        column, direction, nulls = found.groups()
        descending = (direction or "asc").lower() == "desc"
        return cls(column, descending, descending if nulls is None else nulls.lower() == "first")


@dataclass(frozen=True)
class Aggregate:
    """One aggregate over all shards; `column` is None for count(*)."""

    function: str
    column: str | None

    @classmethod
    def parse(cls, text: str) -> Aggregate:
        """From `count(*)`, `count(length)`, `sum(length)`, `min(...)`, `max(...)`, `avg(...)`."""
        found = _AGGREGATE.fullmatch(text.strip())
        if found is None or (found[2] == "*" and found[1].lower() != "count"):
            raise ReadError(f"cannot aggregate {text!r}: give count(*), or count, sum, min, max or avg of one column")
        return cls(found[1].lower(), None if found[2] == "*" else found[2])


@dataclass(frozen=True, kw_only=True)
class ScanRequest:
    """Rows of one table, or with `aggregate` one row per group."""

    table: str
    columns: Sequence[str] | None = None
    """None: all columns. Not with `aggregate`. Kept as a tuple, as are the others."""
    where: str = "TRUE"
    order_by: str | Sequence[str] = ()
    """Columns, or with `aggregate` names of the result, each with ASC, DESC, NULLS FIRST, NULLS LAST."""
    limit: int | None = None
    aggregate: Mapping[str, str] = field(default_factory=dict)
    """Name in the result -> what is computed: {"pictures": "count(*)", "longest": "max(length)"}."""
    group_by: str | Sequence[str] = ()
    params: Any = None
    """A sequence or a mapping of values for the placeholders in `where`."""

    def __post_init__(self) -> None:
        for name in ("order_by", "group_by", "columns"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else given and tuple(given))
        for name in (self.table, *(self.columns or ()), *self.group_by, *self.aggregate):
            check_name(name)
        if self.limit is not None and self.limit < 0:
            raise ReadError(f"limit is {self.limit}: give 0 or more rows, or no limit")
        if self.aggregate and self.columns is not None:
            raise ReadError("columns and aggregate are given together: name the columns to keep in group_by")
        if self.group_by and not self.aggregate:
            raise ReadError("group_by is given without aggregate: add one, such as {'rows': 'count(*)'}")
        if self.columns == ():
            raise ReadError("columns is empty: name at least one column")

    @property
    def orders(self) -> tuple[Order, ...]:
        return tuple(Order.parse(term) for term in self.order_by)

    @property
    def aggregates(self) -> dict[str, Aggregate]:
        return {name: Aggregate.parse(text) for name, text in self.aggregate.items()}


@dataclass(frozen=True, kw_only=True)
class GetRequest:
    """The rows with these keys."""

    table: str
    keys: tuple[Any, ...]
    columns: tuple[str, ...] | None = None
    """None: all columns. The key always comes first."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))
        for name in (self.table, *(self.columns or ())):
            check_name(name)


@dataclass(frozen=True, kw_only=True)
class SqlRequest:
    """One SELECT."""

    query: str


Request: TypeAlias = ScanRequest | GetRequest | SqlRequest
_KINDS: dict[str, type[Any]] = {"scan": ScanRequest, "get": GetRequest, "sql": SqlRequest}


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ReadError(f"the name {name!r} is not usable: lower-case letters, digits and underscores, a letter first")


def to_json(request: Request) -> bytes:
    """Raises ReadError for a value JSON cannot carry."""
    kind = next(kind for kind, type_ in _KINDS.items() if isinstance(request, type_))
    try:
        return json.dumps({kind: asdict(request)}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ReadError(f"a value cannot be sent: {error}; give text and cast it in SQL, such as %s::date") from error


def from_json(text: bytes) -> Request:
    """Raises ReadError unless `text` is what `to_json` makes."""
    try:
        [(kind, fields)] = json.loads(text).items()
        request = _KINDS[kind](**{name: _tuples(value) for name, value in fields.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReadError(f"the request {text[:120]!r} is not understood: use the client of the same version") from error
    assert isinstance(request, ScanRequest | GetRequest | SqlRequest)
    return request


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
