"""What each shard is asked, for a request over all of them: columns from the catalog, then one statement.

Filter, projection, limit and order go down to the shards as they are, aggregates in parts (aggregates.py). What Arrow
has no type for is cast to text there. Text is ordered COLLATE "C" on every shard, so that the merge here agrees.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from pleinair.krablet.connections import Connection
from pleinair.krablet.queries import comma_separated, query
from pleinair.krablet.reading.aggregates import Combined, combined
from pleinair.krablet.reading.copy_binary import KINDS, Field
from pleinair.krablet.reading.copy_stream import Wire
from pleinair.krablet.reading.requests import Aggregate, GetRequest, Order, ReadError, ScanRequest, SqlRequest

MAX_KEYS = 100_000
_TEXTS = (25, 1043)
_UUID = 2950
_COMPARABLE = (16, 17, 20, 21, 23, *_TEXTS, 700, 701, 1082, 1114, 1184, _UUID)
_NOTHING = sql.SQL("")
_LIMIT = re.compile(r"\blimit\s+(\d+)\s*$", re.IGNORECASE)
_PLAIN_NODES = {"Seq Scan", "Bitmap Heap Scan", "Bitmap Index Scan", "BitmapOr", "BitmapAnd", "Gather", "Append"}
_PLAIN_NODES |= {"Tid Scan", "Tid Range Scan", "Index Scan", "Index Only Scan", "Subquery Scan", "Sample Scan"}


@dataclass(frozen=True)
class TableColumn:
    """A column as the catalog has it."""

    name: str
    oid: int
    is_array: bool
    type: str
    is_key: bool
    sorts_by_bytes: bool


@dataclass(frozen=True)
class TableInfo:
    """A table of a shard."""

    name: str
    columns: dict[str, TableColumn]

    def column(self, name: str) -> TableColumn:
        if name not in self.columns:
            raise ReadError(f"table {self.name} has no column {name!r}: use one of {', '.join(self.columns)}")
        return self.columns[name]

    def comparable(self, name: str, use: str) -> TableColumn:
        column = self.column(name)
        if column.oid not in _COMPARABLE:
            raise ReadError(f"cannot {use} {self.name}.{name}, which is {column.type}: use a column of a simple type")
        return column

    @property
    def key(self) -> TableColumn:
        keys = [column for column in self.columns.values() if column.is_key]
        if not keys:
            raise ReadError(f"table {self.name} has no primary key of one column: read it with `where`")
        return keys[0]

    def qualified(self, name: str) -> sql.Composable:
        """The column itself: its bare name would mean the result's column, which may be cast."""
        return sql.Identifier(self.name, name)

    def selected(self, name: str) -> sql.Composable:
        column = self.columns[name]
        if column.oid in KINDS:
            return self.qualified(name)
        text = sql.SQL("text[]" if column.is_array else "text")
        return sql.SQL("{}::{} AS {}").format(self.qualified(name), text, sql.Identifier(name))

    def ordered(self, name: str) -> sql.Composable:
        """The column so that all shards sort it alike."""
        column = self.columns[name]
        if column.oid not in _TEXTS or column.sorts_by_bytes:
            return self.qualified(name)
        return sql.SQL('{} COLLATE "C"').format(self.qualified(name))


@dataclass(frozen=True)
class ScanPlan:
    """One statement for every shard and what to make of the answers."""

    statement: bytes
    fields: tuple[Field, ...]
    orders: tuple[Order, ...] = ()
    limit: int | None = None
    hidden: tuple[str, ...] = ()
    """Columns that are only there to merge by."""
    aggregates: tuple[Combined, ...] = ()
    num_groups: int = 0


def table_info(wire: Wire, table: str) -> TableInfo:
    """Raises ReadError if there is no such table, or no right to see it."""
    statement = query("scan", "table_columns").format(table=sql.Literal(table))
    found = [
        TableColumn(str(name), int(oid or 0), array == "t", str(type_), key == "t", by_bytes == "t")
        for name, oid, array, type_, key, by_bytes in wire.rows(_rendered(wire.connection, statement))
    ]
    if not found:
        raise ReadError(f"there is no table {table!r}: name one that is declared, or make the role a reader of it")
    return TableInfo(table, {column.name: column for column in found})


