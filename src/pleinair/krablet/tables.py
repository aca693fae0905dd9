"""A table of the warehouse: declared columns, bulk writes by key, streaming reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from pleinair.krablet.column_types import ColumnType, column_type
from pleinair.krablet.connections import Connection, Session, explained, open_connection
from pleinair.krablet.merge_rules import check_rules
from pleinair.krablet.queries import checked_name, query
from pleinair.krablet.rows import Arrays, as_arrays, grouped_by_columns, merged_by_key, slices
from pleinair.krablet.stages import STATE_COLUMNS, Stage, create_stage
from pleinair.records.errors import QueueError

if TYPE_CHECKING:
    import pyarrow as pa

NAME_LENGTH = 28  # an index is called <table>_<stage>_ready, and Postgres keeps 63 characters


class Table:
    """A declared table; made by `Database.table`. One thread at a time per Database writes, `read` is free of that."""

    def __init__(
        self,
        session: Session,
        name: str,
        key: str,
        columns: Mapping[str, str],
        merge: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.session = session
        self.name = name
        self.key = key
        self.columns: dict[str, str] = dict(columns)
        self.merge: dict[str, str] = dict(merge)
        """Rules other than `last` by which the funnel merges mutations."""
        self._types: dict[str, ColumnType] = {column: column_type(given) for column, given in columns.items()}

    def __repr__(self) -> str:
        return f"Table({self.name!r}, key={self.key!r}, {len(self.columns)} columns)"

    def stage(
        self,
        name: str,
        *,
        ready: str,
        writes: Sequence[str],
        batch: int = 8,
        lease_seconds: float = 60.0,
        reads: Sequence[str] | None = None,
    ) -> Stage:
        """Declare a queue stage; declaring it again changes it, and a changed `ready` rebuilds its index.

        `ready` is SQL over this table's columns, immutable (no now()), true while a row is to be done. `writes` are the
        columns a worker returns, `reads` the columns it is given (default: all). Raises QueueError.
        """
        stage = Stage(
            self.session, self, name, ready=ready, writes=writes, batch=batch, lease_seconds=lease_seconds, reads=reads
        )
        self.session.run(lambda connection: create_stage(connection, stage))
        return stage

    def upsert(self, rows: Iterable[Mapping[str, object]]) -> int:
        """Insert rows or set the given columns of those that exist; the number of keys written. Durable on return.

        Columns a row does not give are left alone. Committed by the thousand: after a failure part may be written, and
        giving all rows again is right.
        """
        return self._write(rows, _upsert)

    def insert_missing(self, rows: Iterable[Mapping[str, object]]) -> int:
        """Insert the rows whose key is new, leave all others alone; the number of new rows. Durable on return."""
        return self._write(rows, _insert_missing)

    def update(self, rows: Iterable[Mapping[str, object]]) -> int:
        """Set the given columns of rows that exist, never insert; the number of rows updated. Durable on return."""
        return self._write(rows, _update)

    def _write(self, rows: Iterable[Mapping[str, object]], write: _Write) -> int:
        written = 0
        for batch in slices(rows):
            groups = grouped_by_columns(merged_by_key(batch, self.key, self.name))
            for arrays in [self.arrays(columns, group) for columns, group in groups.items()]:
                written += self.session.run(partial(write, table=self, arrays=arrays))
        return written

    def column_type(self, column: str) -> ColumnType:
        return self._types[column]

    def arrays(self, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> Arrays:
        return as_arrays(self.name, self.key, self._types, columns, rows)

    def read(
        self,
        where: str = "TRUE",
        *,
        columns: Sequence[str] | None = None,
        order_by: str | None = None,
        params: Any = None,
        batch_rows: int = 10_000,
    ) -> Iterator[pa.RecordBatch]:
        """Stream what matches as Arrow batches, on a connection of its own; closing the iterator ends the query.

        `where` and `order_by` are trusted SQL; with `params`, `where` has psycopg placeholders and a literal % is %%.
        Columns default to all declared ones; claim-state columns may be named too. JSON and UUID come as text.
        The query holds a snapshot while it runs: read to the end promptly where workers are busy.
        """
        from pleinair.krablet.arrow import selected, stream_batches

        types = self._read_types(columns)
        statement = query("rows", "read_rows").format(
            columns=selected(types),
            table=sql.Identifier(self.name),
            where=sql.SQL(where),
            order=sql.SQL(f"ORDER BY {order_by}" if order_by else ""),
        )
        with closing(open_connection(self.session.dsn)) as connection:
            try:
                yield from stream_batches(connection, statement, params, types, batch_rows)
            except psycopg.ProgrammingError as error:
                raise QueueError(f"reading table {self.name} where {where!r}: {_first_line(error)}") from error
            except psycopg.OperationalError as error:
                raise explained(error, self.session.dsn) from error

    def _read_types(self, columns: Sequence[str] | None) -> dict[str, str]:
        if columns is None:
            return {name: type_.name for name, type_ in self._types.items()}
        return {name: self._type_name(name) for name in columns}

    def _type_name(self, column: str) -> str:
        if column in self._types:
            return self._types[column].name
        for state, sql_type in STATE_COLUMNS.items():
            if column.endswith(f"_{state}"):
                return column_type(sql_type.split(" NOT NULL")[0]).name
        raise QueueError(f"table {self.name} has no column {column!r}: use one of {', '.join(self.columns)}")

    def count(self, where: str = "TRUE", *, params: Any = None) -> int:
        """How many rows match; `where` as in `read`."""
        statement = query("rows", "count_rows").format(table=sql.Identifier(self.name), where=sql.SQL(where))
        try:
            found = self.session.run(lambda connection: connection.execute(statement, params).fetchone())
        except psycopg.ProgrammingError as error:
            raise QueueError(f"counting table {self.name} where {where!r}: {_first_line(error)}") from error
        assert found is not None
        return int(found[0])


class _Write(Protocol):
    def __call__(self, connection: Connection, *, table: Table, arrays: Arrays) -> int: ...


def _first_line(error: psycopg.Error) -> str:
    return str(error).splitlines()[0]


def _upsert(connection: Connection, *, table: Table, arrays: Arrays) -> int:
    if len(arrays.columns) == 1:
        _insert_missing(connection, table=table, arrays=arrays)
        return len(arrays.values[0])
    statement = query("rows", "upsert_rows").format(
        **_targets(table, arrays), assignments=arrays.assignments("EXCLUDED"), key=sql.Identifier(table.key)
    )
    return connection.execute(statement, arrays.parameters).rowcount


def _insert_missing(connection: Connection, *, table: Table, arrays: Arrays) -> int:
    statement = query("rows", "insert_missing_rows").format(**_targets(table, arrays), key=sql.Identifier(table.key))
    return connection.execute(statement, arrays.parameters).rowcount


def _update(connection: Connection, *, table: Table, arrays: Arrays) -> int:
    if len(arrays.columns) == 1:
        return 0
    statement = query("rows", "update_rows").format(
        **_targets(table, arrays),
        assignments=arrays.assignments("new"),
        key=sql.Identifier(table.key),
        key_type=sql.SQL(table.column_type(table.key).name),
    )
    return connection.execute(statement, arrays.parameters).rowcount


def _targets(table: Table, arrays: Arrays) -> dict[str, sql.Composable]:
    return {
        "table": sql.Identifier(table.name),
        "columns": sql.SQL(", ").join([sql.Identifier(name) for name in arrays.columns]),
        "values": arrays.casts,
        "arrays": arrays.arrays,
        "names": arrays.names,
    }


def create_table(
    connection: Connection, name: str, key: str, columns: Mapping[str, str], merge: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Create the table or add what it lacks; all declared columns, with their types and rules. Raises QueueError."""
    _check_declaration(name, key, columns)
    wanted = {column: column_type(sql_type).name for column, sql_type in columns.items()}
    check_rules(name, key, wanted, merge)
    with connection.transaction():
        connection.execute(query("catalog", "lock_schema"))
        if not _value(connection, "catalog_exists"):
            connection.execute(query("catalog", "create_catalog"))
        if not _column_types(connection, name):
            statement = query("catalog", "create_table").format(
                table=sql.Identifier(name), key=sql.Identifier(key), type=sql.SQL(wanted[key])
            )
            connection.execute(statement)
        _check_key(connection, name, key)
        _add_columns(connection, name, wanted)
        saved = connection.execute(query("catalog", "load_table"), {"name": name}).fetchone()
        _, earlier, earlier_rules = saved or (key, {}, {})
        declared = {**dict(earlier), **wanted}
        rules = _merged_rules(name, dict(earlier), earlier_rules, merge)
        given = {"name": name, "key": key, "columns": Jsonb(list(declared.items())), "merge": Jsonb(rules)}
        connection.execute(query("catalog", "save_table"), given)
    return declared, rules


