"""Jobs of pluck as every shard keeps them: the signed order, and the ranges of keys still to do.

                     claim                      last call settled
    open batch  ---------------->  leased  --------------------------->  finished
       ^  ^                         |  |  ^  |
       |  `--- SIGTERM: given back -'  |  `--' a call settled: results written and the range's beginning moved past
       `------ lease runs out ---------'       them in one commit, so a killed worker costs one call

A row that fails leaves its range and becomes a batch of its own that waits. One statement of sql/pluck.sql per function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pleinair.krablet.connections import Connection
from pleinair.krablet.pluck.bounds import Range
from pleinair.krablet.queries import query
from pleinair.krablet.shards import slot_of
from pleinair.records.errors import ConfigError, QueueError

GIB = 1 << 30
LEASE_SECONDS = 30.0
"""A worker that says nothing for so long is thought dead; a living one renews every third of it."""
RETENTION_DAYS = 30
"""How long a job that ended can still be asked, with its errors."""
OPEN_STATES = ("running", "paused")
FINAL_STATES = ("done", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the process that runs the function may use. None is no limit."""

    memory_bytes: int | None = 8 * GIB
    """Address space. CUDA reserves hundreds of GiB of it: give None for functions that use a GPU."""
    cpu_seconds: int | None = 3600
    """Processor time of one call."""
    open_files: int | None = 1024
    call_seconds: float = 600.0
    """Wall time of one call."""
    start_seconds: float = 600.0
    """Wall time to load the function, and for an actor to run its __init__."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value <= 0:
                raise ConfigError(f"the limit {name} is {value}: give a positive number, or None where it is allowed")

    def capped(self, most: Limits) -> Limits:
        """The tighter of each pair of limits."""
        tighter: dict[str, Any] = {name: min(filter(None, pair), default=None) for name, pair in self._pairs(most)}
        return replace(self, **tighter)

    def _pairs(self, other: Limits) -> list[tuple[str, tuple[Any, Any]]]:
        return [(name, (value, getattr(other, name))) for name, value in asdict(self).items()]


NO_LIMITS = Limits(memory_bytes=None, cpu_seconds=None, open_files=None, call_seconds=86400, start_seconds=86400)
"""A day for one call, and whatever the machine has."""


@dataclass(frozen=True)
class Output:
    """Where results go: columns with their SQL types, in the source table or in a table of their own.

    `single` means the function returns one bare value a row, not a dict.
    """

    columns: Mapping[str, str]
    table: str | None = None
    single: bool = False


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """An order: everything a worker must know. It is signed as a whole, with the hash of the function."""

    id: str
    table: str
    key: str
    where: str
    columns: tuple[str, ...]
    output: Output
    batch: int
    target: int
    arrow: bool
    attempts: int
    max_errors: int
    limits: Limits = field(default_factory=Limits)
    reader: str | None
    python: str
    packages: Mapping[str, str]
    function_sha256: str
    submitter: str
    shards: tuple[str, ...]
    """The identities of the databases it may run in."""
    created_at: float
    expires_at: float
    """Seconds since 1970, by the clock of the submitter; a worker compares with its own."""

    @property
    def header(self) -> str:
        """The text that is signed: JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_header(cls, header: str) -> JobSpec:
        """Raises ValueError, TypeError or KeyError if it was not made by `header`."""
        given = json.loads(header)
        given.update(
            output=Output(**given["output"]),
            limits=Limits(**given["limits"]),
            columns=tuple(given["columns"]),
            shards=tuple(given["shards"]),
        )
        return cls(**given)


@dataclass(frozen=True)
class SignedJob:
    """A job as a shard holds it; nothing in it is to be believed before its signature was verified."""

    id: str
    header: str
    signature: str


@dataclass(frozen=True)
class Batch:
    """A range of keys leased to one worker under one token."""

    number: int
    token: int
    after: str | None
    up_to: str | None
    single: bool
    attempts: int
    lost: int
    expected: int
    slots: str
    """The slots whose keys it is for, as bits."""

    def holds(self, key: str) -> bool:
        return self.slots[slot_of(key)] == "1"


def tables_exist(connection: Connection) -> bool:
    return connection.execute(query("pluck", "pluck_exists")).fetchone() == (True,)


def shard_identity(connection: Connection) -> str:
    found = connection.execute(query("pluck", "shard_identity")).fetchone()
    assert found is not None
    return str(found[0])


