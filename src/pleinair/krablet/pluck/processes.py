"""Worker processes of pluck, kept at a number by the process that started them; they end with it."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from pleinair.krablet.pluck.jobs import LEASE_SECONDS, NO_LIMITS, Limits
from pleinair.krablet.pluck.runner import Confinement
from pleinair.krablet.pluck.signing import Key

REFUSED = 3
"""Exit status of a worker that refused the only job it was for: another would refuse it too."""
EARLY_SECONDS, MOST_EARLY_DEATHS = 10.0, 12
"""So many workers in a row that live so short are not replaced any more: something is wrong with all of them."""
_LONGEST_DELAY_SECONDS = 10.0
_PR_SET_DUMPABLE = 4
_TICK_SECONDS = 0.2


def worker_order(
    shards: Mapping[str, str],
    keys: Sequence[Key],
    *,
    job: str | None = None,
    confinement: Confinement | None = None,
    most: Limits = NO_LIMITS,
    ledger: Path | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> bytes:
    """What a worker process is told: connection strings by shard name, the keys that count, and how it works."""
    order = {
        "shards": dict(shards),
        "keys": [key.text for key in keys],
        "job": job,
        "confinement": asdict(confinement or Confinement()),
        "most": asdict(most),
        "ledger": None if ledger is None else str(ledger),
        "lease_seconds": lease_seconds,
    }
    return json.dumps(order).encode() + b"\n"


class WorkerProcesses:
    """`count` worker processes. Dead ones are replaced until `stop`; a thread sees to it."""

    def __init__(self, order: bytes, count: int) -> None:
        self._order = order
        self._missing = count
        self._running: list[tuple[subprocess.Popen[bytes], socket.socket]] = []
        self._early_deaths = 0
        self._started_at: dict[int, float] = {}
        self._next_start = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._attend, name="pleinair-pluck-workers", daemon=True)
        self._thread.start()

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process, _ in self._running)

    @property
    def alive(self) -> bool:
        """False once every process ended and none is to be replaced."""
        return bool(self._running) or self._missing > 0

    def wait(self, seconds: float | None = None) -> None:
        """Until no process is left, or for some seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self.alive and not self._stopping.is_set() and (deadline is None or time.monotonic() < deadline):
            time.sleep(_TICK_SECONDS)

    def stop(self, grace_seconds: float = 10.0) -> None:
        """SIGTERM, so that batches are given back; SIGKILL to those that do not end in time."""
        self._stopping.set()
        self._thread.join()
        for process, _ in self._running:
            process.terminate()
        deadline = time.monotonic() + grace_seconds
        for process, link in self._running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            link.close()
        self._running.clear()
        self._missing = 0

    def _attend(self) -> None:
        while self.alive and not self._stopping.is_set():
            while self._missing and time.monotonic() >= self._next_start:
                self._start()
            self._stopping.wait(_TICK_SECONDS)
            self._bury()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pleinair.krablet.pluck.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": _python_path()},
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        self._running.append((process, ours))
        self._started_at[process.pid] = time.monotonic()
        self._missing -= 1
        with suppress(BrokenPipeError):  # it died at once, which the next look finds
            ours.sendall(self._order)

    def _bury(self) -> None:
        for process, link in [entry for entry in self._running if entry[0].poll() is not None]:
            self._running.remove((process, link))
            link.close()
            lived = time.monotonic() - self._started_at.pop(process.pid)
            if process.returncode not in (0, REFUSED):
                self._replace(lived)

    def _replace(self, lived_seconds: float) -> None:
        """Start another after a while, longer after each that died early; none when that goes on and on."""
        self._early_deaths = 0 if lived_seconds >= EARLY_SECONDS else self._early_deaths + 1
        if self._early_deaths < MOST_EARLY_DEATHS:
            self._missing += 1
            self._next_start = time.monotonic() + min(0.1 * 2**self._early_deaths, _LONGEST_DELAY_SECONDS)


def _python_path() -> str:
    ours = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])


def hide_memory() -> None:
    """On Linux: other processes of this user, such as the function's, cannot look into this one's memory."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
