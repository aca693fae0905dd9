"""What the read service has done and is doing."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pleinair.krablet.reading.limits import Run
from pleinair.krablet.reading.pools import ReadPools

WINDOW_SECONDS = 60.0


class ServiceStats:
    """Counters of one service; any thread may call."""

    def __init__(self, pools: ReadPools) -> None:
        self._pools = pools
        self._changed = threading.Condition()
        self._running: list[Run] = []
        self._done = self._failed = self._rows = self._bytes = 0
        self._recent: deque[tuple[float, int]] = deque()

    @contextmanager
    def counting(self, run: Run) -> Iterator[Callable[[pa.RecordBatch], None]]:
        """A running read; it is given what to call with every batch."""
        with self._changed:
            self._running.append(run)
        ended = False
        try:
            yield self._count
            ended = True
        finally:
            with self._changed:
                self._running = [other for other in self._running if other is not run]
                self._done, self._failed = self._done + ended, self._failed + (not ended)
                self._changed.notify_all()

    def _count(self, batch: pa.RecordBatch) -> None:
        now = time.monotonic()
        with self._changed:
            self._rows += batch.num_rows
            self._bytes += batch.nbytes
            self._recent.append((now, batch.num_rows))
            while self._recent[0][0] < now - WINDOW_SECONDS:
                self._recent.popleft()

    def wait_until_idle(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, seconds)

    def stop_all(self) -> None:
        """End every running read."""
        with self._changed:
            for run in self._running:
                run.stop.set()

    def snapshot(self) -> dict[str, Any]:
        """Counts since the start; `rows_per_second` over the last minute."""
        since = time.monotonic() - WINDOW_SECONDS
        with self._changed:
            recent = sum(rows for at, rows in self._recent if at >= since)
            return {
                "reads": {"running": len(self._running), "done": self._done, "failed": self._failed},
                "rows": self._rows,
                "bytes": self._bytes,
                "rows_per_second": round(recent / WINDOW_SECONDS, 1),
                "pool_size": self._pools.size,
                "shards": {pool.name: {"in_use": pool.in_use, "idle": pool.idle} for pool in self._pools.shards},
            }
