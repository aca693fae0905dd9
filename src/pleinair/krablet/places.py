"""Where a shard's server is, as the catalog says it, and how to open it.

embedded:NAME            a server of our own, its data in NAME beside the first shard's directory
postgresql://host/...    a server of yours; without a login, which every process brings along
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from psycopg import conninfo

from pleinair.krablet.connections import Session, parse
from pleinair.krablet.postgres.embedded import EmbeddedServer, open_server, running
from pleinair.records.errors import DatabaseError

_EMBEDDED = "embedded:"
_LOGIN = (
    "user", "password", "passfile", "sslcert", "sslkey", "sslpassword",
    "scram_client_key", "scram_server_key", "oauth_client_id", "oauth_client_secret",
)  # fmt: skip
"""Who connects: never stored, or a worker would find the owner's name there and come as the owner."""
_SHARED = (*_LOGIN, "sslmode", "sslrootcert")
"""What a shard's DSN takes from the first one's where it says nothing itself."""


def embedded_place(name: str) -> str:
    """The place of an embedded server whose directory is called `name`."""
    return _EMBEDDED + name


def public_place(dsn: str) -> str:
    """A DSN as it may be stored and shown; a place as it is stored today, where it was stored before."""
    if dsn.startswith(_EMBEDDED):
        return dsn
    return conninfo.make_conninfo("", **{key: value for key, value in parse(dsn).items() if key not in _LOGIN})


def embedded_directory(place: str, first: Path | None) -> Path | None:
    """The directory of an embedded place; None for a DSN. Raises DatabaseError where the first shard is not embedded."""
    if not place.startswith(_EMBEDDED):
        return None
    if first is None:
        raise DatabaseError(
            f"a shard of this warehouse is embedded ({place}) and its first one was opened by DSN: "
            "open the warehouse by its directory"
        )
    return first.parent / place.removeprefix(_EMBEDDED)


def opener(
    catalog_dsn: str,
    first: Path | None,
    *,
    attach: Callable[[EmbeddedServer], None] | None,
    patience_seconds: float = 5.0,
    application: str = "pleinair",
    secrets: Mapping[str, str] | None = None,
) -> Callable[[str], Session]:
    """A function from a place to a session with it.

    With `attach`, embedded servers are started and handed to it, to be left at the end; without, as in a worker, they
    are taken to be kept running by whoever started the worker. `secrets` gives full DSNs by place.
    """

    attached: dict[str, EmbeddedServer] = {}

    def open_place(place: str) -> Session:
        directory, revive = embedded_directory(place, first), None
        if directory is None:
            dsn = (secrets or {}).get(public_place(place)) or _completed(public_place(place), catalog_dsn)
        elif attach is not None:
            if place not in attached:
                attached[place] = open_server(directory)
                attach(attached[place])
            server = attached[place]
            dsn, revive = server.dsn, server.ensure_running
        else:
            found = running(directory)
            if found is None:
                raise DatabaseError(f"the shard in {directory} is not running: start it with 'pleinair krablet up'")
            dsn = found.dsn
        return Session(dsn, patience_seconds=patience_seconds, revive=revive, application=application)

    return open_place


def _completed(place: str, catalog_dsn: str) -> str:
    given = {key: value for key, value in parse(catalog_dsn).items() if key in _SHARED and value is not None}
    return conninfo.make_conninfo("", **{**given, **parse(place)})
