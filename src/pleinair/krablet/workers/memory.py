"""How much memory a worker process may have.

    between batches: more than memory_mb        -> the worker ends by itself, and another takes its place
    at any time:     more than 1.5 x memory_mb  -> the supervisor ends it: a row that explodes dies alone, as any that kills

What is counted is resident memory, of the process alone and not of programs it starts. A limit of the system's own on
address space would strike at once, but counts what is only reserved, which for a GPU is terabytes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

from pleinair.records.errors import ConfigError

HARD_FACTOR = 1.5
_LOOK_SECONDS = 0.05
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20


def resident_mb(pid: int) -> float:
    """The resident memory of a process in MiB; 0 when it has just ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE_MB
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def check_ceiling(memory_mb: float | None) -> None:
    """Returns if this machine can keep that ceiling. Raises ConfigError."""
    if memory_mb is not None and memory_mb <= 0:
        raise ConfigError(f"memory_mb is {memory_mb}: give a positive number of MiB")
    if memory_mb is not None and not Path("/proc/self/statm").exists():
        raise ConfigError("memory_mb needs /proc, which this system does not have: leave it out")


def be_the_first_to_go() -> None:
    """When the machine is out of memory, the system ends this process rather than Postgres."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800", "ascii")


def too_low(memory_mb: float, found_mb: float) -> ConfigError:
    """Why a run cannot keep its ceiling: another process would fare no better."""
    return ConfigError(
        f"memory_mb is {memory_mb:g} and a worker has {found_mb:.0f} MiB before its first batch: give more"
    )


class Ceiling:
    """For `stop` of a worker: true once this process has more than `memory_mb`."""

    def __init__(self, memory_mb: float, on_ready: Callable[[], None]) -> None:
        """`on_ready` is called before the first batch, when all is loaded and there is room left."""
        self._memory_mb = memory_mb
        self._on_ready = on_ready
        self._ready = False
        self.reached = False

    def __call__(self) -> bool:
        """Raises ConfigError when it is so before the first batch."""
        found = resident_mb(os.getpid())
        if not self._ready:
            if found > self._memory_mb:
                raise too_low(self._memory_mb, found)
            self._ready = True
            self._on_ready()
        self.reached = found > self._memory_mb
        return self.reached


class MemoryWatch:
    """A thread that ends processes far above the ceiling, whatever else the supervisor is busy with."""

    def __init__(self, memory_mb: float, processes: Callable[[], Mapping[int, Popen[bytes]]]) -> None:
        self.memory_mb = memory_mb
        self._processes = processes
        self._closing = threading.Event()
        self.ended: dict[int, float] = {}
        """What those it ended had, by process id."""
        self._thread = threading.Thread(target=self._watch, name="pleinair-memory", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closing.wait(_LOOK_SECONDS):
            for pid, process in self._processes().items():
                if (found := resident_mb(pid)) > HARD_FACTOR * self.memory_mb:
                    self.ended[pid] = found
                    process.kill()
                    time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
