"""What the database remembers of the funnel's clients: one function per query of `sql/funnel.sql`.

A flush is one round trip and one commit: the fence, the upserts and the failures go out together. The fence moves every
client from the number its first mutation follows to that of its last; if one is not there, the flush undoes itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psycopg

from pleinair.krablet.array_literals import array_literal
from pleinair.krablet.connections import Connection
from pleinair.krablet.funnel.batch import Advance, Run
from pleinair.krablet.funnel.plans import Statement
from pleinair.krablet.queries import query
from pleinair.krablet.shards import slot_bits

FENCED = "PF001"
_RETRIED_CLASSES = ("08", "25", "26", "40", "53", "55", "57", "58")
"""SQLSTATE classes that say something of the server's state, not of the mutations: they are tried again."""


@dataclass(frozen=True)
class Standing:
    """Where a client stands in the database."""

    incarnation: str
    applied: int
    failures: Mapping[int, str]


@dataclass(frozen=True)
class Flush:
    """What one commit writes."""

    advances: Sequence[Advance]
    statements: Sequence[Statement]
    failures: Sequence[tuple[str, int, str]]
    """Client, number and reason of the mutations that were refused."""
    confirmed: Mapping[str, int]
    """Clients that have remembered failures, with the number up to which they know their answers."""


def is_fenced(error: psycopg.Error) -> bool:
    """Somebody else moved a client of the flush."""
    return error.sqlstate == FENCED


def is_refusal(error: psycopg.Error) -> bool:
    """The database refuses a mutation of this flush and would refuse it again."""
    if error.sqlstate is None:  # the driver's own: it cannot send a value, or (operational) has no connection
        return not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return not is_fenced(error) and not error.sqlstate.startswith(_RETRIED_CLASSES)


def claim_clients(connection: Connection, incarnations: Mapping[str, str]) -> None:
    """Let these client programs begin, and end earlier programs of the same names."""
    given = {"clients": list(incarnations), "incarnations": list(incarnations.values())}
    with connection.pipeline():
        connection.execute(query("funnel", "be_durable"))
        connection.execute(query("funnel", "claim_clients"), given)


def load_clients(connection: Connection, clients: Iterable[str]) -> dict[str, Standing]:
    """Where clients stand; those unknown are missing."""
    named = {"clients": sorted(set(clients))}
    with connection.pipeline():
        standing = connection.execute(query("funnel", "load_clients"), named)
        failed = connection.execute(query("funnel", "load_failures"), named)
    failures: dict[str, dict[int, str]] = {}
    for client, number, reason in failed.fetchall():
        failures.setdefault(client, {})[number] = reason
    return {
        client: Standing(incarnation, applied, failures.get(client, {}))
        for client, incarnation, applied in standing.fetchall()
    }


def write_flush(connection: Connection, flush: Flush) -> None:
    """One round trip, one transaction. Raises the error of the first statement that the database refuses.

    Nothing here is prepared: the driver would believe in a statement that it prepared in a flush that was undone.
    """
    with connection.pipeline():
        _advance_clients(connection, flush.advances)
        if slots := {slot for statement in flush.statements for slot in statement.slots}:
            connection.execute(query("shards", "require_slots"), {"wanted": slot_bits(slots)}, prepare=False)
        for statement in flush.statements:
            connection.execute(statement.text, statement.parameters, prepare=False)
        if flush.failures:
            record_failures(connection, flush.failures)
        if flush.confirmed:
            forget_failures(connection, flush.confirmed)


def _advance_clients(connection: Connection, moved: Sequence[Advance]) -> None:
    given = {
        "clients": array_literal([advance.client.name for advance in moved], "text"),
        "incarnations": array_literal([advance.client.incarnation for advance in moved], "text"),
        "expected": array_literal([advance.expected for advance in moved], "bigint"),
        "reached": array_literal([advance.reached for advance in moved], "bigint"),
    }
    connection.execute(query("funnel", "advance_clients"), given, prepare=False)


def record_failures(connection: Connection, failures: Sequence[tuple[str, int, str]]) -> None:
    """Remember the reasons as the answers to these mutations."""
    clients, numbers, reasons = map(list, zip(*failures, strict=True))
    given = {"clients": clients, "numbers": numbers, "reasons": reasons}
    connection.execute(query("funnel", "record_failures"), given, prepare=False)


def forget_failures(connection: Connection, confirmed: Mapping[str, int]) -> None:
    """Drop the failures up to the given numbers: their clients know of them."""
    given = {"clients": list(confirmed), "confirmed": list(confirmed.values())}
    connection.execute(query("funnel", "forget_failures"), given, prepare=False)


def forget_idle_clients(connection: Connection, connected: Sequence[str], retention_seconds: float) -> int:
    """Drop clients not seen for so long, but none that is connected; how many."""
    connection.execute(query("funnel", "touch_clients"), {"clients": list(connected)})
    return connection.execute(query("funnel", "forget_clients"), {"seconds": retention_seconds}).rowcount


def failures_of(runs: Iterable[Run]) -> list[tuple[str, int, str]]:
    """The refused mutations of a flush as `Flush.failures`."""
    return [(run.client.name, number, reason) for run in runs for number, reason in run.failures.items()]