def insert_job(connection: Connection, spec: JobSpec, signature: str, function: bytes, ranges: Sequence[Range]) -> None:
    """A job that does not run yet, with its batches. Doing it again replaces it."""
    with connection.transaction():
        connection.execute(query("pluck", "delete_job"), {"id": spec.id})
        connection.execute(
            query("pluck", "insert_job"),
            {"id": spec.id, "header": spec.header, "signature": signature, "function": function,
             "errors_allowed": spec.max_errors, "table": spec.table, "key": spec.key, "expires_at": spec.expires_at},
        )  # fmt: skip
        connection.execute(
            query("pluck", "insert_batches"),
            {"job": spec.id, "after": [part.after for part in ranges], "up_to": [part.up_to for part in ranges],
             "expected": [part.expected for part in ranges]},
        )  # fmt: skip


def delete_job(connection: Connection, job: str) -> None:
    connection.execute(query("pluck", "delete_job"), {"id": job})


def forget_jobs(connection: Connection) -> None:
    """Delete the jobs that ended or expired RETENTION_DAYS ago."""
    connection.execute(query("pluck", "forget_jobs"), {"days": RETENTION_DAYS})


def set_state(
    connection: Connection, job: str, state: str, *, expected: Sequence[str], reason: str | None = None, errors: int = 0
) -> bool:
    """Change a job's state if it is one of `expected`; `errors` more rows may fail before it pauses by itself."""
    given = {"id": job, "state": state, "expected": list(expected), "reason": reason, "more_errors": errors}
    return connection.execute(query("pluck", "set_state"), given).rowcount == 1


def load_job(connection: Connection, job: str) -> SignedJob:
    """Raises QueueError if this shard has no such job."""
    found = connection.execute(query("pluck", "load_job"), {"id": job}).fetchone() if tables_exist(connection) else None
    if found is None:
        raise QueueError(f"there is no job {job} in {connection.info.dbname}: see 'h.id', or connect to its database")
    return SignedJob(job, found[0], found[1])


def load_function(connection: Connection, job: str) -> bytes:
    found = connection.execute(query("pluck", "load_function"), {"id": job}).fetchone()
    return b"" if found is None else bytes(found[0])


def open_jobs(connection: Connection) -> list[SignedJob]:
    if not tables_exist(connection):
        return []
    return [SignedJob(*row) for row in connection.execute(query("pluck", "open_jobs"))]


def job_state(connection: Connection, job: str) -> str | None:
    found = connection.execute(query("pluck", "job_state"), {"job": job}).fetchone()
    return None if found is None else str(found[0])


def claim_batch(connection: Connection, job: str, worker: str, lease_seconds: float) -> Batch | None:
    given = {"job": job, "worker": worker, "lease_seconds": lease_seconds}
    found = connection.execute(query("pluck", "claim_batch"), given).fetchone()
    return None if found is None else Batch(*found)


def split_batch(connection: Connection, batch: Batch, cut: str, kept: int) -> bool:
    """Make what is past the key `cut` a batch of its own; False if the batch is no longer ours."""
    given = {
        "number": batch.number, "token": batch.token, "cut": cut, "up_to": batch.up_to,
        "kept": kept, "rest": max(batch.expected - kept, 1),
    }  # fmt: skip
    return connection.execute(query("pluck", "split_batch"), given).rowcount == 1


def release_batch(connection: Connection, batch: Batch) -> None:
    connection.execute(query("pluck", "release_batch"), {"number": batch.number, "token": batch.token})


def renew_batch(connection: Connection, batch: Batch, lease_seconds: float) -> None:
    given = {"number": batch.number, "token": batch.token, "lease_seconds": lease_seconds}
    connection.execute(query("pluck", "renew_batch"), given)


def look_at_batch(connection: Connection, job: str, batch: Batch) -> str | None:
    """The job's state, or None when the batch passed to another worker."""
    given = {"job": job, "number": batch.number, "token": batch.token}
    found = connection.execute(query("pluck", "look_at_batch"), given).fetchone()
    return None if found is None else str(found[0])


def finish_job(connection: Connection, job: str) -> None:
    """End the job on this shard if no batch is open."""
    connection.execute(query("pluck", "finish_job"), {"job": job})


def save_refusal(connection: Connection, job: str, worker: str, reason: str) -> None:
    connection.execute(query("pluck", "save_refusal"), {"job": job, "worker": worker, "reason": reason})


def list_refusals(connection: Connection, job: str) -> list[tuple[str, str]]:
    return connection.execute(query("pluck", "list_refusals"), {"job": job}).fetchall()


def progress_row(connection: Connection, job: str) -> tuple[Any, ...]:
    found = connection.execute(query("pluck", "progress"), {"job": job}).fetchone()
    if found is None:
        raise QueueError(f"job {job} is no longer in {connection.info.dbname}: it was deleted")
    return found


def error_rows(connection: Connection, job: str) -> list[tuple[Any, ...]]:
    return connection.execute(query("pluck", "error_groups"), {"job": job}).fetchall()
