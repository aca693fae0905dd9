"""The logins of a warehouse and what each may do: no more than its statements need.

    owner     declares tables and stages, moves slots, gives the others their rights
    worker    reads the tables that have stages; writes the columns its stages write, and the state of claims
    funnel    reads and writes the declared columns of declared tables, and what it remembers of its clients
    pluck     submits and does jobs: reads declared tables, writes their declared columns
    reader    reads the tables of people
    metrics   reads the columns that counting needs, and the log of work

`create_role` may be repeated: it takes what is too much and gives what is missing. Roles are remembered on every server,
so a declaration gives them their rights to what it declares, in its own transaction (`grant_roles`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import psycopg
from psycopg import sql

from pleinair.krablet.connections import Connection, describe
from pleinair.krablet.queries import comma_separated, query
from pleinair.records.errors import ConfigError, DatabaseError

Kind = Literal["owner", "worker", "funnel", "pluck", "reader", "metrics"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def create_role(connection: Connection, kind: Kind, role: str, password: str | None = None) -> None:
    """Make a login of this kind on one server, or give one that exists exactly the rights of the kind.

    Run by the owner of the tables; an owner is made by an administrator. The password leaves this process as a SCRAM
    verifier only; None leaves it as it is. Raises ConfigError or DatabaseError, and then nothing has changed.
    """
    if kind not in KINDS:
        raise ConfigError(f"there is no kind of role {kind!r}: use one of {', '.join(KINDS)}")
    try:
        with connection.transaction():
            connection.execute(query("catalog", "lock_schema"))
            _ensure_login(connection, role, password)
            if kind == "owner":
                _make_owner(connection, role)
            else:
                _refuse_powers(connection, kind, role)
                connection.execute(query("roles", "record_role"), {"role": role, "kind": kind})
                _let_in(connection, role)
                _settle_in(connection, kind, role)
                _grant(connection, kind, role)
    except psycopg.errors.InsufficientPrivilege as error:
        raise DatabaseError(
            f"the role {connection.info.user} may not make {role} a {kind} ({describe(connection.info.dsn)}): "
            f"{_first_line(error)}; connect as the owner of the tables, and where that one may not create roles, "
            f"let an administrator run CREATE ROLE {role} LOGIN first"
        ) from error


def grant_roles(connection: Connection) -> None:
    """Give every role what it needs of what is declared now; part of the transaction that declares."""
    for kind, role in list_roles(connection):
        _grant(connection, kind, role)


def list_roles(connection: Connection) -> list[tuple[Kind, str]]:
    """The roles made here, each with its kind first."""
    return [(kind, role) for role, kind in connection.execute(query("roles", "list_roles"))]


def _first_line(error: psycopg.Error) -> str:
    return str(error).splitlines()[0]


def _send(connection: Connection, name: str, role: str, **parts: sql.Composable) -> None:
    connection.execute(query("roles", name).format(role=sql.Identifier(role), **parts))


def _ensure_login(connection: Connection, role: str, password: str | None) -> None:
    if connection.execute(query("roles", "role_exists"), {"role": role}).fetchone() != (True,):
        _send(connection, "create_role", role)
    if password is not None:
        verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
        _send(connection, "set_password", role, password=sql.Literal(verifier.decode()))


def _refuse_powers(connection: Connection, kind: str, role: str) -> None:
    found = connection.execute(query("roles", "powers"), {"role": role}).fetchone()
    if found is not None and found[0] is not None:
        raise ConfigError(f"the role {role} {found[0]}, and a {kind} may do less: choose another name")


def _make_owner(connection: Connection, role: str) -> None:
    found = connection.execute(query("roles", "catalog_owner"), {"role": role}).fetchone()
    if found is not None and not found[1]:
        raise ConfigError(f"this warehouse belongs to the role {found[0]}: one role declares all of it; use that one")
    _send(connection, "grant_owner", role, database=sql.Identifier(connection.info.dbname))


def _let_in(connection: Connection, role: str) -> None:
    found = connection.execute(query("roles", "grant_connect")).fetchone()
    assert found is not None
    may_let_in, database = found
    if may_let_in:
        _send(connection, "let_in", role, database=sql.Identifier(database))


def _settle_in(connection: Connection, kind: str, role: str) -> None:
    """Settings of the role itself: where it finds tables, and for a reader that a transaction reads."""
    found = connection.execute(query("roles", "search_path")).fetchone()
    if found is not None:
        database, path = found
        _send(connection, "search_there", role, database=sql.Identifier(database), path=sql.SQL(path))
    if kind == "reader":
        _if_allowed(connection, lambda: _send(connection, "default_to_read_only", role))
        for (function,) in connection.execute(query("roles", "writing_functions")).fetchall():
            connection.execute(query("roles", "revoke_function").format(function=sql.SQL(function)))
    if kind == "metrics" and connection.execute(query("roles", "statistics_may_be_given")).fetchone() == (True,):
        _send(connection, "grant_statistics", role)


def _if_allowed(connection: Connection, action: Callable[[], None]) -> None:
    try:
        with connection.transaction():
            action()
    except psycopg.errors.InsufficientPrivilege:
        return


def _grant(connection: Connection, kind: str, role: str) -> None:
    """What the kind needs and, of the catalog and the declared tables, nothing else."""
    for place in connection.execute(query("roles", "held_relations"), {"role": role}).fetchall():
        _send(connection, "revoke_relation", role, table=sql.Identifier(*place))
    _send(connection, "grant_catalog", role)
    _send(connection, f"grant_{kind}", role)
    _GRANT_TABLES[kind](connection, role)


def _grant_stages(connection: Connection, role: str) -> None:
    for table, written, _ in connection.execute(query("roles", "declared_stages")).fetchall():
        _send(connection, "grant_select", role, table=sql.Identifier(table))
        _send(connection, "grant_updates", role, table=sql.Identifier(table), columns=_names(written))


def _grant_counting(connection: Connection, role: str) -> None:
    for table, _, counted in connection.execute(query("roles", "declared_stages")).fetchall():
        _send(connection, "grant_counted", role, table=sql.Identifier(table), columns=_names(counted))


def _grant_writing(connection: Connection, role: str) -> None:
    for table, key, columns in connection.execute(query("roles", "declared_tables")).fetchall():
        names = [name for name, _ in columns]
        _send(connection, "grant_written", role, table=sql.Identifier(table), columns=_names(names))
        if values := [name for name in names if name != key]:
            _send(connection, "grant_updates", role, table=sql.Identifier(table), columns=_names(values))


def _grant_jobs(connection: Connection, role: str) -> None:
    _grant_writing(connection, role)
    for table, *_ in connection.execute(query("roles", "declared_tables")).fetchall():
        _send(connection, "grant_select", role, table=sql.Identifier(table))


def _grant_reading(connection: Connection, role: str) -> None:
    for (schema,) in connection.execute(query("roles", "readable_schemas")).fetchall():
        _send(connection, "grant_schema", role, schema=sql.Identifier(schema))
    for place in connection.execute(query("roles", "readable_tables")).fetchall():
        _send(connection, "grant_select", role, table=sql.Identifier(*place))
    _send(connection, "grant_later_schemas", role)
    _send(connection, "grant_later_tables", role)


_GRANT_TABLES: dict[str, Callable[[Connection, str], None]] = {
    "worker": _grant_stages,
    "funnel": _grant_writing,
    "pluck": _grant_jobs,
    "reader": _grant_reading,
    "metrics": _grant_counting,
}


def _names(columns: Iterable[Any]) -> sql.Composed:
    return comma_separated([sql.Identifier(name) for name in columns])
