"""Connections to Postgres: how a lost one is replaced, and its failures as sentences.

    Session.run(action) -- transient failure? -- yes --> revive the server, reconnect, run again until patience ends
                                              `-- no ---> the error itself

Transient: the server is starting, stopping, crashed or unreachable; a deadlock; a full disk. `action` must be safe to
run twice, because a commit whose answer was lost is run again: every statement of the claim protocol is (the token
makes the second completion a no-op), and so are upserts.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import conninfo, errors

from pleinair.krablet.queries import query
from pleinair.records.errors import ConfigError, DatabaseError

Connection = psycopg.Connection[tuple[Any, ...]]
Result = TypeVar("Result")

_CONFLICTS = (errors.DeadlockDetected, errors.SerializationFailure)
_OUTAGES = (
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.TooManyConnections,
    errors.DiskFull,
    # A statement refused in a pipeline takes what follows it along, but the driver counts that as prepared from then on.
    errors.InvalidSqlStatementName,
)
# A failed connection carries no SQLSTATE, only text; what is not among these may pass (starting up, refused, too many).
_CORRECT = "correct the DSN"
_AUTHENTICATE = "give its CA as sslrootcert, and as host the name in its certificate"
_PERMANENT = {
    "certificate verify failed": f"the server is not known to be the one you mean: {_AUTHENTICATE}",
    "does not match host name": f"the server is not the one you mean: {_AUTHENTICATE}",
    "root certificate file": f"the server cannot be told from others: {_AUTHENTICATE}",
    "no encryption": "the server wants TLS: give sslmode=verify-full and its CA as sslrootcert",
    "does not support SSL": "the server speaks no TLS: set ssl = on there",
    "password authentication failed": "correct user or password",
    "no password supplied": "give it in $PGPASSWORD, in ~/.pgpass or in the DSN",
    "no pg_hba.conf entry": "let this user and address in there, or correct the DSN",
    "authentication failed": _CORRECT,
    "does not exist": _CORRECT,
    "not permitted": _CORRECT,
}
"""What may be read in the message, and what to do about it; the first that fits counts."""

_LINE = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""A server that vanished is noticed after half a minute, not after the two hours that are usual; a DSN may say otherwise."""


class UnreachableError(DatabaseError):
    """Postgres cannot be reached now; another try may succeed."""


def describe(dsn: str) -> str:
    """The DSN for people: host, port, database and user, never the password."""
    parts = parse(dsn)
    shown = {name: parts[name] for name in ("host", "port", "dbname", "user") if parts.get(name)}
    return " ".join(f"{name}={value}" for name, value in shown.items()) or "the default server"


def parse(dsn: str) -> dict[str, Any]:
    """The parts of a connection string. Raises ConfigError, which does not quote it."""
    try:
        return conninfo.conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # The driver's message and traceback may quote the DSN, password and all.
        raise ConfigError(
            "the database DSN is not a connection string: write postgresql://user@host:5432/database"
        ) from None


def open_connection(dsn: str, application: str = "pleinair") -> Connection:
    """A connection in autocommit mode. Raises UnreachableError or DatabaseError, without the password."""
    where, said = describe(dsn), parse(dsn)
    unsaid = {name: value for name, value in _LINE.items() if name not in said}
    try:
        return psycopg.connect(conninfo.make_conninfo(dsn, application_name=application, **unsaid), autocommit=True)
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        for phrase, remedy in _PERMANENT.items():
            if phrase in reason:
                raise DatabaseError(f"Postgres refuses this login ({where}): {reason}; {remedy}") from error
        raise UnreachableError(
            f"Postgres cannot be reached ({where}): {reason}; start the server or correct host and port of the DSN"
        ) from error


def explained(error: psycopg.Error, dsn: str) -> DatabaseError:
    """A failure of the server as one sentence that names the server and the remedy."""
    where, reason = describe(dsn), " ".join(str(error).split())
    if isinstance(error, errors.DiskFull):
        return DatabaseError(f"the disk of Postgres is full ({where}): {reason}; free space and run this again")
    return DatabaseError(f"Postgres went away ({where}): {reason}; see its log, then run this again")


def not_allowed(error: psycopg.Error, dsn: str) -> DatabaseError:
    """What a login may not do, as one sentence."""
    return DatabaseError(
        f"this login may not do that ({describe(dsn)}): {str(error).splitlines()[0]}; connect as the owner of the "
        "tables, or let the owner give this one its rights with 'pleinair krablet role create'"
    )


def _is_served(dsn: str, connection: Connection) -> bool:
    """Whether the server works for a connection right now, as another one is told."""
    try:
        with closing(open_connection(dsn, "pleinair line check")) as another:
            found = another.execute(query("catalog", "backend_is_active"), {"pid": connection.info.backend_pid})
            return found.fetchone() == (True,)
    except (psycopg.Error, DatabaseError):
        return False


def _is_outage(error: psycopg.Error, connection: Connection) -> bool:
    return isinstance(error, _OUTAGES) or connection.broken or connection.closed


class Session:
    """One connection that replaces itself when the server goes away, for one thread at a time.

    `patience_seconds` bounds how long an outage is waited out; `revive` is called before every reconnection.
    """

    def __init__(
        self,
        dsn: str,
        *,
        patience_seconds: float = 5.0,
        revive: Callable[[], None] | None = None,
        application: str = "pleinair",
    ) -> None:
        self.dsn = dsn
        self._patience_seconds = patience_seconds
        self._revive = revive
        self._application = application
        self._connection: Connection | None = None
        self._asked_at: float | None = None
        self._lock = threading.RLock()

    def fresh(self, patience_seconds: float) -> Session:
        """Another session with the same server, for another thread or another patience."""
        return Session(self.dsn, patience_seconds=patience_seconds, revive=self._revive, application=self._application)

    def run(self, action: Callable[[Connection], Result]) -> Result:
        """What `action(connection)` returns; it runs again after a transient failure, so it must be safe to repeat."""
        with self._lock:
            deadline = time.monotonic() + self._patience_seconds
            pause = 0.05
            while True:
                try:
                    return self._attempt(action)
                except _CONFLICTS as conflict:
                    failure: DatabaseError = explained(conflict, self.dsn)
                except UnreachableError as unreachable:
                    failure = unreachable
                if time.monotonic() + pause > deadline:
                    raise failure
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, 2.0)

    def _attempt(self, action: Callable[[Connection], Result]) -> Result:
        connection = self._connected()
        self._asked_at = time.monotonic()
        try:
            return action(connection)
        except (psycopg.OperationalError, psycopg.InterfaceError, errors.InvalidSqlStatementName) as error:
            if not _is_outage(error, connection):
                raise
            self.close()
            raise UnreachableError(str(explained(error, self.dsn))) from error
        finally:
            self._asked_at = None

    def check_line(self, quiet_seconds: float) -> None:
        """End an action that has got no answer for so long, unless the server says that it is still at it.

        For another thread to call. The kernel notices a server that vanished; it does not notice a proxy or a firewall
        in between that keeps the connection open and forwards nothing.
        """
        asked_at, connection = self._asked_at, self._connection
        if asked_at is None or connection is None or time.monotonic() - asked_at < quiet_seconds:
            return
        if not _is_served(self.dsn, connection) and self._asked_at == asked_at:
            # The action's thread then finds its connection lost, and tries again as after any loss.
            with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            if self._revive is not None:
                self._revive()
            self._connection = open_connection(self.dsn, self._application)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
