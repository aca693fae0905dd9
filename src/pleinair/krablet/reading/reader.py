"""The role that reads: what it is given, and what a role must not be to serve other people's SQL.

A read-only transaction stops writes whoever asks. It does not stop a superuser's functions that read files of the
server or signal its processes, so the service takes no such role.
"""

from __future__ import annotations

from psycopg import sql

from pleinair.krablet.connections import Connection
from pleinair.krablet.queries import query
from pleinair.krablet.reading.pools import ReadPools
from pleinair.krablet.reading.requests import ReadError

READER = "pleinair_reader"


def make_reader(connection: Connection, role: str = READER, password: str | None = None) -> None:
    """Create the role if need be, with SELECT on all tables there are and, made by this login, will be.

    Run it as the owner of the tables, once per database; as a superuser it also closes the functions that write in a
    read-only transaction (PostgreSQL 15 and older). May be repeated.
    """
    name = sql.Identifier(role)
    with connection.transaction():
        if connection.execute(query("reader", "role_exists"), {"role": role}).fetchone() != (True,):
            connection.execute(query("reader", "create_reader").format(role=name))
        if password is not None:
            connection.execute(query("reader", "set_password").format(role=name, password=sql.Literal(password)))
        connection.execute(query("reader", "default_to_read_only").format(role=name))
        for (schema,) in connection.execute(query("reader", "readable_schemas")).fetchall():
            for grant in ("grant_schema", "grant_tables"):
                connection.execute(query("reader", grant).format(schema=sql.Identifier(schema), role=name))
        for grant in ("grant_later_schemas", "grant_later_tables"):
            connection.execute(query("reader", grant).format(role=name))
        _share_search_path(connection, name)
        if _powers(connection) == "is a superuser":
            for (function,) in connection.execute(query("reader", "writing_functions")).fetchall():
                connection.execute(query("reader", "revoke_function").format(function=sql.SQL(function)))


def _share_search_path(connection: Connection, role: sql.Identifier) -> None:
    found = connection.execute(query("reader", "search_path")).fetchone()
    assert found is not None
    database, path = found
    statement = query("reader", "search_there")
    connection.execute(statement.format(role=role, database=sql.Identifier(database), path=sql.SQL(path)))


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
                f"make a reader with `pleinair krablet reader --dsn ...` and give the DSN of {READER}"
            )
