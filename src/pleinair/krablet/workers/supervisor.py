"""Worker processes for a set of stages, supervised until the stages are drained.

    supervisor --socket--> worker process: JSON, what to do; end-of-file = the supervisor is gone, however it died
               <--socket-- one line per settled claim; end-of-file = the worker died: replace it, after a delay

The supervisor looks at the depth of all stages in one snapshot: a row on its way from one stage to the next is seen in
exactly one of them, so "nothing pending anywhere" is true when it is said. Rows that failed `give_up_after` times are
not waited for: they stay in their queue, are reported as stuck, and the next run tries them again.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from psycopg import IsolationLevel

from pleinair.krablet.connections import Connection
from pleinair.krablet.database import Database
from pleinair.krablet.moves import resume_moves
from pleinair.krablet.places import opener
from pleinair.krablet.shards import Shards
from pleinair.krablet.stages import STUCK_AFTER, Depth, Stage, StageSpec, StuckRow, stage_depth
from pleinair.krablet.tables import load_stage, load_table
from pleinair.krablet.workers.loop import PATIENCE_SECONDS
from pleinair.records.errors import ConfigError, DatabaseError

RATE_WINDOW_SECONDS = 30.0
LONGEST_RESPAWN_DELAY_SECONDS = 10.0
COUNTING_SHARE = 0.05  # of the time, at most, is spent counting what is left


@dataclass(frozen=True)
class StageProgress:
    """One stage of a run, as it is now. `completed` and `failed` count this run's results; the rest is the queue."""

    table: str
    stage: str
    claimable: int
    leased: int
    waiting: int
    stuck: int
    completed: int
    failed: int
    rows_per_second: float
    eta_seconds: float | None
    """None while the rate is unknown."""

    @property
    def pending(self) -> int:
        return self.claimable + self.leased + self.waiting


@dataclass(frozen=True)
class Progress:
    """A run, as it is now."""

    stages: tuple[StageProgress, ...]
    seconds: float
    worker_pids: tuple[int, ...]
    deaths: int

    @property
    def workers(self) -> int:
        return len(self.worker_pids)


@dataclass(frozen=True)
class RunSummary:
    """A run that ended: results by "table.stage", the rows given up on, and how often a worker died."""

    completed: dict[str, int]
    failed: dict[str, int]
    stuck: dict[str, list[StuckRow]]
    seconds: float
    deaths: int


def run_workers(
    database: str | Database,
    stages: Sequence[StageSpec],
    *,
    processes: int = 2,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    give_up_after: int = STUCK_AFTER,
    interval_seconds: float = 1.0,
    grace_seconds: float = 10.0,
    max_deaths: int = 12,
    patience_seconds: float = PATIENCE_SECONDS,
) -> RunSummary:
    """Run worker processes until nothing is pending in `stages`; what they did.

    Each process works on every stage in turn. Given a Database whose embedded server dies, it is started again.
    `on_progress` is called about once per `interval_seconds`. Ctrl-C and `stop()` end the workers with SIGTERM (rows in
    work are given back), and SIGKILL after `grace_seconds`. Raises DatabaseError when `max_deaths` workers in a row die
    without completing a row, when a function cannot be imported, or when Postgres stays away for `patience_seconds`.
    """
    if processes < 1:
        raise ConfigError(f"processes is {processes}: give 1 or more")
    shards = _shards(database, patience_seconds)
    try:
        opened = [load_stage(load_table(shards, spec.table), spec.stage) for spec in stages]
        for stage in opened:
            stage.retry()
        tally = _Tally(opened)
        job = {
            "dsn": shards.catalog.dsn,
            "home": None if isinstance(database, str) or database.directory is None else str(database.directory),
            "secrets": {} if isinstance(database, str) else database.secrets,
            "stages": [asdict(spec) for spec in stages],
            "path": sys.path,
            "patience_seconds": patience_seconds,
        }
        with _Pool(json.dumps(job).encode() + b"\n", processes, grace_seconds, max_deaths, tally.add) as pool:
            _supervise(shards, opened, pool, tally, on_progress, stop, give_up_after, interval_seconds)
        return tally.summary({stage.label: stage.stuck(attempts=give_up_after) for stage in opened}, pool.deaths)
    finally:
        shards.close()


def _shards(database: str | Database, patience_seconds: float) -> Shards:
    if isinstance(database, Database):
        return database.shards.fresh(patience_seconds)
    open_place = opener(
        database, None, attach=None, patience_seconds=patience_seconds, application="pleinair supervisor"
    )
    return Shards(open_place(database), open_place, resume_moves)


def _supervise(
    shards: Shards,
    stages: Sequence[Stage],
    pool: _Pool,
    tally: _Tally,
    on_progress: Callable[[Progress], None],
    stop: Callable[[], bool],
    give_up_after: int,
    interval_seconds: float,
) -> None:
    while True:
        depths, counting_seconds = _depths(shards, stages, give_up_after)
        on_progress(tally.progress(depths, pool.pids, pool.deaths))
        if stop() or not (any(depth.pending for depth in depths) or shards.in_transit()):
            return
        pool.attend(max(interval_seconds, counting_seconds / COUNTING_SHARE))


