"""Schema changes, each recorded on every server that has it, so that one that was interrupted goes on where it was.

    sql/migrations/NNNN_name.pre.sql    what new code needs; applied before it is used, by whoever connects first
                  /NNNN_name.post.sql   what old code needed; applied by hand when no old code runs any more
    Database.migrate("name", text)      statements of your own, on all shards

One migration is one transaction per server. A fresh server gets all of them in order; their sum is the schema.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

import psycopg

from pleinair.krablet.connections import Connection, describe
from pleinair.krablet.queries import query
from pleinair.krablet.roles import grant_roles
from pleinair.records.errors import DatabaseError

Kind = Literal["pre", "post"]


@cache
def packaged(kind: Kind) -> dict[str, str]:
    """The migrations that come with this version, by name, in order."""
    folder = resources.files("pleinair.krablet").joinpath("sql", "migrations")
    found = sorted((entry.name, entry) for entry in folder.iterdir() if entry.name.endswith(f".{kind}.sql"))
    return {name.removesuffix(".sql"): entry.read_text("ascii") for name, entry in found}


def catalog_exists(connection: Connection) -> bool:
    """Whether anything was ever declared on this server."""
    return _true(connection, "migrations_exist") or _true(connection, "first_floor_exists")


def ensure_catalog(connection: Connection) -> None:
    """Bring the catalog of this server to today's form; costs one query when it is. Raises DatabaseError if not allowed."""
    if packaged("pre").keys() <= applied(connection):
        return
    try:
        for name, text in packaged("pre").items():
            apply(connection, name, text)
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"the catalog of this server is not of today's form, and the role {connection.info.user} may not change it "
            f"({describe(connection.info.dsn)}): run 'pleinair krablet status' once as the owner"
        ) from error
    with connection.transaction():
        connection.execute(query("catalog", "lock_schema"))
        grant_roles(connection)


def applied(connection: Connection) -> set[str]:
    """Names of the migrations this server has."""
    if not _true(connection, "migrations_exist"):
        return set()
    return {name for (name,) in connection.execute(query("catalog", "list_migrations"))}


def apply(connection: Connection, name: str, text: str) -> bool:
    """Apply one migration, in one transaction; False when this server has it already."""
    with connection.transaction():
        connection.execute(query("catalog", "lock_schema"))
        connection.execute(query("catalog", "create_migrations"))
        # A catalog from before migrations were recorded is what the first one makes.
        made_before = name == next(iter(packaged("pre"))) and _true(connection, "first_floor_exists")
        if name in applied(connection):
            return False
        if not made_before:
            connection.execute(text.encode())
        connection.execute(query("catalog", "record_migration"), {"name": name})
    return True


def _true(connection: Connection, name: str) -> bool:
    return connection.execute(query("catalog", name)).fetchone() == (True,)
