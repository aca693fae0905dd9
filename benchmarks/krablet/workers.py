"""1 -> 10 -> 100 -> 1,000 -> 100 -> 10 -> 1 live workers while rows flow in: is a row lost or done twice, and how fast is it?

A worker is a slot: it has a claim of its own, waits 20 ms for each batch of 4 rows, as for something far away, and holds
no connection meanwhile. At every step the new processes begin before the old ones are asked to end by SIGTERM, in the
middle of whatever they do.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.krablet.rounds import SPAWN, Result, result
from pleinair import krablet
from pleinair.krablet import Database
from pleinair.krablet.connections import Connection

STEPS = (1, 10, 100, 1000, 100, 10, 1)
WARM_SECONDS, MEASURED_SECONDS = 1.0, 5.0
BATCH, WAIT_SECONDS = 4, 0.02
PROCESSES = {1: 1, 10: 2, 100: 4, 1000: 4}

CREATE = """
DROP TABLE IF EXISTS visits, done_twice;
CREATE TABLE done_twice (key text);
CREATE OR REPLACE FUNCTION note_done_twice() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO done_twice VALUES (NEW.key); RETURN NEW; END $$;
"""
WATCH = """
CREATE TRIGGER done_twice BEFORE UPDATE OF result ON visits FOR EACH ROW
WHEN (OLD.result IS NOT NULL) EXECUTE FUNCTION note_done_twice();
"""
FILL = "INSERT INTO visits (key) SELECT 'row-' || lpad(i::text, 9, '0') FROM generate_series(%s::int, %s::int) AS i"
CLIENTS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"


async def fetch(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    await asyncio.sleep(WAIT_SECONDS)
    return [{"result": True}] * len(rows)


def serve(dsn: str, slots: int, completed: Any, live: Any) -> None:
    """A process of `slots` workers, until SIGTERM."""

    def count(stage: krablet.Stage, settled: krablet.Settled) -> None:
        with completed.get_lock():
            completed.value += settled.completed

    with krablet.connect(dsn) as database:
        [stage] = [stage for stage in database.declared_stages() if stage.table.name == "visits"]
        live.release()
        krablet.work(stage, fetch, slots=slots, idle="wait", on_settled=count)


class Crew:
    """Processes with so many workers in all."""

    def __init__(self, dsn: str, workers: int, completed: Any) -> None:
        live, count = SPAWN.Semaphore(0), PROCESSES[workers]
        given = (dsn, workers // count, completed, live)
        self._processes = [SPAWN.Process(target=serve, args=given) for _ in range(count)]
        for process in self._processes:
            process.start()
        for _ in self._processes:
            live.acquire()

    def end(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        assert all(process.exitcode == 0 for process in self._processes), "every process gave its rows back and ended"


@dataclass
class Inflow:
    """Rows inserted while the workers work, and the most connections the server had."""

    completed: Any
    backlog: int = 0
    inserted: int = 0
    connections: int = 0
    ended: bool = False

    def run(self, connection: Connection) -> None:
        while not self.ended:
            [(clients,)] = connection.execute(CLIENTS)
            self.connections = max(self.connections, clients)
            if self.inserted - self.completed.value < self.backlog:
                more = max(100, self.backlog // 4)
                connection.execute(FILL, (self.inserted, self.inserted + more - 1))
                self.inserted += more
            time.sleep(0.02)


@contextmanager
def flowing(database: Database, completed: Any) -> Iterator[Inflow]:
    inflow = Inflow(completed)
    with database.connection() as connection:
        thread = threading.Thread(target=inflow.run, args=(connection,))
        thread.start()
        try:
            yield inflow
        finally:
            inflow.ended = True
            thread.join()


def rows_per_second(completed: Any) -> float:
    time.sleep(WARM_SECONDS)
    before, began = completed.value, time.monotonic()
    time.sleep(MEASURED_SECONDS)
    return float((completed.value - before) / (time.monotonic() - began))


def measure(database: Database) -> list[Result]:
    """`workers_1000_lost`, `workers_1000_connections`, `workers_<n>_rows_per_second`."""
    prepare(database)
    completed, crew = SPAWN.Value("q", 0), None
    rates: list[tuple[int, float]] = []
    with flowing(database, completed) as inflow:
        for workers in STEPS:
            inflow.backlog = min(20_000, 400 * workers)
            before, crew = crew, Crew(database.dsn, workers, completed)
            if before is not None:
                before.end()
            rates.append((workers, rows_per_second(completed)))
            print(f"{workers} workers: {rates[-1][1]:.0f} rows/s", flush=True)
    wrong = drain(database, crew, completed, inflow.inserted)
    print(f"{inflow.inserted} rows, {wrong} lost or doubled, at most {inflow.connections} connections", flush=True)
    upward = dict(reversed(rates))
    return [
        result("workers_1000_lost", wrong, "rows"),
        result("workers_1000_connections", inflow.connections, "connections"),
        *(result(f"workers_{n}_rows_per_second", rate, "rows/s") for n, rate in sorted(upward.items())),
    ]


def prepare(database: Database) -> None:
    with database.connection() as connection:
        connection.execute(CREATE)
        table = database.table("visits", key="key", columns={"key": "text", "result": "boolean"})
        table.stage("fetch", ready="result IS NULL", writes=["result"], batch=BATCH)
        connection.execute(WATCH)


def drain(database: Database, crew: Crew | None, completed: Any, inserted: int) -> int:
    """Let 100 workers do what is left; how many rows were lost or done twice in all."""
    helpers = Crew(database.dsn, 100, completed)
    [stage] = [stage for stage in database.declared_stages() if stage.table.name == "visits"]
    deadline = time.monotonic() + 90
    while stage.depth().pending and time.monotonic() < deadline:
        time.sleep(0.1)
    helpers.end()
    if crew is not None:
        crew.end()
    with database.connection() as connection:
        [(done, twice)] = connection.execute("SELECT count(result), (SELECT count(*) FROM done_twice) FROM visits")
    return int(inserted - done + twice + abs(completed.value - done))
