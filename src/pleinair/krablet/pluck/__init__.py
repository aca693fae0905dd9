"""pluck: run a Python function over all rows of a table that match a condition, on workers, with a live handle.

    h = db.pluck("images", "image_name", "embedding_path IS NULL").map(embed, output="embedding_path", workers=4)
    h.progress(), h.wait(), h.errors(), h.pause(), h.resume(), h.cancel(); attach(db, h.id) in another process

    .map: sample keys -> ranges of keys on every shard, the function pickled, the order signed
    workers, here or elsewhere: verify -> claim a range -> call the function in a confined process -> write results

A pickled function is code: whoever may submit runs programs on the workers. See docs/krablet-pluck.md.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pleinair.krablet.connections import Session
from pleinair.krablet.database import Database
from pleinair.krablet.pluck import jobs
from pleinair.krablet.pluck.handle import ErrorGroup, Handle, PluckProgress, ShardProgress
from pleinair.krablet.pluck.jobs import JobSpec, Limits
from pleinair.krablet.pluck.processes import WorkerProcesses, worker_order
from pleinair.krablet.pluck.runner import Confinement
from pleinair.krablet.pluck.signing import HMAC, Key, load_key, new_key, public_key
from pleinair.krablet.pluck.submit import GivenOutput, Options, submit
from pleinair.records.errors import ConfigError, QueueError

__all__ = ["ErrorGroup", "Handle", "Limits", "Pluck", "PluckProgress", "ShardProgress", "attach", "pluck"]

Shards = Database | Session | str | Sequence[str] | Mapping[str, Session]
"""A Database, a session, one or several connection strings, or sessions by shard name."""


@dataclass(frozen=True)
class Pluck:
    """Rows of a table that match a condition; made by `pluck`."""

    shards: Mapping[str, Session]
    table: str
    key: str
    where: str
    owned: bool = False
    """The sessions are its own, and its handles close them."""

    def map(
        self,
        function: Callable[..., Any],
        *,
        output: GivenOutput,
        batch: int = 64,
        workers: int = 0,
        key_file: str | Path | None = None,
        columns: Sequence[str] | None = None,
        arrow: bool = False,
        attempts: int = 3,
        max_errors: int = 1000,
        limits: Limits | None = None,
        reader: str | None = None,
        expires_hours: float = 24.0,
    ) -> Handle:
        """Start a job that runs `function` over the rows, and return its handle at once.

        `function` gets a list of at most `batch` rows as dicts (with `arrow`, a RecordBatch) and returns one result per
        row, in order; an exception in place of a result fails that row. It may be async. A class is made an actor: one
        instance per worker, called with each batch. What raises is called again with half of the batch.

        `output` says where results go: a column of this table (results are bare values), several columns of it with
        their types, or ("other_table", columns with types), which gets the same key (results are dicts).
        With `workers`, so many processes here do the job, and end with this one; with `key_file` it is signed for
        workers elsewhere. The function is given `columns`, by default all. A failed row is tried `attempts` times in
        all; a job pauses when `max_errors` rows failed on a shard. `reader` is a role that reads in the workers' stead.
        Raises QueueError or ConfigError, and then no part of the job exists.
        """
        key = _signing_key(workers, key_file)
        options = Options(
            batch=batch, attempts=attempts, max_errors=max_errors, expires_hours=expires_hours, columns=columns,
            arrow=arrow, reader=reader, limits=limits or Limits(),
        )  # fmt: skip
        spec = submit(self.shards, (self.table, self.key, self.where), function, output, options, key)
        processes = _start(self.shards, spec, key, workers) if workers else None
        return Handle(self.shards, spec, processes, owned=self.owned)


def pluck(shards: Shards, table: str, key: str, where: str = "TRUE") -> Pluck:
    """The rows of `table` for which `where` holds, split by `key`, a NOT NULL column with a unique index of its own."""
    return Pluck(sessions_of(shards), table, key, where, _owned(shards))


def attach(shards: Shards, job: str) -> Handle:
    """The handle of a job that any process started. Raises QueueError if a shard does not have it."""
    try:
        name = str(uuid.UUID(job))
    except ValueError:
        raise QueueError(f"{job!r} is not the id of a job: give 'h.id' of its handle") from None
    sessions = sessions_of(shards)
    found = [session.run(lambda connection: jobs.load_job(connection, name)) for session in sessions.values()]
    return Handle(sessions, JobSpec.from_header(found[0].header), None, owned=_owned(shards))


def _owned(shards: Shards) -> bool:
    """Connection strings become sessions that nobody else has."""
    return not isinstance(shards, Mapping | Database | Session)


def sessions_of(shards: Shards) -> dict[str, Session]:
    """The sessions given, or new ones, by shard name."""
    if isinstance(shards, Mapping):
        return dict(shards)
    if isinstance(shards, Database):
        return {str(shard.number): shard.session for shard in shards.shards}
    if isinstance(shards, Session):
        return {"0": shards}
    listed = [shards] if isinstance(shards, str) else list(shards)
    if not listed:
        raise ConfigError("no shard is given: give a Database or at least one connection string")
    return {str(place): Session(dsn) for place, dsn in enumerate(listed)}


def _signing_key(workers: int, key_file: str | Path | None) -> Key:
    """The key in the file; for workers here alone, one that nobody else ever has."""
    if workers < 0:
        raise ConfigError(f"workers is {workers}: give 0 or more")
    if key_file is not None:
        return load_key(Path(key_file))
    if workers == 0:
        raise ConfigError(
            "nobody would do this job: give workers=4 for processes here, or key_file=... (made by "
            "'pleinair krablet key') for workers elsewhere"
        )
    return new_key()


def _start(shards: Mapping[str, Session], spec: JobSpec, key: Key, workers: int) -> WorkerProcesses:
    """Workers for this job alone. They run its function as this user: this process could run it as well."""
    dsns = {name: session.dsn for name, session in shards.items()}
    verifying = key if key.algorithm == HMAC else public_key(key)
    confinement = Confinement(path=[entry for entry in sys.path if entry])
    return WorkerProcesses(worker_order(dsns, [verifying], job=spec.id, confinement=confinement), workers)