def _merged_rules(
    table: str, columns: Mapping[str, str], rules: Mapping[str, str], wanted: Mapping[str, str]
) -> dict[str, str]:
    """What is declared with what is added. A rule never changes: values of two rules in one column mean nothing."""
    for column, rule in wanted.items():
        held = rules.get(column, "last")
        if column in columns and held != rule:
            raise QueueError(
                f"column {table}.{column} is declared with merge rule {held!r}, not {rule!r}: "
                f"declare it with {held!r}, or use a new column name"
            )
    return {**rules, **{column: rule for column, rule in wanted.items() if rule != "last"}}


def _check_declaration(name: str, key: str, columns: Mapping[str, str]) -> None:
    checked_name("table", name, NAME_LENGTH)
    for column in columns:
        checked_name("column", column, 63)
    if key not in columns:
        raise QueueError(f"the key {key!r} of table {name} is not among its columns: add it to columns")


def _check_key(connection: Connection, table: str, key: str) -> None:
    found = [name for (name,) in connection.execute(query("catalog", "primary_key"), {"table": table})]
    if found != [key]:
        raise QueueError(
            f"table {table} has the primary key ({', '.join(found) or 'none'}), not ({key}): "
            "declare it with its own key, or choose another table name"
        )


def _add_columns(connection: Connection, table: str, wanted: Mapping[str, str]) -> None:
    existing = _column_types(connection, table)
    for column, sql_type in wanted.items():
        if column not in existing:
            statement = query("catalog", "add_column").format(
                table=sql.Identifier(table), column=sql.Identifier(column), type=sql.SQL(sql_type)
            )
            connection.execute(statement)
        elif existing[column] != sql_type:
            raise QueueError(
                f"column {table}.{column} is {existing[column]} and is declared as {sql_type}: "
                f"declare it as {existing[column]}, or use a new column name"
            )


