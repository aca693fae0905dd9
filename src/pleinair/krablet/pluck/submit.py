"""How a job comes to be: checked on every shard, split into ranges, signed, stored, and only then let run.

Nothing runs before every shard has its part; when a shard fails, the parts of the others are removed again.
"""

from __future__ import annotations

import getpass
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pleinair.krablet.column_types import column_type
from pleinair.krablet.connections import Connection, Session
from pleinair.krablet.migrations import ensure_catalog
from pleinair.krablet.pluck import jobs
from pleinair.krablet.pluck.bounds import Sample, choose_target, plan_ranges, take_sample
from pleinair.krablet.pluck.function import pack
from pleinair.krablet.pluck.jobs import JobSpec, Limits, Output
from pleinair.krablet.pluck.signing import Key, sign
from pleinair.krablet.pluck.source import Source, open_source
from pleinair.krablet.queries import checked_name, query
from pleinair.krablet.tables import create_table
from pleinair.records.errors import ConfigError, PleinairError, QueueError

GivenOutput = str | Mapping[str, str] | tuple[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a job is done; the words are those of `Pluck.map`."""

    batch: int
    attempts: int
    max_errors: int
    expires_hours: float
    columns: Sequence[str] | None
    arrow: bool
    reader: str | None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("batch", "attempts", "max_errors", "expires_hours"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a positive number")


def submit(
    shards: Mapping[str, Session],
    rows: tuple[str, str, str],
    function: Callable[..., Any],
    output: GivenOutput,
    options: Options,
    key: Key,
) -> JobSpec:
    """Store a job over `rows` (table, key, condition) on every shard and let it run. Raises QueueError, ConfigError."""
    packed = pack(function)
    looks = {name: session.run(lambda connection: _look(connection, rows, options)) for name, session in shards.items()}
    first = next(iter(looks.values()))
    now = time.time()
    spec = JobSpec(
        id=str(uuid.uuid4()), table=rows[0], key=rows[1], where=rows[2], columns=tuple(first.source.columns),
        output=_parsed_output(first, output), batch=options.batch,
        target=choose_target(sum(look.sample.estimate for look in looks.values()), options.batch),
        arrow=options.arrow, attempts=options.attempts, max_errors=options.max_errors, limits=options.limits,
        reader=options.reader, python=packed.python, packages=packed.packages, function_sha256=packed.sha256,
        submitter=_submitter(), shards=tuple(look.identity for look in looks.values()),
        created_at=now, expires_at=now + options.expires_hours * 3600,
    )  # fmt: skip
    signature = sign(key, spec.header.encode())
    try:
        for name, session in shards.items():
            look = looks[name]
            session.run(lambda connection, look=look: _store(connection, spec, look, signature, packed.data))  # type: ignore[misc]
        for session in shards.values():
            session.run(lambda connection: _let_run(connection, spec))
    except BaseException:
        for session in shards.values():
            with suppress(PleinairError):
                session.run(lambda connection: jobs.delete_job(connection, spec.id))
        raise
    return spec


@dataclass(frozen=True)
class _Look:
    """What a shard looks like before a job begins."""

    identity: str
    source: Source
    sample: Sample
    types: Mapping[str, str]
    """All columns of the table with their types."""


def _look(connection: Connection, rows: tuple[str, str, str], options: Options) -> _Look:
    ensure_catalog(connection)
    jobs.forget_jobs(connection)
    table, key, where = rows
    source = open_source(
        connection, table, key, where, columns=options.columns, reader=options.reader, as_text=options.arrow
    )
    if options.arrow:
        _check_arrow(source)
    types: dict[str, str] = dict(connection.execute(query("catalog", "column_types"), {"table": table}).fetchall())
    return _Look(jobs.shard_identity(connection), source, take_sample(connection, source), types)


def _check_arrow(source: Source) -> None:
    from pleinair.krablet.arrow import arrow_type

    for name, sql_type in source.columns.items():
        try:
            arrow_type(sql_type)
        except KeyError:
            raise QueueError(
                f"column {source.table}.{name} is {sql_type}, which Arrow batches do not hold: leave it out of columns"
            ) from None


def _parsed_output(look: _Look, output: GivenOutput) -> Output:
    table = look.source.table
    if isinstance(output, tuple):
        name, columns = output
        _check_columns(look, columns)
        if name in (table, look.source.place[1]):
            raise QueueError(f"output names the table {name!r} that is read: give its columns without the table")
        return Output(
            {column: column_type(given).name for column, given in columns.items()}, checked_name("table", name, 28)
        )
    wanted = {output: look.types.get(output, "text")} if isinstance(output, str) else dict(output)
    _check_columns(look, wanted)
    for column, given in wanted.items():
        existing = look.types.get(column)
        if existing != column_type(given).name:
            raise QueueError(
                f"output column {table}.{column} is {existing or 'not there'} and is given as {given}: "
                f"declare it with db.table({table!r}, ...), or correct its type"
            )
    return Output({column: look.types[column] for column in wanted}, None, isinstance(output, str))


def _check_columns(look: _Look, columns: Mapping[str, str]) -> None:
    if not columns:
        raise QueueError("output names no column: name those the function returns")
    if look.source.key in columns:
        raise QueueError(f"output names the key {look.source.key!r}, which never changes: leave it out")


def _store(connection: Connection, spec: JobSpec, look: _Look, signature: str, function: bytes) -> None:
    if spec.output.table is not None:
        columns = {spec.key: look.source.key_type, **spec.output.columns}
        create_table(connection, spec.output.table, spec.key, columns)
    ranges = plan_ranges(connection, look.source, look.sample, spec.target)
    jobs.insert_job(connection, spec, signature, function, ranges)


def _let_run(connection: Connection, spec: JobSpec) -> None:
    jobs.set_state(connection, spec.id, "running", expected=["preparing"], errors=spec.max_errors)


def _submitter() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user without a name, as in some containers
        return f"unknown@{socket.gethostname()}"