def _rendered(connection: Connection, statement: sql.SQL | sql.Composed, params: Any = None) -> bytes:
    """The statement with its values in it: COPY takes no parameters."""
    try:
        return psycopg.ClientCursor(connection).mogrify(statement, params).encode()
    except (psycopg.ProgrammingError, TypeError, ValueError) as error:
        raise ReadError(f"the params do not fit `where`: {error}; a literal % is written %% beside params") from error


def plan_scan(wire: Wire, request: ScanRequest) -> ScanPlan:
    """Raises ReadError for an unknown column, a condition Postgres does not take, or more than one statement."""
    info = table_info(wire, request.table)
    return _plan_aggregate(wire, request, info) if request.aggregate else _plan_rows(wire, request, info)


def _plan_rows(wire: Wire, request: ScanRequest, info: TableInfo) -> ScanPlan:
    wanted = [info.column(name).name for name in request.columns or info.columns]
    for order in request.orders:
        info.comparable(order.column, "order by")
    hidden = tuple(dict.fromkeys(order.column for order in request.orders if order.column not in wanted))
    statement = _scan_statement(
        wire,
        request,
        columns=[info.selected(name) for name in [*wanted, *hidden]],
        order=_order_clause(info, request.orders),
        limit=_NOTHING if request.limit is None else sql.SQL("LIMIT {}").format(sql.Literal(request.limit)),
    )
    return ScanPlan(statement, tuple(wire.describe(statement)), request.orders, request.limit, hidden)


def _plan_aggregate(wire: Wire, request: ScanRequest, info: TableInfo) -> ScanPlan:
    groups = [info.comparable(name, "group by").name for name in request.group_by]
    aggregates = tuple(_aggregate(info, name, aggregate) for name, aggregate in request.aggregates.items())
    for order in request.orders:
        if order.column not in [*groups, *request.aggregate]:
            raise ReadError(f"cannot order by {order.column!r}: name a column of group_by or an aggregate")
    partials = [
        sql.SQL("{} AS {}").format(partial, sql.Identifier(f"partial {number}"))
        for number, partial in enumerate(partial for each in aggregates for partial in each.partials)
    ]
    by = sql.SQL("GROUP BY {}").format(comma_separated([info.qualified(name) for name in groups]))
    statement = _scan_statement(
        wire,
        request,
        columns=[*[info.selected(name) for name in groups], *partials],
        group=by if groups else _NOTHING,
    )
    fields = tuple(wire.describe(statement))
    return ScanPlan(statement, fields, request.orders, request.limit, (), aggregates, len(groups))


def _aggregate(info: TableInfo, name: str, aggregate: Aggregate) -> Combined:
    if aggregate.column is None:
        return combined(name, aggregate, sql.SQL("*"), sql.SQL("*"), "")
    column = info.column(aggregate.column)
    if aggregate.function in ("min", "max"):
        info.comparable(column.name, aggregate.function)
    return combined(name, aggregate, info.qualified(column.name), info.ordered(column.name), column.type)


def _scan_statement(
    wire: Wire,
    request: ScanRequest,
    *,
    columns: Sequence[sql.Composable],
    group: sql.Composable = _NOTHING,
    order: sql.Composable = _NOTHING,
    limit: sql.Composable = _NOTHING,
) -> bytes:
    statement = query("scan", "scan_rows").format(
        columns=comma_separated(columns),
        table=sql.Identifier(request.table),
        where=sql.SQL(request.where),
        group=group,
        order=order,
        limit=limit,
    )
    return _rendered(wire.connection, statement, request.params)


def _order_clause(info: TableInfo, orders: Iterable[Order]) -> sql.Composable:
    terms = [
        sql.SQL("{} {} NULLS {}").format(
            info.ordered(order.column),
            sql.SQL("DESC" if order.descending else "ASC"),
            sql.SQL("FIRST" if order.nulls_first else "LAST"),
        )
        for order in orders
    ]
    return sql.SQL("ORDER BY {}").format(comma_separated(terms)) if terms else _NOTHING


@dataclass(frozen=True)
class GetPlan:
    """Where the rows of some keys are asked for: a statement for each shard that has some."""

    key: str
    keys: tuple[Any, ...]
    """As the key column gives them back."""
    statements: dict[int, bytes]
    fields: tuple[Field, ...]


