"""What a worker says of itself, so that people see who works and how fast: written every few seconds, on the first shard.

Losing an entry in a crash costs nothing, so these commits do not wait for the disk.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Sequence

from pleinair.krablet.claims import Settled
from pleinair.krablet.connections import Connection
from pleinair.krablet.queries import query
from pleinair.krablet.stages import Stage


class WorkLog:
    """One worker's entries; `add` is called by the working thread, `write` by the one that keeps its lease."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._worker = uuid.uuid4()
        self._stages = [stage.label for stage in stages]
        self._lock = threading.Lock()
        self._done: dict[tuple[str, str], Settled] = {}

    def add(self, stage: Stage, settled: Settled) -> None:
        """Count what became of a claim."""
        with self._lock:
            name = (stage.table.name, stage.name)
            self._done[name] = self._done.get(name, Settled()) + settled

    def write(self, connection: Connection) -> None:
        """Say that the worker lives and what it did since the last time."""
        with self._lock:
            done, self._done = self._done, {}
        me = {"worker": self._worker, "host": socket.gethostname(), "pid": os.getpid(), "stages": self._stages}
        try:
            with connection.transaction():
                connection.execute("SET LOCAL synchronous_commit = off")
                connection.execute(query("watching", "greet"), me)
                for (table, stage), settled in sorted(done.items()):
                    counts = {"completed": settled.completed, "failed": settled.failed, "lost": settled.lost}
                    told = {"table": table, "stage": stage, "worker": self._worker, **counts}
                    connection.execute(query("watching", "log_work"), told)
        except BaseException:
            with self._lock:
                for name, settled in done.items():
                    self._done[name] = self._done.get(name, Settled()) + settled
            raise

    def close(self, connection: Connection) -> None:
        """Write the rest and be gone."""
        self.write(connection)
        connection.execute(query("watching", "say_goodbye"), {"worker": self._worker})
        connection.execute(query("watching", "forget_old_work"))
