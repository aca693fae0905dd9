"""A worker of pluck: finds signed jobs on every shard, claims batches, has the function run, writes results.

    admit a job -> claim a batch -> keys that match (cut if too many) -> for each call: read rows, run, settle
                                                                         |  SIGTERM, cancel: the batch is given back
    meanwhile a thread watches the batch: it renews the lease and notices when the job is paused or cancelled

A worker stays with a job and its loaded function while there is work on any shard, then looks for another.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from pleinair.krablet.connections import Connection, Session
from pleinair.krablet.pluck import jobs
from pleinair.krablet.pluck.admission import Ledger, admit, check_function
from pleinair.krablet.pluck.jobs import FINAL_STATES, LEASE_SECONDS, NO_LIMITS, Batch, JobSpec, Limits
from pleinair.krablet.pluck.runner import CallAbortedError, Confinement, Runner
from pleinair.krablet.pluck.settle import Call, settle
from pleinair.krablet.pluck.signing import Key
from pleinair.krablet.pluck.source import Source, matching_keys, open_source, read_rows
from pleinair.krablet.pluck.wire import Failure, Outcome
from pleinair.krablet.workers.sigterm import on_sigterm
from pleinair.records.errors import DatabaseError, QueueError, RefusedError

LARGEST_FACTOR = 2
"""A claimed batch holds at most this many times the job's target; what is more becomes another batch."""
WATCH_SECONDS = 1.0
LOAD_AGAIN_SECONDS = 30.0
_PAUSE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How a worker works."""

    keys: Sequence[Key]
    job: str | None = None
    """Work on this job only, and return when it ended."""
    confinement: Confinement = field(default_factory=Confinement)
    most: Limits = NO_LIMITS
    """What a job may ask for at most."""
    lease_seconds: float = LEASE_SECONDS
    ledger: Ledger = field(default_factory=Ledger)
    report: Callable[[str], None] = lambda line: print(f"pluck worker: {line}", file=sys.stderr, flush=True)


@dataclass
class _Accepted:
    """A job this worker may do: the order, its source on this database, and the process that runs its function."""

    spec: JobSpec
    source: Source
    runner: Runner


class _HandedBackError(Exception):
    """The batch in work is no longer to be worked on."""


class Worker:
    """One worker; `run` in the main thread, so that SIGTERM reaches it."""

    def __init__(self, shards: Mapping[str, Session], settings: WorkerSettings) -> None:
        self._shards = shards
        self._settings = settings
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._identities: dict[str, str] = {}
        self._accepted: _Accepted | None = None
        self._turns = deque(shards)
        self._turns.rotate(os.getpid())
        self._refused: dict[str, float] = {}
        self._stopped = False
        self._watches = {shard: _Watch(session.fresh(0.0), settings.lease_seconds) for shard, session in shards.items()}

    def run(self) -> bool:
        """Work until SIGTERM or, given one job, until that ended. False when that job was refused."""
        try:
            with on_sigterm(self._end):
                while not self._stopped:
                    if self._work_once():
                        continue
                    if self._settings.job is not None and (self._ended() or self._refused):
                        return not self._refused
                    time.sleep(_PAUSE_SECONDS)
            return True
        finally:
            self._drop()
            for watch in self._watches.values():
                watch.close()

    def _ended(self) -> bool:
        job = self._settings.job
        assert job is not None
        for session in self._shards.values():
            session.run(lambda connection: jobs.finish_job(connection, job))
        return self._over(job)

    def _work_once(self) -> bool:
        """Do one batch of any shard; False when there is none. Shards take turns, from another start in each process."""
        for _ in range(len(self._turns)):
            self._turns.rotate(1)
            if self._work_on(self._turns[0], self._shards[self._turns[0]]):
                return True
        return False

    def _work_on(self, shard: str, session: Session) -> bool:
        open_jobs = session.run(jobs.open_jobs)
        current = None if self._accepted is None else self._accepted.spec.id
        for job in sorted(open_jobs, key=lambda job: job.id != current):
            if self._settings.job not in (None, job.id) or self._refused.get(job.id, 0.0) > time.monotonic():
                continue
            try:
                accepted = self._admit(shard, session, job)
            except RefusedError as refusal:
                self._refuse(session, job.id, str(refusal), float("inf"))
                continue
            if self._claim_and_do(shard, session, accepted):
                return True
        return False

    def _admit(self, shard: str, session: Session, job: jobs.SignedJob) -> _Accepted:
        """The job, verified anew each time: what the database holds now must be what was signed."""
        if shard not in self._identities:
            self._identities[shard] = session.run(jobs.shard_identity)
        spec = admit(job, self._settings.keys, self._identities[shard], self._settings.ledger)
        if self._accepted is None or self._accepted.spec != spec:
            function = session.run(lambda connection: jobs.load_function(connection, spec.id))
            check_function(spec, function)
            self._drop()
            self._accepted = self._accept(session, spec, function)
        return self._accepted

    def _accept(self, session: Session, spec: JobSpec, function: bytes) -> _Accepted:
        try:
            source = session.run(lambda connection: source_of(connection, spec))
        except QueueError as error:
            raise RefusedError(str(error)) from error
        limits = spec.limits.capped(self._settings.most)
        return _Accepted(spec, source, Runner(spec, source, function, limits, self._settings.confinement))

    def _drop(self) -> None:
        if self._accepted is not None:
            self._accepted.runner.close()
            self._accepted = None

    def _refuse(self, session: Session, job: str, reason: str, seconds: float) -> None:
        self._refused[job] = time.monotonic() + seconds
        self._settings.report(f"refuses job {job}: {reason}")
        with suppress(DatabaseError):
            session.run(lambda connection: jobs.save_refusal(connection, job, self._name, reason))

    def _note_end(self, shard: str, session: Session, spec: JobSpec) -> None:
        """Nothing is due: the job may have ended here, and then it never starts again."""
        session.run(lambda connection: jobs.finish_job(connection, spec.id))
        if session.run(lambda connection: jobs.job_state(connection, spec.id)) in FINAL_STATES and self._over(spec.id):
            for identity in self._identities.values():
                self._settings.ledger.add(spec.id, identity, spec.expires_at)

    def _over(self, job: str) -> bool:
        """Whether the job ended on every shard; until then rows that move may let it run again where it ended."""
        states = [session.run(lambda connection: jobs.job_state(connection, job)) for session in self._shards.values()]
        return all(state is None or state in FINAL_STATES for state in states)

    def _claim_and_do(self, shard: str, session: Session, accepted: _Accepted) -> bool:
        """Do one batch of a job; False when there is none, or the function cannot be loaded here."""
        try:
            accepted.runner.start(lambda: self._stopped)
            batch = self._claim(session, accepted.spec)
            if batch is not None:
                self._hold_and_do(shard, session, accepted, batch)
        except (RefusedError, QueueError) as refusal:  # the function, or the rows, cannot be had here
            self._drop()
            self._refuse(session, accepted.spec.id, str(refusal), LOAD_AGAIN_SECONDS)
            return False
        except CallAbortedError:
            return False
        self._note_end(shard, session, accepted.spec)
        return batch is not None

    def _claim(self, session: Session, spec: JobSpec) -> Batch | None:
        lease_seconds = self._settings.lease_seconds
        return session.run(lambda connection: jobs.claim_batch(connection, spec.id, self._name, lease_seconds))

    def _hold_and_do(self, shard: str, session: Session, accepted: _Accepted, batch: Batch) -> None:
        with self._watches[shard].holding(accepted.spec.id, batch) as watch:
            try:
                self._do(session, accepted, batch, watch)
            except BaseException as error:
                with suppress(DatabaseError):
                    session.run(lambda connection: jobs.release_batch(connection, batch))
                if not isinstance(error, _HandedBackError | CallAbortedError):
                    raise

    def _do(self, session: Session, accepted: _Accepted, batch: Batch, watch: _Watch) -> None:
        spec, source = accepted.spec, accepted.source
        keys = self._keys(session, spec, source, batch)
        after = batch.after
        for start in range(0, max(len(keys), 1), spec.batch):
            if self._stopped or watch.paused:
                raise _HandedBackError
            part = keys[start : start + spec.batch]
            outcomes = self._outcomes(session, accepted, batch, part, watch)
            last = part[-1] if part else None
            call = Call(batch, outcomes, after, last, ends=start + spec.batch >= len(keys))
            if not settle(session, spec, source, call, self._settings.lease_seconds):
                raise _HandedBackError
            after = after if batch.single or last is None else last

    def _keys(self, session: Session, spec: JobSpec, source: Source, batch: Batch) -> list[str]:
        """The keys of the batch; what is too many is cut off, and more of it after workers died while they held it."""
        most = max(1, spec.target >> batch.lost) if batch.lost else LARGEST_FACTOR * spec.target
        keys = session.run(
            lambda connection: matching_keys(
                connection, source, batch.after, batch.up_to, single=batch.single, limit=most + 1
            )
        )
        if len(keys) <= most:
            return _held(keys, batch, source)
        kept = keys[: min(most, spec.target)]
        if not session.run(lambda connection: jobs.split_batch(connection, batch, kept[-1], len(kept))):
            raise _HandedBackError
        return _held(kept, batch, source)

    def _outcomes(
        self, session: Session, accepted: _Accepted, batch: Batch, keys: list[str], watch: _Watch
    ) -> dict[str, Outcome]:
        rows = session.run(lambda connection: read_rows(connection, accepted.source, keys)) if keys else {}
        if len(rows) == 1 and batch.lost >= accepted.spec.target.bit_length() + accepted.spec.attempts:
            return dict.fromkeys(rows, Failure("WorkerDied", f"{batch.lost} workers died while they held this row"))
        outcomes = accepted.runner.call(list(rows.values()), lambda: self._stopped or watch.over) if rows else []
        return dict(zip(rows, outcomes, strict=True))

    def _end(self) -> None:
        self._stopped = True


def _held(keys: list[str], batch: Batch, source: Source) -> list[str]:
    """The keys that this batch is for: rows that came with their slots have batches of their own."""
    return [key for key in keys if batch.holds(key)] if source.placed and not batch.single else keys


def source_of(connection: Connection, spec: JobSpec) -> Source:
    """The rows a job reads on this shard."""
    return open_source(
        connection, spec.table, spec.key, spec.where, columns=spec.columns, reader=spec.reader, as_text=spec.arrow
    )


class _Watch:
    """A thread that looks at the batch in work once a second and renews its lease every third of it."""

    def __init__(self, session: Session, lease_seconds: float) -> None:
        self._session = session
        self._lease_seconds = lease_seconds
        self._held: tuple[str, Batch] | None = None
        self._closing = threading.Event()
        self.paused = False
        """No further call is to be made: the job does not run."""
        self.over = False
        """The call in work is in vain: the job was cancelled, or the batch passed to another worker."""
        self._thread = threading.Thread(target=self._look_on, name="pleinair-pluck-watch", daemon=True)
        self._thread.start()

    @contextmanager
    def holding(self, job: str, batch: Batch) -> Iterator[_Watch]:
        self.paused = self.over = False
        self._held = (job, batch)
        try:
            yield self
        finally:
            self._held = None

    def _look_on(self) -> None:
        renew_at = 0.0
        last: Batch | None = None
        while not self._closing.wait(WATCH_SECONDS):
            if (held := self._held) is None:
                continue
            job, batch = held
            if batch is not last:
                last, renew_at = batch, time.monotonic() + self._lease_seconds / 3 - WATCH_SECONDS
            with suppress(
                DatabaseError
            ):  # Postgres away now: the next look tries again, the worker's session reports it
                self._look(job, batch)
                if time.monotonic() >= renew_at:
                    renew_at = time.monotonic() + self._lease_seconds / 3
                    self._session.run(lambda connection, batch=batch: self._renew(connection, batch))  # type: ignore[misc]
        self._session.close()

    def _look(self, job: str, batch: Batch) -> None:
        state = self._session.run(lambda connection: jobs.look_at_batch(connection, job, batch))
        if self._held == (job, batch):
            self.paused = state != "running"
            self.over = state is None or state == "cancelled"

    def _renew(self, connection: Connection, batch: Batch) -> None:
        jobs.renew_batch(connection, batch, self._lease_seconds)

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=15.0)