def plan_keys(info: TableInfo, request: GetRequest) -> list[Any]:
    """The keys as the column prints them. Raises ReadError for too many, and for keys that do not fit."""
    key = info.comparable(info.key.name, "get by")
    if len(request.keys) > MAX_KEYS:
        raise ReadError(f"{len(request.keys):,} keys are asked for at once: ask for at most {MAX_KEYS:,}")
    return _uniform(key, request.keys)


def plan_get(wire: Wire, request: GetRequest, info: TableInfo, routed: dict[int, list[Any]]) -> GetPlan:
    """`routed` holds the keys, as `plan_keys` gives them, by shard. Raises ReadError for an unknown column."""
    key = info.key
    wanted = [key.name, *[info.column(name).name for name in request.columns or info.columns if name != key.name]]
    statements = {}
    for place, values in (routed or {0: []}).items():
        statement = query("scan", "get_rows").format(
            columns=comma_separated([info.selected(name) for name in wanted]),
            table=sql.Identifier(request.table),
            key=info.qualified(key.name),
            keys=sql.SQL("{}::{}[]").format(sql.Literal(values), sql.SQL(key.type)),
        )
        statements[place] = _rendered(wire.connection, statement)
    fields = tuple(wire.describe(next(iter(statements.values()))))
    return GetPlan(key.name, tuple(_uniform(key, request.keys)), statements, fields)


def _uniform(key: TableColumn, values: Sequence[Any]) -> list[Any]:
    """Keys as the column prints them."""
    try:
        return [str(uuid.UUID(str(value))) for value in values] if key.oid == _UUID else list(values)
    except ValueError as error:
        raise ReadError(f"the key {key.name} is {key.type}: {error}; give keys of that type") from error


def plan_sql(wire: Wire, request: SqlRequest, num_shards: int) -> ScanPlan:
    """A person's SELECT. Raises ReadError if it is none, or over several shards more than rows of one table."""
    text = request.query.strip().removesuffix(";")
    statement = text.encode()
    found = wire.describe(statement)
    if not found:
        raise ReadError("the statement gives no rows: give one SELECT")
    limit = _require_plain(wire, text) if num_shards > 1 else None
    casts = _casts(wire, found)
    if casts:
        names = [sql.Identifier(f"column {place}") for place in range(len(found))]
        columns = [
            sql.SQL("{}{} AS {}").format(name, casts.get(place, sql.SQL("")), sql.Identifier(found[place].name))
            for place, name in enumerate(names)
        ]
        cast = query("scan", "select_as").format(
            columns=comma_separated(columns), statement=sql.SQL(text), names=comma_separated(names)
        )
        statement = _rendered(wire.connection, cast)
    return ScanPlan(statement, tuple(wire.describe(statement)), limit=limit)


def _casts(wire: Wire, fields: Sequence[Field]) -> dict[int, sql.SQL]:
    """The places of columns that go as text, with the cast."""
    strange = [place for place, field in enumerate(fields) if field.oid not in KINDS]
    if not strange:
        return {}
    types = sql.Literal([fields[place].oid for place in strange])
    arrays = wire.rows(_rendered(wire.connection, query("scan", "array_types").format(types=types)))
    known = {int(oid or 0) for (oid,) in arrays}
    return {place: sql.SQL("::text[]" if fields[place].oid in known else "::text") for place in strange}


def _require_plain(wire: Wire, text: str) -> int | None:
    """The statement's own limit, if over several shards it means the rows of all of them, one after the other."""
    wire.rows(_rendered(wire.connection, query("scan", "no_ordered_scans")))
    explained = wire.rows(_rendered(wire.connection, query("scan", "explain").format(statement=sql.SQL(text))))
    plan = json.loads("\n".join(line or "" for (line,) in explained))[0]["Plan"]
    limit = _LIMIT.search(text)
    if plan["Node Type"] == "Limit" and limit:
        [plan] = plan["Plans"]
    for node in _nodes(plan):
        constant = node["Node Type"] == "Result" and "Plans" not in node
        if node["Node Type"] not in _PLAIN_NODES and not constant:
            raise ReadError(
                f"over several shards a SELECT may only filter one table, and this one needs {node['Node Type']}: "
                "leave out joins, ORDER BY, OFFSET and aggregates, name one shard with --dsn, or use scan with "
                "order_by and aggregate"
            )
    return int(limit[1]) if limit else None


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *[node for child in plan.get("Plans", []) for node in _nodes(child)]]
