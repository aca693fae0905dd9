"""The handle of a job: what became of it so far, and pause, resume, cancel. Any process can have one."""

from __future__ import annotations

import atexit
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pleinair.krablet.connections import Connection, Session
from pleinair.krablet.pluck import jobs
from pleinair.krablet.pluck.bar import Bar
from pleinair.krablet.pluck.jobs import OPEN_STATES, JobSpec
from pleinair.krablet.pluck.processes import WorkerProcesses
from pleinair.krablet.pluck.source import sample_row
from pleinair.krablet.pluck.worker import source_of
from pleinair.records.errors import QueueError, RefusedError

RATE_WINDOW_SECONDS = 30.0
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class ShardProgress:
    """One shard's part of a job."""

    shard: str
    state: str
    reason: str | None
    done: int
    failed: int
    retrying: int
    remaining: int
    batches: int
    workers: int
    seconds: float


@dataclass(frozen=True)
class PluckProgress:
    """A job as it is now. `remaining` is an estimate, and holds the rows that are to be tried again."""

    state: str
    """running, paused, cancelled, expired or done."""
    reason: str | None
    shards: tuple[ShardProgress, ...]
    rows_per_second: float
    refusals: tuple[tuple[str, str], ...]
    """Workers that refuse the job, each with its reason."""

    @property
    def done(self) -> int:
        return sum(shard.done for shard in self.shards)

    @property
    def failed(self) -> int:
        """Rows that failed as often as they may."""
        return sum(shard.failed for shard in self.shards)

    @property
    def retrying(self) -> int:
        return sum(shard.retrying for shard in self.shards)

    @property
    def remaining(self) -> int:
        return sum(shard.remaining for shard in self.shards)

    @property
    def workers(self) -> int:
        """Workers that hold a batch now."""
        return sum(shard.workers for shard in self.shards)

    @property
    def total(self) -> int:
        """Rows, known and estimated; exact once the job is done."""
        return self.done + self.failed + self.remaining

    @property
    def eta_seconds(self) -> float | None:
        """None while the rate is unknown."""
        return self.remaining / self.rows_per_second if self.rows_per_second else None


@dataclass(frozen=True)
class ErrorGroup:
    """The rows that fail with one type of exception, with the latest of them on one shard."""

    exception: str
    rows: int
    final: int
    """How many of them are not tried again."""
    key: str
    row: Mapping[str, Any] | None
    """The row as it is now; None if it was deleted."""
    message: str
    traceback: str


