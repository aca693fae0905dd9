"""The rows a job reads: a table, its key, a condition. Everything here runs read-only, under the reader's role if given.

A condition is text from a person. It is wrapped in parentheses, so it must not be able to close them: it is parsed by
Postgres once between parentheses and once between brackets, and what passes both is one whole expression. Statements
travel by the extended protocol, which takes one statement at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pleinair.krablet.connections import Connection
from pleinair.krablet.migrations import catalog_exists
from pleinair.krablet.queries import comma_separated, condition, query
from pleinair.records.errors import QueueError

KEY_COLUMN = "pluck key"


@dataclass(frozen=True)
class Source:
    """Rows of a table that match a condition, found by ranges of its key. `columns` maps names to SQL types."""

    table: str
    """As it was given, with its schema or without."""
    place: tuple[str, str]
    """Its schema and its name."""
    key: str
    key_type: str
    where: str
    columns: Mapping[str, str]
    reader: str | None = None
    as_text: bool = field(default=False)
    """Select JSON and UUID as text, which is how Arrow batches hold them."""
    placed: bool = field(default=False)
    """Its rows are on the shard that owns the slot of their key, and move with it."""

    @property
    def identifiers(self) -> dict[str, sql.Composable]:
        return {
            "table": sql.Identifier(*self.place),
            "key": sql.Identifier(self.key),
            "key_type": sql.SQL(self.key_type),
            "where": condition(self.where),
            "columns": self._selected(),
        }

    def _selected(self) -> sql.Composed:
        if not self.as_text:
            return comma_separated([sql.Identifier(name) for name in self.columns])
        from pleinair.krablet.arrow import selected

        return selected(self.columns)


@contextmanager
def reading(connection: Connection, source: Source) -> Iterator[None]:
    """A transaction in which nothing can be written, as the source's reader. Raises QueueError for a bad condition."""
    try:
        with connection.transaction():
            connection.execute("SET TRANSACTION READ ONLY")
            if source.reader is not None:
                _become(connection, source.reader, source.place[0])
            yield
    except (psycopg.ProgrammingError, psycopg.DataError, psycopg.NotSupportedError, psycopg.InternalError) as error:
        raise QueueError(
            f"pluck cannot use the condition {source.where!r} on table {source.table}: {str(error).splitlines()[0]}; "
            "give one boolean SQL expression over its columns"
        ) from error


def _become(connection: Connection, reader: str, schema: str) -> None:
    """Act as `reader` until the transaction ends; names in a condition mean what they mean beside the table."""
    connection.execute(sql.SQL("SET LOCAL search_path TO {}, public").format(sql.Identifier(schema)))
    connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(reader)))


def open_source(
    connection: Connection,
    table: str,
    key: str,
    where: str,
    *,
    columns: Sequence[str] | None = None,
    reader: str | None = None,
    as_text: bool = False,
) -> Source:
    """The source, checked on this shard. Raises QueueError naming what is wrong with table, key, columns or condition."""
    found = connection.execute(query("pluck", "unique_key"), {"table": table, "key": key}).fetchone()
    existing: dict[str, str] = dict(connection.execute(query("catalog", "column_types"), {"table": table}).fetchall())
    if not existing:
        raise QueueError(f"there is no table {table!r} in {connection.info.dbname}: declare it, or correct its name")
    if found is None:
        raise QueueError(
            f"{table}.{key} cannot split the table: name a column that is NOT NULL and has a unique index of its own"
        )
    if missing := [name for name in columns or () if name not in existing]:
        raise QueueError(f"table {table} has no column {missing[0]!r}: use some of {', '.join(existing)}")
    chosen = {key: existing[key], **{name: existing[name] for name in (columns or existing)}}
    placed = catalog_exists(connection) and _is_placed(connection, table, key)
    source = Source(table, (found[1], found[2]), key, found[0], where, chosen, reader, as_text, placed)
    check_condition(connection, source)
    return source


def _is_placed(connection: Connection, table: str, key: str) -> bool:
    return connection.execute(query("pluck", "is_placed"), {"table": table, "key": key}).fetchone() == (True,)


def check_condition(connection: Connection, source: Source) -> None:
    """Returns if the condition is one boolean expression over the table that only reads. Raises QueueError."""
    for name in ("check_in_parentheses", "check_in_brackets"):
        with reading(connection, source):
            select(connection, query("pluck", name).format(**source.identifiers))


def select(
    connection: Connection, statement: sql.Composed, parameters: Mapping[str, object] | None = None
) -> list[tuple[Any, ...]]:
    """Run one SELECT. A binary cursor always uses the extended protocol, which refuses a second statement."""
    cursor = connection.cursor(binary=True).execute(statement, parameters or {})
    return cursor.fetchall()


def matching_keys(
    connection: Connection, source: Source, after: str | None, up_to: str | None, *, single: bool, limit: int
) -> list[str]:
    """The first `limit` keys in (after, up_to] whose rows match, in the order of the key; None is no bound.

    `single` means the key `up_to` alone.
    """
    statement = query("pluck", "matching_keys").format(
        **source.identifiers, range=_range(source, after, up_to, single), limit=sql.Literal(limit)
    )
    with reading(connection, source):
        return [key for (key,) in select(connection, statement, {"after": after, "up_to": up_to})]


def _range(source: Source, after: str | None, up_to: str | None, single: bool) -> sql.Composable:
    bound = "{key} = %(up_to)s::text::{key_type}" if single else "{key} <= %(up_to)s::text::{key_type}"
    parts = ["{key} > %(after)s::text::{key_type}"] if after is not None else []
    parts += [bound] if up_to is not None else []
    named = {"key": sql.Identifier(source.key), "key_type": sql.SQL(source.key_type)}
    return sql.SQL(" AND ").join([sql.SQL(part).format(**named) for part in parts or ["TRUE"]])


def read_rows(connection: Connection, source: Source, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The rows of `keys` that still match, by key as text, in the order of the key."""
    statement = query("pluck", "read_rows").format(**source.identifiers)
    with reading(connection, source), connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(statement, {"keys": list(keys)}).fetchall()
    return {row.pop(KEY_COLUMN): row for row in rows}


def sample_row(connection: Connection, source: Source, key: str) -> dict[str, Any] | None:
    statement = query("pluck", "sample_row").format(**source.identifiers)
    with reading(connection, source), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, {"key": key}).fetchone()
