"""Named SQL queries, kept as SQL in `sql/*.sql`.

A file holds sections `-- name: claim_rows`, each one query with its own comment. Identifiers go in as `{name}` and
values as `%(name)s`, both through psycopg; text a developer wrote (a `ready` condition) goes in through `condition`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

from psycopg import sql

from pleinair.records.errors import QueueError

_NAME = re.compile(r"[a-z_][a-z0-9_]*")


@cache
def _sections(file: str) -> dict[str, str]:
    text = resources.files("pleinair.krablet").joinpath("sql", f"{file}.sql").read_text("ascii")
    named = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    bodies = ("\n".join(line for line in body.splitlines() if not line.startswith("--")) for body in named[1::2])
    return {name: body.strip().removesuffix(";") for name, body in zip(named[::2], bodies, strict=True)}


def query(file: str, name: str) -> sql.SQL:
    """The query `name` of `sql/<file>.sql`, to be given its identifiers with `.format`."""
    return sql.SQL(_sections(file)[name])


def condition(text: str) -> sql.SQL:
    """A condition written by a developer, for a statement that is executed with parameters: its `%` are doubled."""
    return sql.SQL(text.replace("%", "%%"))


def checked_name(kind: str, name: str, longest: int) -> str:
    """`name`, if it can stand unquoted in SQL and leaves room for the names derived from it; else QueueError."""
    if not _NAME.fullmatch(name) or len(name) > longest:
        raise QueueError(
            f"{kind} name {name!r} is not usable: lower-case letters, digits and underscores, "
            f"a letter first, at most {longest} characters"
        )
    return name


def comma_separated(parts: Sequence[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)
