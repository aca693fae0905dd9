"""How a declaration changes a table that others are using: no rewrite, and nobody waits for long.

    create_stage -- columns: added in a short transaction, no rewrite
                 `- indexes -- small table: built in that transaction
                            `- large one: built CONCURRENTLY under other names --> one short transaction gives them their
                               names and saves the declaration, so workers never see a stage without its indexes

A build that was killed leaves an index that Postgres calls invalid; the next declaration drops it and builds again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import psycopg
from psycopg import errors, sql

from pleinair.krablet.connections import Connection, not_allowed
from pleinair.krablet.queries import query
from pleinair.krablet.roles import grant_roles
from pleinair.krablet.stages import STATE_COLUMNS, Stage
from pleinair.records.errors import BusyError, QueueError

LOCK_PATIENCE_SECONDS = 60.0
SMALL_TABLE_BYTES = 32 << 20
"""Up to here building an index takes a fraction of a second, less than waiting for all snapshots before it."""
KINDS = ("ready", "again")
Result = TypeVar("Result")


def create_stage(connection: Connection, stage: Stage) -> None:
    """Create the state columns and the two indexes, or change what differs; save the declaration.

    Refused, it leaves nothing, except after the build on a large table failed on the value of a row: the columns stay.
    """
    try:
        if not in_short_transaction(connection, stage.table.name, lambda: _declare_at_once(connection, stage)):
            _declare_beside_writers(connection, stage)
    except errors.InsufficientPrivilege as error:
        raise not_allowed(error, connection.info.dsn) from error
    except (psycopg.ProgrammingError, psycopg.DataError, psycopg.NotSupportedError) as error:
        order = "" if stage.order is None else f" and order = {stage.order!r}"
        raise QueueError(
            f"stage {stage.label} cannot use ready = {stage.ready!r}{order}: {str(error).splitlines()[0]}; "
            "write immutable SQL over the columns of the table"
        ) from error


def in_short_transaction(connection: Connection, table: str, change: Callable[[], Result]) -> Result:
    """What `change()` returns, in a transaction that gives up a lock it has to wait for, and tries again.

    While a change of a table waits for its lock, everybody else waits behind it: 0.2 s of every second or so. Raises
    BusyError when a transaction of somebody else keeps the table for a minute.
    """
    deadline = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            with connection.transaction():
                connection.execute(query("catalog", "lock_schema"))
                connection.execute(query("catalog", "wait_briefly_for_locks"))
                return change()
        except errors.LockNotAvailable as busy:
            if time.monotonic() > deadline:
                raise BusyError(
                    f"table {table} has been in use by one transaction or index build for {LOCK_PATIENCE_SECONDS:.0f} "
                    "seconds and cannot be changed: end that (see pg_stat_activity), then declare this again"
                ) from busy
        time.sleep(random.uniform(0.5, 1.0))


def _declare_at_once(connection: Connection, stage: Stage) -> bool:
    """Declare all in this transaction; False when indexes are missing and the table is too large to build them here."""
    _add_state_columns(connection, stage)
    if not _has_indexes(connection, stage):
        if _is_large(connection, stage):
            _build_on_empty_copy(connection, stage)
            return False
        for kind in KINDS:
            _drop(connection, _index(stage, kind))
            _build(connection, stage, kind, stage.identifiers["table"], _index(stage, kind))
    _save(connection, stage)
    return True


def _declare_beside_writers(connection: Connection, stage: Stage) -> None:
    with _only_builder(connection, stage):
        if not _has_indexes(connection, stage):  # else another process has built them meanwhile
            _drop_new(connection, stage)
            try:
                for kind in KINDS:
                    _build(
                        connection,
                        stage,
                        kind,
                        stage.identifiers["table"],
                        _new_index(stage, kind),
                        sql.SQL("CONCURRENTLY"),
                    )
            except psycopg.DataError:
                _drop_new(connection, stage)
                raise
            in_short_transaction(connection, stage.table.name, lambda: _take_new(connection, stage))


def _take_new(connection: Connection, stage: Stage) -> None:
    for kind in KINDS:
        index, new = _index(stage, kind), _new_index(stage, kind)
        _drop(connection, index)
        connection.execute(
            query("catalog", "rename_index").format(index=sql.Identifier(new), name=sql.Identifier(index))
        )
    _save(connection, stage)


@contextmanager
def _only_builder(connection: Connection, stage: Stage) -> Iterator[None]:
    """Be the one who builds indexes of this table: two builds at once wait for each other for ever.

    Asked for again and again rather than waited for: whoever waits inside a statement holds a snapshot, which the build
    waits for. A builder that was killed is noticed by its server within a second, where that can be set.
    """
    table = {"table": stage.table.name}
    while connection.execute(query("catalog", "try_builder_lock"), table).fetchone() != (True,):
        time.sleep(0.1)
    try:
        with suppress(errors.InvalidParameterValue):
            connection.execute(query("catalog", "notice_dead_client"))
        yield
    finally:
        if not connection.broken:
            connection.execute(query("catalog", "free_builder_lock"), table)


def _has_indexes(connection: Connection, stage: Stage) -> bool:
    """Whether both are there, whole, and made for this condition and order."""
    saved = _saved(connection, stage)
    return (
        saved is not None
        and (saved["ready"], saved["ordering"]) == (stage.ready, stage.order)
        and all(_is_valid(connection, _index(stage, kind)) for kind in KINDS)
    )


def _is_valid(connection: Connection, index: str) -> bool:
    return connection.execute(query("catalog", "index_is_valid"), {"index": index}).fetchone() == (True,)


def _is_large(connection: Connection, stage: Stage) -> bool:
    found = connection.execute(query("catalog", "table_bytes"), {"table": stage.table.name}).fetchone()
    assert found is not None
    return int(found[0]) > SMALL_TABLE_BYTES


def _build_on_empty_copy(connection: Connection, stage: Stage) -> None:
    """Have a wrong condition refused while everything can still be undone."""
    copy = sql.Identifier("pleinair_empty_copy")
    connection.execute(query("catalog", "create_empty_copy").format(copy=copy, table=stage.identifiers["table"]))
    for kind in KINDS:
        _build(connection, stage, kind, copy, f"pleinair_empty_copy_{kind}")


def _build(
    connection: Connection,
    stage: Stage,
    kind: str,
    table: sql.Composable,
    index: str,
    concurrently: sql.SQL = sql.SQL(""),  # noqa: B008
) -> None:
    # Without parameters the text goes as it is, so conditions are not to have their % doubled.
    raw = {**stage.identifiers, "ready": sql.SQL(stage.ready), "order": _raw_ordering(stage)}
    names = {"table": table, "index": sql.Identifier(index), "concurrently": concurrently}
    connection.execute(query("catalog", f"create_{kind}_index").format(**{**raw, **names}))


def _raw_ordering(stage: Stage) -> sql.Composable:
    key = sql.Identifier(stage.table.key)
    return key if stage.order is None else sql.SQL("({}), {}").format(sql.SQL(stage.order), key)


def _index(stage: Stage, kind: str) -> str:
    return f"{stage.table.name}_{stage.name}_{kind}"


def _new_index(stage: Stage, kind: str) -> str:
    """The name of an index that is being built; no longer than the other, whose length is all Postgres keeps."""
    return f"{stage.table.name}_{stage.name}_new_{kind[0]}"


def _drop(connection: Connection, index: str) -> None:
    connection.execute(query("catalog", "drop_index").format(index=sql.Identifier(index)))


def _drop_new(connection: Connection, stage: Stage) -> None:
    for kind in KINDS:
        name = sql.Identifier(_new_index(stage, kind))
        connection.execute(query("catalog", "drop_index_beside_writers").format(index=name))


def _add_state_columns(connection: Connection, stage: Stage) -> None:
    existing: dict[str, str] = dict(
        connection.execute(query("catalog", "column_types"), {"table": stage.table.name}).fetchall()
    )
    for state, sql_type in STATE_COLUMNS.items():
        if f"{stage.name}_{state}" not in existing:
            statement = query("catalog", "add_column").format(
                table=stage.identifiers["table"], column=stage.identifiers[state], type=sql.SQL(sql_type)
            )
            connection.execute(statement)


def _save(connection: Connection, stage: Stage) -> None:
    """Save the declaration if it is another than was: who may not change it may still declare the same."""
    if _saved(connection, stage) != (declaration := _declaration(stage)):
        connection.execute(query("catalog", "save_stage"), declaration)
        grant_roles(connection)


def _saved(connection: Connection, stage: Stage) -> dict[str, object] | None:
    """How the stage is declared now, as `_declaration` says it."""
    named: dict[str, object] = {"table": stage.table.name, "name": stage.name}
    found = connection.execute(query("catalog", "load_stage"), named).fetchone()
    if found is None:
        return None
    return named | dict(zip(("ready", "writes", "reads", "batch", "lease_seconds", "ordering"), found, strict=True))


def _declaration(stage: Stage) -> dict[str, object]:
    return {
        "table": stage.table.name,
        "name": stage.name,
        "ready": stage.ready,
        "writes": list(stage.writes),
        "reads": None if stage.reads is None else list(stage.reads),
        "batch": stage.batch,
        "lease_seconds": stage.lease_seconds,
        "ordering": stage.order,
    }
