"""The warehouse: Postgres servers, embedded or given by their DSNs, holding declared tables and queue stages."""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.krablet.closing import Closing
from pleinair.krablet.connections import Connection, Session, describe, open_connection
from pleinair.krablet.migrations import apply, catalog_exists, ensure_catalog
from pleinair.krablet.moves import join_shards, resume_moves
from pleinair.krablet.places import embedded_place, opener, public_place
from pleinair.krablet.postgres.embedded import EmbeddedServer, open_server
from pleinair.krablet.queries import query
from pleinair.krablet.roles import Kind, create_role
from pleinair.krablet.shards import Shards
from pleinair.krablet.stages import Stage
from pleinair.krablet.tables import Table, create_table, load_stage, load_table
from pleinair.records.errors import ConfigError

if TYPE_CHECKING:
    from pleinair.krablet.pluck import Pluck
    from pleinair.krablet.reading.scan import BatchStream


class Database(Closing):
    """An open warehouse; made by `connect`, closed by `close` or as a context manager."""

    def __init__(
        self, dsn: str, server: EmbeddedServer | None = None, secrets: Mapping[str, str] | None = None
    ) -> None:
        """`secrets` gives full DSNs by the place under which the catalog knows a shard."""
        self.dsn = dsn
        self.servers = [] if server is None else [server]
        self.secrets = dict(secrets or {})
        self.session = Session(dsn, revive=None if server is None else server.ensure_running)
        open_place = opener(dsn, self.directory, attach=self.servers.append, secrets=self.secrets)
        try:
            self.shards = Shards(self.session, open_place, resume_moves)
        except BaseException:
            self.session.close()
            raise

    @property
    def directory(self) -> Path | None:
        """Where the first shard's embedded server keeps its data; None for a server of yours."""
        return self.servers[0].directory if self.servers else None

    def __repr__(self) -> str:
        return f"Database({describe(self.dsn)})"

    def close(self) -> None:
        """Close all connections; an embedded server stops when the last process that opened it leaves."""
        atexit.unregister(self.close)
        self.shards.close()
        for server in reversed(self.servers):
            server.leave()

    def connection(self) -> Connection:
        """A new connection with the first shard for statements of your own, in autocommit mode; close it."""
        return open_connection(self.dsn)

    def add_embedded(self, count: int = 1) -> None:
        """Take `count` more embedded servers in, beside the first; they join as `connect` says."""
        if self.directory is None:
            raise ConfigError("the first shard is a server of yours: add others by their DSNs")
        number = max(shard.number for shard in self.shards)
        names = [f"{self.directory.name}-{number + step}" for step in range(1, count + 1)]
        join_shards(self.shards, [embedded_place(name) for name in names])

    def add_server(self, dsn: str) -> None:
        """Take a server of yours in; it joins as `connect` says."""
        self.secrets[public_place(dsn)] = dsn
        join_shards(self.shards, [public_place(dsn)])

    def migrate(self, name: str, text: str) -> int:
        """Run SQL statements once on every shard, one transaction each; the number of shards that did not have them yet.

        Interrupted, it goes on with the shards that are left when it is called again under the same name.
        """
        return sum(self.shards.each(lambda connection: apply(connection, name, text)))

    def create_role(self, kind: Kind, role: str, password: str | None = None) -> None:
        """Make a login of this kind on every shard, with exactly its rights; see `krablet.roles`. May be repeated."""

        def create(connection: Connection) -> None:
            if kind != "owner":
                ensure_catalog(connection)
            create_role(connection, kind, role, password)

        self.shards.each(create)

    def table(
        self, name: str, *, key: str, columns: Mapping[str, str], merge: Mapping[str, str] | None = None
    ) -> Table:
        """Declare a table: created if new, extended by the columns it lacks.

        `merge` says by which rule the funnel merges a column: last (if not given), max, min, sum, coalesce, json_merge
        or union. Raises QueueError if a type, a rule or the key differs from what is there.
        """
        declared = self.shards.each(lambda connection: create_table(connection, name, key, columns, merge))
        return Table(self.shards, name, key, *declared[0])

    def scan(
        self,
        table: str,
        *,
        where: str = "TRUE",
        columns: Sequence[str] | None = None,
        order_by: str | Sequence[str] = (),
        limit: int | None = None,
        aggregate: Mapping[str, str] | None = None,
        group_by: str | Sequence[str] = (),
        params: Any = None,
    ) -> BatchStream:
        """The rows of all shards that match, or aggregates of them, as a stream of Arrow batches; close it, or read it all.

        All shards are read at once. The arguments are those of ScanRequest. Raises ReadError, UnreachableError.
        """
        from pleinair.krablet.reading.requests import ScanRequest
        from pleinair.krablet.reading.warehouse import read_shards

        request = ScanRequest(
            table=table, where=where, columns=columns, order_by=order_by, limit=limit, aggregate=aggregate or {},
            group_by=group_by, params=params,
        )  # fmt: skip
        return read_shards(self.shards, request)

    def pluck(self, table: str, key: str, where: str = "TRUE") -> Pluck:
        """The rows of a table that match, to run a function over: `db.pluck(...).map(function)`. See `krablet.pluck`."""
        from pleinair.krablet.pluck import pluck

        return pluck(self, table, key, where)

    def declared_table(self, name: str) -> Table:
        """A table declared earlier, by any process. Raises QueueError if there is none."""
        return load_table(self.shards, name)

    def declared_stages(self) -> list[Stage]:
        """Every stage ever declared here, in the order of declaration."""
        names = self.session.run(_stage_names)
        tables = {table: self.declared_table(table) for table, _ in names}
        return [load_stage(tables[table], stage) for table, stage in names]


def _stage_names(connection: Connection) -> list[tuple[str, str]]:
    if not catalog_exists(connection):
        return []
    return [(table, stage) for table, stage in connection.execute(query("catalog", "list_stages"))]


def connect(dsn: str | Sequence[str] | None = None, *, directory: Path | None = None) -> Database:
    """Open a warehouse: the Postgres at `dsn`, or an embedded one with its data in `directory` (default: the user's).

    Several DSNs are its shards, the first of which holds the catalog; a warehouse without rows is spread over them, and
    one that has rows takes new ones in empty (`pleinair krablet shard rebalance` moves rows there). One DSN opens all
    shards its catalog names. An embedded server is started if it is not running and attached to if it is. Raises
    DatabaseError, ConfigError, or MissingExtraError when no PostgreSQL is installed.
    """
    if dsn is None:
        server = open_server(directory)
        database = Database(server.dsn, server)
    else:
        database = _connect_all([dsn] if isinstance(dsn, str) else list(dsn))
    atexit.register(database.close)
    return database


def _connect_all(dsns: Sequence[str]) -> Database:
    others = {public_place(dsn): dsn for dsn in dsns[1:]}
    database = Database(dsns[0], secrets=others)
    try:
        database.session.run(lambda connection: connection.execute("SELECT 1"))
        join_shards(database.shards, list(others))
    except BaseException:
        database.close()
        raise
    return database
