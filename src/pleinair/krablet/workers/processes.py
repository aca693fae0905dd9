"""Worker processes kept at a number: dead ones are replaced after a delay, all end when the pool is left.

pool --socket--> worker process: JSON, what to do; end-of-file = the supervisor is gone, however it died
     <--socket-- one line per settled claim; end-of-file = the worker ended: replace it
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
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pleinair.krablet.workers.memory import MemoryWatch, too_low
from pleinair.records.errors import DatabaseError

LONGEST_RESPAWN_DELAY_SECONDS = 10.0


@dataclass
class _WorkerProcess:
    process: subprocess.Popen[bytes]
    link: socket.socket
    unread: bytes = field(default=b"")
    ready: bool = False
    """Whether it said that it has loaded everything; only those with a memory ceiling do."""


class Pool:
    """Worker processes kept at a number: dead ones are replaced, all end when the pool is left."""

    def __init__(
        self,
        job: Mapping[str, object],
        processes: int,
        grace_seconds: float,
        max_deaths: int,
        memory_mb: float | None,
        report: Callable[[str, int, int, float], None],
    ) -> None:
        self._job = json.dumps(job).encode() + b"\n"
        self._processes = processes
        self._grace_seconds = grace_seconds
        self._max_deaths = max_deaths
        self._report = report
        self._workers: list[_WorkerProcess] = []
        self._selector = selectors.DefaultSelector()
        self._deaths_in_a_row = 0
        self._next_start = 0.0
        self._memory = None if memory_mb is None else MemoryWatch(memory_mb, self._running)
        self.deaths = 0
        self.retired = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self._end_all()

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(worker.process.pid for worker in self._workers)

    def _running(self) -> dict[int, subprocess.Popen[bytes]]:
        return {worker.process.pid: worker.process for worker in tuple(self._workers)}

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
        if not self._read_some(worker):
            self._bury(worker)

    def _read_to_the_end(self, worker: _WorkerProcess) -> None:
        """Its last reports: what it had settled when it was asked to end counts."""
        while self._read_some(worker):
            pass

    def _read_some(self, worker: _WorkerProcess) -> bool:
        try:
            received = worker.link.recv(65536)
        except ConnectionResetError:
            received = b""
        *lines, worker.unread = (worker.unread + received).split(b"\n")
        for line in lines:
            self._note(worker, json.loads(line))
        return bool(received)

    def _note(self, worker: _WorkerProcess, message: Mapping[str, object]) -> None:
        if "fatal" in message:
            raise DatabaseError(str(message["fatal"]))
        if "ready" in message or "retired" in message:
            worker.ready = True
            self.retired += "retired" in message
            return
        completed, failed = int(str(message["completed"])), int(str(message["failed"]))
        if completed:
            self._deaths_in_a_row = 0
        self._report(f"{message['table']}.{message['stage']}", completed, failed, float(str(message["cpu_seconds"])))

    def _bury(self, worker: _WorkerProcess) -> None:
        self._forget(worker)
        code = worker.process.wait()
        if code == 0:
            return
        had_mb = None if self._memory is None else self._memory.ended.get(worker.process.pid)
        if self._memory is not None and had_mb is not None and not worker.ready:
            raise too_low(self._memory.memory_mb, had_mb)
        self.deaths += 1
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= self._max_deaths:
            ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            if had_mb is not None:
                ending = f"the supervisor at {had_mb:.0f} MiB, far above memory_mb"
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
        if self._memory is not None:
            self._memory.close()
        for worker in self._workers:
            worker.process.terminate()
        deadline = time.monotonic() + self._grace_seconds
        for worker in list(self._workers):
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            with suppress(DatabaseError):  # one that ends now has nothing to say that matters any more
                self._read_to_the_end(worker)
            self._forget(worker)
        self._selector.close()


def _python_path() -> str:
    ours = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])
