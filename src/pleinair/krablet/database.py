"""The warehouse: one Postgres, embedded or given by its DSN, holding declared tables and queue stages."""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from pleinair.krablet.connections import Connection, Session, describe, open_connection
from pleinair.krablet.embedded import EmbeddedServer, open_server
from pleinair.krablet.queries import query
from pleinair.krablet.stages import Stage
from pleinair.krablet.tables import Table, create_table, load_stage, load_table


class Database:
    """An open warehouse; made by `connect`, closed by `close` or as a context manager."""

    def __init__(self, dsn: str, server: EmbeddedServer | None = None) -> None:
        self.dsn = dsn
        self.server = server
        revive = None if server is None else server.ensure_running
        self.session = Session(dsn, revive=revive)

    def __repr__(self) -> str:
        return f"Database({describe(self.dsn)})"

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; an embedded server stops when the last process that opened it leaves."""
        atexit.unregister(self.close)
        self.session.close()
        if self.server is not None:
            self.server.leave()

    def connection(self) -> Connection:
        """A new connection for statements of your own, in autocommit mode; close it."""
        return open_connection(self.dsn)

    def table(
        self, name: str, *, key: str, columns: Mapping[str, str], merge: Mapping[str, str] | None = None
    ) -> Table:
        """Declare a table: created if new, extended by the columns it lacks.

        `merge` says by which rule the funnel merges a column: last (if not given), max, min, sum, coalesce, json_merge
        or union. Raises QueueError if a type, a rule or the key differs from what is there.
        """
        declared, rules = self.session.run(lambda connection: create_table(connection, name, key, columns, merge or {}))
        return Table(self.session, name, key, declared, rules)

    def declared_table(self, name: str) -> Table:
        """A table declared earlier, by any process. Raises QueueError if there is none."""
        return load_table(self.session, name)

    def declared_stages(self) -> list[Stage]:
        """Every stage ever declared here, in the order of declaration."""
        names = self.session.run(_stage_names)
        tables = {table: self.declared_table(table) for table, _ in names}
        return [load_stage(tables[table], stage) for table, stage in names]


def _stage_names(connection: Connection) -> list[tuple[str, str]]:
    if connection.execute(query("catalog", "catalog_exists")).fetchone() != (True,):
        return []
    return [(table, stage) for table, stage in connection.execute(query("catalog", "list_stages"))]


def connect(dsn: str | None = None, *, directory: Path | None = None) -> Database:
    """Open a warehouse: the Postgres at `dsn`, or an embedded one with its data in `directory` (default: the user's).

    An embedded server is started if it is not running and attached to if it is. Raises DatabaseError, ConfigError, or
    MissingExtraError when no PostgreSQL is installed.
    """
    if dsn is not None:
        database = Database(dsn)
        database.session.run(lambda connection: connection.execute("SELECT 1"))
    else:
        server = open_server(directory)
        database = Database(server.dsn, server)
    atexit.register(database.close)
    return database
