"""Jobs of pluck when slots move: what is still to do for their rows goes with them.

    source, in the commit that hands the slots over     target, before that commit
    open batches and failures of these slots  --------> batches of these slots alone, not to be claimed
                                                        before the slots are owned here; the job runs again if it ended

So a row that moves is in a batch of the one shard or of the other, and a job never looks done in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pleinair.krablet.connections import Connection, Session
from pleinair.krablet.queries import query


def carry_jobs(source: Connection, target: Session, slots: str, keys: Mapping[str, str]) -> None:
    """Within the transaction on the source that hands `slots` (as bits) over. `keys` are those of the tables that move."""
    named = _named(slots, keys)
    states: dict[Any, str] = dict(source.execute(query("pluck", "job_states"), named).fetchall())
    if not states:
        return
    batches = source.execute(query("pluck", "leaving_batches"), named).fetchall()
    failures = source.execute(query("pluck", "leaving_errors"), named).fetchall()
    known = target.run(partial(_receive, named=named, batches=batches, failures=failures, states=states))
    left = {**named, "jobs": list(known)}
    source.execute(query("pluck", "forget_errors_that_left"), left)
    source.execute(query("pluck", "trim_batches"), left)
    source.execute(query("pluck", "forget_batches_that_left"), left)
    source.execute(query("pluck", "note_incomplete"), {"jobs": sorted({batch[0] for batch in batches} - known)})


def _receive(
    connection: Connection,
    *,
    named: Mapping[str, Any],
    batches: Sequence[tuple[Any, ...]],
    failures: Sequence[tuple[Any, ...]],
    states: Mapping[Any, str],
) -> set[Any]:
    """The jobs that this server has; doing it again replaces what was received."""
    with connection.transaction():
        _forget_received(connection, named)
        there = connection.execute(query("pluck", "known_jobs"), {"jobs": list(states)}).fetchall()
        known = {job for (job,) in there}
        connection.execute(query("pluck", "leave_out"), {**named, "jobs": list(known)})
        with connection.cursor() as cursor:
            cursor.executemany(query("pluck", "receive_batch"), [batch for batch in batches if batch[0] in known])
            cursor.executemany(query("pluck", "receive_error"), [row for row in failures if row[0] in known])
        for job in sorted({batch[0] for batch in batches} & known):
            connection.execute(query("pluck", "reopen_job"), {"job": job, "state": states[job]})
    return known


def forget_received(connection: Connection, slots: str, keys: Mapping[str, str]) -> None:
    """On the target of a move that did not happen: drop what was received."""
    _forget_received(connection, _named(slots, keys))


def _named(slots: str, keys: Mapping[str, str]) -> dict[str, Any]:
    return {"slots": slots, "tables": list(keys), "keys": list(keys.values())}


def _forget_received(connection: Connection, named: Mapping[str, Any]) -> None:
    connection.execute(query("pluck", "forget_received_batches"), named)
    connection.execute(query("pluck", "forget_received_errors"), named)