def _column_types(connection: Connection, table: str) -> dict[str, str]:
    return dict(connection.execute(query("catalog", "column_types"), {"table": table}).fetchall())


def _value(connection: Connection, name: str) -> Any:
    found = connection.execute(query("catalog", name)).fetchone()
    assert found is not None
    return found[0]


def load_table(session: Session, name: str) -> Table:
    """A table declared earlier, by any process. Raises QueueError if there is none."""

    def load(connection: Connection) -> tuple[Any, ...] | None:
        if not _value(connection, "catalog_exists"):
            return None
        return connection.execute(query("catalog", "load_table"), {"name": name}).fetchone()

    found = session.run(load)
    if found is None:
        raise QueueError(f"no table {name!r} is declared in this database: declare it with db.table({name!r}, ...)")
    return Table(session, name, found[0], dict(found[1]), found[2])


def load_stage(table: Table, name: str) -> Stage:
    """A stage declared earlier, by any process. Raises QueueError if there is none."""
    found = table.session.run(
        lambda connection: connection.execute(
            query("catalog", "load_stage"), {"table": table.name, "name": name}
        ).fetchone()
    )
    if found is None:
        raise QueueError(f"table {table.name} has no stage {name!r}: declare it with table.stage({name!r}, ...)")
    ready, writes, reads, batch, lease_seconds = found
    return Stage(
        table.session, table, name, ready=ready, writes=writes, batch=batch, lease_seconds=lease_seconds, reads=reads
    )
