"""The role that reads: how it is made, and what a role must not be to serve other people's SQL.

A read-only transaction stops writes whoever asks. It does not stop a superuser's functions that read files of the
server or signal its processes, so the service takes no such role.
"""

from __future__ import annotations

from pleinair.krablet.connections import Connection
from pleinair.krablet.migrations import ensure_catalog
from pleinair.krablet.queries import query
from pleinair.krablet.reading.pools import ReadPools
from pleinair.krablet.reading.requests import ReadError
from pleinair.krablet.roles import create_role

READER = "pleinair_reader"


def make_reader(connection: Connection, role: str = READER, password: str | None = None) -> None:
    """Create the role if need be, with SELECT on all tables there are and, made by this login, will be.

    Run it as the owner of the tables, once per database; as a superuser it also closes the functions that write in a
    read-only transaction (PostgreSQL 15 and older). May be repeated.
    """
    ensure_catalog(connection)
    create_role(connection, "reader", role, password)


def _powers(connection: Connection) -> str | None:
    found = connection.execute(query("reader", "powers")).fetchone()
    return None if found is None else found[0]


def require_readers(pools: ReadPools) -> None:
    """Raises ReadError naming the shard whose login is more than a reader."""
    for pool in pools.shards:
        connection, _ = pool.take()
        try:
            powers, user = _powers(connection), connection.info.user
        finally:
            pool.give_back(connection)
        if powers is not None:
            raise ReadError(
                f"shard {pool.name}: the role {user} {powers}, and this service runs other people's SQL: "
                f"make a reader with `pleinair krablet role create reader {READER}` and give its DSN"
            )