def _depths(shards: Shards, stages: Sequence[Stage], give_up_after: int) -> tuple[list[Depth], float]:
    """The depth of every stage, of each shard in one snapshot, and how long counting took (outages not counted)."""
    shards.reload()
    counted = shards.each(lambda connection: _shard_depths(connection, stages, give_up_after))
    depths = [sum(of_stage, Depth()) for of_stage in zip(*(depths for depths, _ in counted), strict=True)]
    return depths, sum(seconds for _, seconds in counted)


def _shard_depths(connection: Connection, stages: Sequence[Stage], give_up_after: int) -> tuple[list[Depth], float]:
    began = time.monotonic()
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    with connection.transaction():
        depths = [stage_depth(connection, stage, give_up_after) for stage in stages]
    connection.isolation_level = None
    return depths, time.monotonic() - began


class _Tally:
    """What the workers reported, and the rate over the last seconds."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self._began = time.monotonic()
        self._completed = {stage.label: 0 for stage in stages}
        self._failed = {stage.label: 0 for stage in stages}
        self._samples: deque[tuple[float, dict[str, int]]] = deque([(self._began, dict(self._completed))])

    def add(self, label: str, completed: int, failed: int) -> None:
        self._completed[label] += completed
        self._failed[label] += failed

    def progress(self, depths: Sequence[Depth], pids: tuple[int, ...], deaths: int) -> Progress:
        now = time.monotonic()
        self._samples.append((now, dict(self._completed)))
        while len(self._samples) > 2 and self._samples[1][0] < now - RATE_WINDOW_SECONDS:
            self._samples.popleft()
        stages = tuple(self._stage(stage, depth, now) for stage, depth in zip(self._stages, depths, strict=True))
        return Progress(stages, now - self._began, pids, deaths)

    def _stage(self, stage: Stage, depth: Depth, now: float) -> StageProgress:
        then, completed_then = self._samples[0]
        completed = self._completed[stage.label]
        rate = (completed - completed_then[stage.label]) / (now - then) if now > then else 0.0
        eta = 0.0 if depth.pending == 0 else depth.pending / rate if rate > 0 else None
        return StageProgress(
            stage.table.name, stage.name, **asdict(depth), completed=completed, failed=self._failed[stage.label],
            rows_per_second=rate, eta_seconds=eta,
        )  # fmt: skip

    def summary(self, stuck: dict[str, list[StuckRow]], deaths: int) -> RunSummary:
        return RunSummary(self._completed, self._failed, stuck, time.monotonic() - self._began, deaths)


@dataclass
class _WorkerProcess:
    process: subprocess.Popen[bytes]
    link: socket.socket
    unread: bytes = field(default=b"")


class _Pool:
    """Worker processes kept at a number: dead ones are replaced, all end when the pool is left."""

    def __init__(
        self,
        job: bytes,
        processes: int,
        grace_seconds: float,
        max_deaths: int,
        report: Callable[[str, int, int], None],
    ) -> None:
        self._job = job
        self._processes = processes
        self._grace_seconds = grace_seconds
        self._max_deaths = max_deaths
        self._report = report
        self._workers: list[_WorkerProcess] = []
        self._selector = selectors.DefaultSelector()
        self._deaths_in_a_row = 0
        self._next_start = 0.0
        self.deaths = 0

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._end_all()

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(worker.process.pid for worker in self._workers)

    def attend(self, seconds: float) -> None:
        """Replace the dead and read reports for this long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._start_missing()
            for key, _ in self._selector.select(min(left, 0.2)):
                self._read(key.data)

    def _start_missing(self) -> None:
        while len(self._workers) < self._processes and time.monotonic() >= self._next_start:
            self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pleinair.krablet.workers.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": _python_path()},
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        worker = _WorkerProcess(process, ours)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        with suppress(BrokenPipeError):  # it died at once; the end-of-file says so
            ours.sendall(self._job)

    def _read(self, worker: _WorkerProcess) -> None:
        try:
            received = worker.link.recv(65536)
        except ConnectionResetError:
            received = b""
        *lines, worker.unread = (worker.unread + received).split(b"\n")
        for line in lines:
            self._note(json.loads(line))
        if not received:
            self._bury(worker)

    def _note(self, message: Mapping[str, object]) -> None:
        if "fatal" in message:
            raise DatabaseError(str(message["fatal"]))
        completed, failed = int(str(message["completed"])), int(str(message["failed"]))
        if completed:
            self._deaths_in_a_row = 0
        self._report(f"{message['table']}.{message['stage']}", completed, failed)

    def _bury(self, worker: _WorkerProcess) -> None:
        self._forget(worker)
        code = worker.process.wait()
        if code == 0:
            return
        self.deaths += 1
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= self._max_deaths:
            ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            raise DatabaseError(
                f"{self._deaths_in_a_row} workers in a row died without completing a row, the last by {ending}: "
                "see what it printed above; run the function on one row by hand"
            )
        delay = 0.1 * 2 ** min(self._deaths_in_a_row, 10)
        self._next_start = time.monotonic() + min(delay, LONGEST_RESPAWN_DELAY_SECONDS)

    def _forget(self, worker: _WorkerProcess) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.link)
        worker.link.close()

    def _end_all(self) -> None:
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + self._grace_seconds
        for worker in list(self._workers):
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            self._forget(worker)
        self._selector.close()


def _python_path() -> str:
    ours = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])
