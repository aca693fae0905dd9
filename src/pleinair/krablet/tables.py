"""A table of the warehouse: declared columns, bulk writes by key, streaming reads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from pleinair.krablet.column_types import ColumnType, column_type
from pleinair.krablet.connections import Connection, not_allowed
from pleinair.krablet.declarations import create_stage, in_short_transaction
from pleinair.krablet.merge_rules import check_rules
from pleinair.krablet.migrations import catalog_exists, ensure_catalog
from pleinair.krablet.queries import checked_name, query
from pleinair.krablet.roles import grant_roles
from pleinair.krablet.rows import Arrays, as_arrays, encoded, grouped_by_columns, merged_by_key, slices
from pleinair.krablet.shards import STALE_MAP, Cursor, Shards, StaleMapError, require_keys
from pleinair.krablet.stages import Stage
from pleinair.records.errors import QueueError

if TYPE_CHECKING:
    import pyarrow as pa

    from pleinair.krablet.bulk import OnConflict
    from pleinair.krablet.reading.requests import ScanRequest

KEY_TYPES = ("text", "integer", "bigint", "uuid")
NAME_LENGTH = 28  # an index is called <table>_<stage>_ready, and Postgres keeps 63 characters


class Table:
    """A declared table; made by `Database.table`. One thread at a time per Database writes, `read` is free of that."""

    def __init__(
        self,
        shards: Shards,
        name: str,
        key: str,
        columns: Mapping[str, str],
        merge: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.shards = shards
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
        order: str | None = None,
    ) -> Stage:
        """Declare a queue stage; declaring it again changes it, and a changed `ready` rebuilds its index.

        `ready` is SQL over this table's columns, immutable (no now()), true while a row is to be done. `writes` are the
        columns a worker returns, `reads` the columns it is given (default: all). `order` is an immutable SQL expression:
        rows with smaller values are taken first (for example `-priority`, or `created_at`). Raises QueueError.
        """
        stage = Stage(
            self,
            name,
            ready=ready,
            writes=writes,
            batch=batch,
            lease_seconds=lease_seconds,
            reads=reads,
            order=order,
        )
        self.shards.each(lambda connection: create_stage(connection, stage))
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

    def load(
        self,
        data: pa.Table | pa.RecordBatchReader | Iterable[pa.RecordBatch],
        *,
        on_conflict: OnConflict = "update",
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Write Arrow data, the fast way; the number of rows written. See `bulk.load`.

        Raises StaleMapError when slots move meanwhile: load again with "update" or "skip".
        """
        from pleinair.krablet.bulk import load

        shards = self.shards.all
        place = {shard.number: index for index, shard in enumerate(shards)}
        try:
            return load(
                [shard.session for shard in shards],
                self.name,
                data,
                on_conflict=on_conflict,
                shard_of=None if len(shards) == 1 else lambda key: place[self.shards.of(key).number],
                on_progress=on_progress,
                guard=require_keys,
            )
        except psycopg.DatabaseError as error:
            if error.sqlstate != STALE_MAP:
                raise
            self.shards.settled()
            raise StaleMapError(f"slots of table {self.name} moved while it was loaded: load again") from error

    def _write(self, rows: Iterable[Mapping[str, object]], write: _Write) -> int:
        written = 0
        for batch in slices(rows):
            groups = grouped_by_columns(merged_by_key(batch, self.key, self.name))
            for arrays in [self.arrays(columns, group) for columns, group in groups.items()]:
                if write is _update and len(arrays.columns) == 1:
                    continue
                changed = self.shards.write(arrays.values[0], partial(_send, write, self, arrays))
                # An upsert writes every key; rows that give their key alone and exist are no row to Postgres.
                written += len(arrays.values[0]) if write is _upsert else changed
        return written

    def column_type(self, column: str) -> ColumnType:
        return self._types[column]

    def arrays(self, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> Arrays:
        return as_arrays(self.name, self.key, self._types, columns, rows)

    def arrays_of(self, keys: Sequence[Any], values: Mapping[str, Sequence[Any]]) -> Arrays:
        """Values by column, aligned with `keys`, encoded."""
        return encoded(self.name, self._types, {self.key: keys, **values})

    def read(
        self,
        where: str = "TRUE",
        *,
        columns: Sequence[str] | None = None,
        order_by: str | None = None,
        params: Any = None,
        batch_rows: int = 16_384,
    ) -> Iterator[pa.RecordBatch]:
        """Stream what matches as Arrow batches, from all shards at once; closing the iterator ends the queries.

        `where` is trusted SQL; with `params` it has psycopg placeholders and a literal % is %%. `order_by` is columns
        with ASC or DESC, comma-separated, and holds over all shards. Columns default to all declared ones; claim-state
        columns may be named too. JSON and UUID come as text. Every row comes once, also while slots move. The queries
        hold a snapshot while they run: read to the end promptly where workers are busy.
        """
        from pleinair.krablet.reading.requests import ScanRequest

        wanted = list(self.columns if columns is None else columns)
        order = [] if order_by is None else [term.strip() for term in order_by.split(",")]
        batches = self._scanned(
            lambda: ScanRequest(table=self.name, where=where, columns=wanted, order_by=order, params=params),
            f"reading table {self.name} where {where!r}",
        )
        with closing(batches):
            for batch in batches:
                yield from (batch.slice(start, batch_rows) for start in range(0, batch.num_rows, batch_rows))

    def count(self, where: str = "TRUE", *, params: Any = None) -> int:
        """How many rows match; `where` as in `read`."""
        from pleinair.krablet.reading.requests import ScanRequest

        [batch] = self._scanned(
            lambda: ScanRequest(table=self.name, where=where, aggregate={"rows": "count(*)"}, params=params),
            f"counting table {self.name} where {where!r}",
        )
        return int(batch["rows"][0].as_py())

    def _scanned(self, request: Callable[[], ScanRequest], doing: str) -> Generator[pa.RecordBatch, None, None]:
        from pleinair.krablet.connections import UnreachableError
        from pleinair.krablet.reading.requests import ReadError
        from pleinair.krablet.reading.warehouse import read_shards

        try:
            with read_shards(self.shards, request()) as batches:
                yield from batches
        except UnreachableError:
            raise
        except ReadError as error:
            raise QueueError(f"{doing}: {error}") from error


class _Write(Protocol):
    def __call__(self, connection: Connection, table: Table, arrays: Arrays) -> Cursor: ...


def _send(write: _Write, table: Table, arrays: Arrays, connection: Connection, places: list[int]) -> Cursor:
    return write(connection, table, arrays.at(places))


def _upsert(connection: Connection, table: Table, arrays: Arrays) -> Cursor:
    if len(arrays.columns) == 1:
        return _insert_missing(connection, table, arrays)
    statement = query("rows", "upsert_rows").format(
        **_targets(table, arrays), assignments=arrays.assignments("EXCLUDED"), key=sql.Identifier(table.key)
    )
    return connection.execute(statement, arrays.parameters)


def _insert_missing(connection: Connection, table: Table, arrays: Arrays) -> Cursor:
    statement = query("rows", "insert_missing_rows").format(**_targets(table, arrays), key=sql.Identifier(table.key))
    return connection.execute(statement, arrays.parameters)


def _update(connection: Connection, table: Table, arrays: Arrays) -> Cursor:
    statement = query("rows", "update_rows").format(
        **_targets(table, arrays),
        assignments=arrays.assignments("new"),
        key=sql.Identifier(table.key),
        key_type=sql.SQL(table.column_type(table.key).name),
    )
    return connection.execute(statement, arrays.parameters)


def _targets(table: Table, arrays: Arrays) -> dict[str, sql.Composable]:
    return {
        "table": sql.Identifier(table.name),
        "columns": sql.SQL(", ").join([sql.Identifier(name) for name in arrays.columns]),
        "values": arrays.casts,
        "arrays": arrays.arrays,
        "names": arrays.names,
    }


def create_table(
    connection: Connection, name: str, key: str, columns: Mapping[str, str], merge: Mapping[str, str] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Create the table on one server or add what it lacks; all declared columns with types, and rules. Raises QueueError."""
    _check_declaration(name, key, columns)
    wanted = {column: column_type(sql_type).name for column, sql_type in columns.items()}
    check_rules(name, key, wanted, merge or {})
    ensure_catalog(connection)
    try:
        return in_short_transaction(connection, name, lambda: _declare(connection, name, key, wanted, merge or {}))
    except psycopg.errors.InsufficientPrivilege as error:
        raise not_allowed(error, connection.info.dsn) from error


def _declare(
    connection: Connection, name: str, key: str, wanted: dict[str, str], merge: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    connection.execute(query("catalog", "leave_our_schema"))
    _create_missing(connection, name, key, wanted)
    return _save(connection, name, key, wanted, merge)


def _create_missing(connection: Connection, name: str, key: str, wanted: Mapping[str, str]) -> None:
    if not column_types(connection, name):
        statement = query("catalog", "create_table").format(
            table=sql.Identifier(name), key=sql.Identifier(key), type=sql.SQL(wanted[key])
        )
        connection.execute(statement)
    _check_key(connection, name, key)
    _add_columns(connection, name, wanted)


def _save(
    connection: Connection, name: str, key: str, wanted: Mapping[str, str], merge: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Everything declared of a table, saved if that is more than was: who may not change it may still declare the same."""
    saved = connection.execute(query("catalog", "load_table"), {"name": name}).fetchone()
    _, earlier, earlier_rules = saved or (key, {}, {})
    declared = {**dict(earlier), **wanted}
    rules = _merged_rules(name, dict(earlier), earlier_rules, merge)
    if saved is None or (dict(earlier), earlier_rules) != (declared, rules):
        given = {"name": name, "key": key, "columns": Jsonb(list(declared.items())), "merge": Jsonb(rules)}
        connection.execute(query("catalog", "save_table"), given)
        grant_roles(connection)
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
    if column_type(columns[key]).name not in KEY_TYPES:
        raise QueueError(
            f"the key {key!r} of table {name} is {columns[key]}: keys are {', '.join(KEY_TYPES)}, "
            "whose text is the same everywhere, as rows are placed by it"
        )


def _check_key(connection: Connection, table: str, key: str) -> None:
    found = [name for (name,) in connection.execute(query("catalog", "primary_key"), {"table": table})]
    if found != [key]:
        raise QueueError(
            f"table {table} has the primary key ({', '.join(found) or 'none'}), not ({key}): "
            "declare it with its own key, or choose another table name"
        )


def _add_columns(connection: Connection, table: str, wanted: Mapping[str, str]) -> None:
    existing = column_types(connection, table)
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


def column_types(connection: Connection, table: str) -> dict[str, str]:
    """The columns a table has on this server, claim state included, with their types."""
    return dict(connection.execute(query("catalog", "column_types"), {"table": table}).fetchall())


def load_table(shards: Shards, name: str) -> Table:
    """A table declared earlier, by any process. Raises QueueError if there is none."""

    def load(connection: Connection) -> tuple[Any, ...] | None:
        if not catalog_exists(connection):
            return None
        return connection.execute(query("catalog", "load_table"), {"name": name}).fetchone()

    found = shards.catalog.run(load)
    if found is None:
        raise QueueError(f"no table {name!r} is declared in this database: declare it with db.table({name!r}, ...)")
    return Table(shards, name, found[0], dict(found[1]), found[2])


def table_names(connection: Connection) -> list[str]:
    """Every declared table, in the order of declaration."""
    if not catalog_exists(connection):
        return []
    return [name for (name,) in connection.execute(query("catalog", "list_tables"))]


def declared_stages(table: Table) -> list[Stage]:
    """The stages of a table, in the order of declaration."""
    declared = table.shards.catalog.run(lambda connection: list(connection.execute(query("catalog", "list_stages"))))
    return [load_stage(table, stage) for owner, stage in declared if owner == table.name]


def load_stage(table: Table, name: str) -> Stage:
    """A stage declared earlier, by any process. Raises QueueError if there is none."""
    found = table.shards.catalog.run(
        lambda connection: connection.execute(
            query("catalog", "load_stage"), {"table": table.name, "name": name}
        ).fetchone()
    )
    if found is None:
        raise QueueError(f"table {table.name} has no stage {name!r}: declare it with table.stage({name!r}, ...)")
    ready, writes, reads, batch, lease_seconds, order = found
    return Stage(
        table, name, ready=ready, writes=writes, batch=batch, lease_seconds=lease_seconds, reads=reads, order=order
    )
