"""What the tests of pluck share: a table of numbered rows, a worker in this process, and workers to be killed."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pleinair import krablet
from pleinair.krablet.pluck import Handle, pluck
from pleinair.krablet.pluck.signing import Key, load_key
from pleinair.krablet.pluck.worker import Worker, WorkerSettings


@dataclass(frozen=True)
class Numbers:
    """A table of numbers, `doubled` still to be computed, and a key file for its jobs."""

    database: krablet.Database
    table: krablet.Table
    key_file: Path

    @property
    def key(self) -> Key:
        return load_key(self.key_file)

    def add(self, count: int) -> None:
        self.sql(
            "INSERT INTO numbers (name, value) SELECT 'n' || lpad(i::text, 6, '0'), i FROM generate_series(0, %s) i",
            count - 1,
        )

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        def execute(connection: Any) -> list[tuple[Any, ...]]:
            cursor = connection.execute(statement, values or None)
            return list(cursor.fetchall()) if cursor.description else []

        return self.database.session.run(execute)

    def job(self, function: Callable[..., Any], **options: Any) -> Handle:
        """A job without workers; each row gets one attempt unless told otherwise."""
        where = options.pop("where", "doubled IS NULL")
        given = {"output": "doubled", "key_file": self.key_file, "attempts": 1, "batch": 8, **options}
        return pluck(self.database, "numbers", "name", where).map(function, **given)

    def work(self, handle: Handle, **settings: Any) -> bool:
        """Be a worker of this job until it ends; False if it is refused."""
        given = {"keys": [self.key], "job": handle.id, "report": lambda line: None, **settings}
        session = self.database.session.fresh(5.0)
        try:
            return Worker({"0": session}, WorkerSettings(**given)).run()
        finally:
            session.close()

    def done(self) -> dict[str, int]:
        return dict(self.sql("SELECT name, doubled FROM numbers WHERE doubled IS NOT NULL ORDER BY name"))

    def doubles(self, count: int) -> dict[str, int]:
        return {f"n{number:06d}": 2 * number for number in range(count)}


@dataclass
class Forked:
    """A worker in a process of its own, made by fork: it starts at once, and may be killed."""

    numbers: Numbers
    handle: Handle
    settings: dict[str, Any] = field(default_factory=dict)
    pid: int = 0

    def __post_init__(self) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.numbers.work(self.handle, **self.settings)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)

    def end(self, signal_number: int) -> int:
        os.kill(self.pid, signal_number)
        return self.wait()

    def wait(self) -> int:
        return os.waitpid(self.pid, 0)[1]


def double(rows: list[dict[str, Any]]) -> list[int]:
    return [2 * row["value"] for row in rows]


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