class Handle:
    """A job; made by `Pluck.map` and `attach`. For one thread at a time."""

    def __init__(
        self, shards: Mapping[str, Session], spec: JobSpec, processes: WorkerProcesses | None, *, owned: bool
    ) -> None:
        self.id = spec.id
        self.spec = spec
        self.processes = processes
        """The worker processes that this process started, if any."""
        self._shards = shards
        self._owned = owned
        self._samples: deque[tuple[float, int]] = deque()
        atexit.register(self.close)

    def __repr__(self) -> str:
        return f"Handle({self.id!r}, table={self.spec.table!r}, where={self.spec.where!r})"

    def progress(self) -> PluckProgress:
        """What is done, failed and estimated to remain, by shard, with the rate of the last half minute."""
        parts = tuple(
            ShardProgress(name, *session.run(lambda connection: jobs.progress_row(connection, self.id)))
            for name, session in self._shards.items()
        )
        refusals = [
            found
            for session in self._shards.values()
            for found in session.run(lambda connection: jobs.list_refusals(connection, self.id))
        ]
        state = self._state([part.state for part in parts])
        reason = next((part.reason for part in parts if part.reason and part.state == state), None)
        return PluckProgress(state, reason, parts, self._rate(parts), tuple(dict.fromkeys(refusals)))

    def _state(self, states: Sequence[str]) -> str:
        if set(states) == {"done"}:
            return "done"
        if "cancelled" in states:
            return "cancelled"
        if time.time() >= self.spec.expires_at:
            return "expired"
        return "running" if "running" in states or "preparing" in states else "paused"

    def _rate(self, parts: Sequence[ShardProgress]) -> float:
        """Rows a second since the oldest of the last looks; at the first look, since the job began."""
        now, settled = time.monotonic(), sum(part.done + part.failed for part in parts)
        if not self._samples:
            self._samples.append((now - max((part.seconds for part in parts), default=0.0), 0))
        self._samples.append((now, settled))
        while len(self._samples) > 2 and self._samples[1][0] < now - RATE_WINDOW_SECONDS:
            self._samples.popleft()
        then, settled_then = self._samples[0]
        return (settled - settled_then) / (now - then) if now > then else 0.0

    def wait(self, timeout: float | None = None, *, bar: bool = True) -> PluckProgress:
        """Wait until every row is done or failed for good, showing a bar; the progress at the end.

        Raises TimeoutError with the state after `timeout` seconds, RefusedError when all workers started here refuse
        the job, and QueueError when it was cancelled, expired, or paused because too many rows fail. Ctrl-C leaves the
        job as it is.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        shown = Bar() if bar else None
        try:
            while True:
                left_alone = self.processes is not None and not self.processes.alive
                progress = self.progress()
                over = self._is_over(progress, left_alone and not progress.workers)
                if shown is not None:
                    shown.show(progress, last=over)
                if over:
                    self.close()
                    return progress
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError(f"job {self.id} is not done after {timeout:g} seconds: {_counts(progress)}")
                time.sleep(_LOOK_SECONDS)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._what_now()) from None

    def _is_over(self, progress: PluckProgress, left_alone: bool) -> bool:
        """True when the job is done. Raises when it can no longer be, as when all workers started here ended."""
        if progress.state == "done" and progress.reason is not None:
            raise QueueError(
                f"job {self.id} is not complete because {progress.reason}: start it again for what is left"
            )
        if progress.state == "done":
            return True
        if progress.state in ("cancelled", "expired"):
            raise QueueError(f"job {self.id} is {progress.state}: {_counts(progress)}; start it again for what is left")
        if progress.state == "paused" and progress.reason is not None:
            raise QueueError(
                f"job {self.id} is paused because {progress.reason}: {_counts(progress)}; "
                "see h.errors(), then h.resume() or h.cancel()"
            )
        if left_alone and progress.refusals:
            worker, reason = progress.refusals[-1]
            raise RefusedError(f"job {self.id} is refused by {worker}: {reason}")
        if left_alone:
            raise QueueError(f"the workers of job {self.id} died: {_counts(progress)}; see what they printed")
        return False

    def _what_now(self) -> str:
        here = "" if self.processes is None else " (the workers of this process end with it)"
        return (
            f"job {self.id} goes on{here}: look at it with krablet.pluck.attach(db, {self.id!r}).wait(), "
            "end it with h.cancel()"
        )

    def errors(self) -> list[ErrorGroup]:
        """Why rows failed, grouped by exception, most rows first, each with a sample row and its traceback."""
        found = [
            group
            for session in self._shards.values()
            for group in session.run(lambda connection: _error_groups(connection, self.spec))
        ]
        return sorted(_by_exception(found), key=lambda group: -group.rows)

    def pause(self) -> None:
        """No further call begins, from about a second from now; calls in work end and are written."""
        self._set_state("paused", ("running",))

    def resume(self) -> None:
        """Let a paused job run again; as many more rows may fail as before."""
        self._set_state("running", ("paused",))

    def cancel(self) -> None:
        """End the job; calls in work are ended within about a second. What is written stays."""
        self._set_state("cancelled", (*OPEN_STATES, "preparing"))
        self.close()

    def _set_state(self, state: str, expected: tuple[str, ...]) -> None:
        for session in self._shards.values():
            session.run(
                lambda connection: jobs.set_state(
                    connection, self.id, state, expected=expected, errors=self.spec.max_errors
                )
            )

    def close(self) -> None:
        """End the workers that this process started, giving their batches back. The handle can still be asked."""
        atexit.unregister(self.close)
        if self.processes is not None:
            self.processes.stop()
        for session in self._shards.values() if self._owned else ():
            session.close()


def _by_exception(groups: Sequence[ErrorGroup]) -> list[ErrorGroup]:
    """The groups of all shards together; the sample row is that of the first."""
    together: dict[str, ErrorGroup] = {}
    for group in groups:
        first = together.get(group.exception, replace(group, rows=0, final=0))
        together[group.exception] = replace(first, rows=first.rows + group.rows, final=first.final + group.final)
    return list(together.values())


def _counts(progress: PluckProgress) -> str:
    return (
        f"{progress.state}, {progress.done} of about {progress.total} rows done, {progress.failed} failed, "
        f"{progress.workers} workers"
    )


def _error_groups(connection: Connection, spec: JobSpec) -> list[ErrorGroup]:
    groups = jobs.error_rows(connection, spec.id)
    # The order is not verified here, so its condition is not run: rows are found by their keys.
    source = source_of(connection, replace(spec, where="TRUE")) if groups else None
    return [
        ErrorGroup(exception, rows, final, key, sample_row(connection, source, key), message, trace)
        for exception, rows, final, key, message, trace in groups
        if source is not None
    ]
