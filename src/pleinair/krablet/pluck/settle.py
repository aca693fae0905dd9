"""How a call's results are written: values, failures and the batch's new beginning in one commit, under its token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from pleinair.krablet.column_types import ColumnType, column_type
from pleinair.krablet.connections import Connection, Session
from pleinair.krablet.pluck.jobs import Batch, JobSpec
from pleinair.krablet.pluck.source import Source
from pleinair.krablet.pluck.wire import Failure, Outcome, failure_of
from pleinair.krablet.queries import query
from pleinair.krablet.rows import Arrays
from pleinair.krablet.shards import slot_of, slots_elsewhere


@dataclass(frozen=True)
class Call:
    """Part of a batch that was done: its outcomes by key as text, the last key, and whether the batch ends with it."""

    batch: Batch
    outcomes: Mapping[str, Outcome]
    after: str | None
    last: str | None
    ends: bool


def settle(session: Session, spec: JobSpec, source: Source, call: Call, lease_seconds: float) -> bool:
    """Write a call; False when the batch passed to another worker and nothing was written.

    A value the database refuses fails its row alone.
    """
    try:
        return session.run(lambda connection: _settle(connection, spec, source, call, lease_seconds))
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.NotSupportedError):
        outcomes = _tried_alone(session, spec, source, call.outcomes)
        tried = Call(call.batch, outcomes, call.after, call.last, call.ends)
        return session.run(lambda connection: _settle(connection, spec, source, tried, lease_seconds))


def _tried_alone(
    session: Session, spec: JobSpec, source: Source, outcomes: Mapping[str, Outcome]
) -> dict[str, Outcome]:
    """The outcomes, those that cannot be written replaced by the reason: each is written and rolled back."""

    def tried(connection: Connection, key: str, outcome: Outcome) -> Outcome:
        try:
            with connection.transaction(force_rollback=True):
                _write(connection, spec, source, {key: outcome})
        except (
            psycopg.DataError,
            psycopg.IntegrityError,
            psycopg.ProgrammingError,
            psycopg.NotSupportedError,
        ) as error:
            return failure_of(error)
        return outcome

    return session.run(lambda connection: {key: tried(connection, key, value) for key, value in outcomes.items()})


def _settle(connection: Connection, spec: JobSpec, source: Source, call: Call, lease_seconds: float) -> bool:
    held = {"number": call.batch.number, "token": call.batch.token}
    with connection.transaction():
        if source.placed:  # before any row lock: a move takes this lock first, too
            connection.execute(query("pluck", "keep_slots"))
        found = connection.execute(query("pluck", "hold_batch"), {**held, "after": call.after}).fetchone()
        if found is None:
            return False
        if not found[0]:
            return True
        outcomes = (
            _still_here(connection, replace(call.batch, slots=found[1]), call) if source.placed else call.outcomes
        )
        failed = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Failure)}
        done = len(outcomes) - len(failed)
        _write(connection, spec, source, outcomes)
        if call.batch.single and done:
            given = {"job": spec.id, "keys": list(outcomes)}
            connection.execute(query("pluck", "forget_errors"), given)
        if failed:
            _save_failures(connection, spec, failed)
        advance = {
            **held, "last": call.last, "done": done, "failed": len(failed), "finished": call.ends,
            "lease_seconds": lease_seconds,
        }  # fmt: skip
        connection.execute(query("pluck", "advance_batch"), advance)
    return True


def _still_here(connection: Connection, batch: Batch, call: Call) -> Mapping[str, Outcome]:
    """Without the rows that moved away or here while they were worked on: other batches are for them."""
    elsewhere = slots_elsewhere(connection)
    return {
        key: outcome
        for key, outcome in call.outcomes.items()
        if slot_of(key) not in elsewhere and (batch.single or batch.holds(key))
    }


def _save_failures(connection: Connection, spec: JobSpec, failed: Mapping[str, Failure]) -> None:
    keys = list(failed)
    given = {
        "job": spec.id, "keys": keys, "attempts": spec.attempts,
        "exceptions": [failure.exception for failure in failed.values()],
        "messages": [failure.message for failure in failed.values()],
        "tracebacks": [failure.traceback for failure in failed.values()],
    }  # fmt: skip
    connection.execute(query("pluck", "save_errors"), given)
    connection.execute(query("pluck", "queue_retries"), {"job": spec.id, "keys": keys})
    connection.execute(query("pluck", "pause_after_errors"), {"job": spec.id})


def _write(connection: Connection, spec: JobSpec, source: Source, outcomes: Mapping[str, Outcome]) -> None:
    done = {key: values for key, values in outcomes.items() if not isinstance(values, Failure)}
    if not done:
        return
    arrays = _arrays(spec, source, done)
    named = {
        "table": source.identifiers["table"] if spec.output.table is None else sql.Identifier(spec.output.table),
        "key": sql.Identifier(source.key),
        "columns": sql.SQL(", ").join([sql.Identifier(name) for name in arrays.columns]),
        "values": arrays.casts,
        "arrays": arrays.arrays,
        "names": arrays.names,
    }
    if spec.output.table is None:
        statement = query("rows", "update_rows").format(
            **named, assignments=arrays.assignments("new"), key_type=sql.SQL(source.key_type)
        )
    else:
        statement = query("rows", "upsert_rows").format(**named, assignments=arrays.assignments("EXCLUDED"))
    connection.execute(statement, arrays.parameters)


def _arrays(spec: JobSpec, source: Source, done: Mapping[str, Sequence[object]]) -> Arrays:
    """Results as `unnest` takes them. The values are encoded already; keys travel as text whatever their type."""
    key = ColumnType(source.key_type, "text", str)
    types = tuple(column_type(name) for name in spec.output.columns.values())
    values = tuple(list(column) for column in zip(*done.values(), strict=True))
    return Arrays((source.key, *spec.output.columns), (key, *types), (list(done), *values))
