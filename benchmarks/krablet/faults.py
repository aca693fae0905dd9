"""What goes wrong and what it costs: work done twice near the tail, rows that always fail, workers that are killed."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter

from benchmarks.krablet.rounds import SPAWN, Result, result
from pleinair import krablet
from pleinair.krablet import Database, Stage


def measure(database: Database) -> list[Result]:
    """`tail_waste`, `poison_throughput`, `poison_attempts`, `reclaim_seconds`, `reclaim_sigterm_seconds`."""
    return [tail_waste(database), *poison(database), *reclaim(database)]


def fresh_stage(
    database: Database, name: str, rows: int, *, lease_seconds: float = 60.0, analyse: bool = True
) -> Stage:
    with database.connection() as connection:
        connection.execute(f"DROP TABLE IF EXISTS {name}")
        table = database.table(name, key="key", columns={"key": "text", "result": "boolean"})
        stage = table.stage("check", ready="result IS NULL", writes=["result"], batch=64, lease_seconds=lease_seconds)
        table.insert_missing({"key": f"row-{number:06d}"} for number in range(rows))
        if analyse:
            connection.execute(f"VACUUM ANALYZE {name}")
    return stage


def tail_waste(database: Database, rows: int = 2000, workers: int = 16) -> Result:
    """Share of executions beyond one per row, 16 workers of 64."""
    stage = fresh_stage(database, "tail", rows)
    executions: Counter[object] = Counter()
    lock = threading.Lock()

    def check(batch: list[dict[str, object]]) -> list[dict[str, object]]:
        with lock:
            executions.update(row["key"] for row in batch)
        time.sleep(0.05)
        return [{"result": True}] * len(batch)

    threads = [threading.Thread(target=krablet.work, args=(stage, check)) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(executions) == rows, "every row was done"
    waste = sum(executions.values()) / rows - 1
    print(f"tail: {waste:.1%} wasted executions", flush=True)
    return result("tail_waste", waste, "share")


def poison(database: Database, good: int = 2000, bad: int = 20) -> list[Result]:
    """Throughput of good rows beside a run without poison, and attempts per poison row in ten seconds; lease 5 s."""

    def check(batch: list[dict[str, object]]) -> list[dict[str, object]]:
        if any(str(row["key"]).startswith("poison") for row in batch):
            raise ValueError("this row always fails")
        time.sleep(0.002 * len(batch))
        return [{"result": True}] * len(batch)

    seconds: dict[bool, list[float]] = {False: [], True: []}
    attempts = 0.0
    for with_poison in (False, True, False, True, False, True):
        stage = fresh_stage(database, "poisoned", good, lease_seconds=5.0)
        if with_poison:
            stage.table.insert_missing({"key": f"poison-{number}"} for number in range(bad))
        began, done = time.monotonic(), threading.Event()
        worker = threading.Thread(
            target=krablet.work, args=(stage, check), kwargs={"idle": "wait", "stop": done.is_set}
        )
        worker.start()
        while stage.table.count("result") < good:
            time.sleep(0.02)
        seconds[with_poison].append(time.monotonic() - began)
        if with_poison:
            time.sleep(max(0.0, 10 - (time.monotonic() - began)))
            attempts = max(row.attempts for row in stage.stuck(attempts=1))
        done.set()
        worker.join()
    throughput = sorted(seconds[False])[1] / sorted(seconds[True])[1]
    print(f"poison: {throughput:.1%} of the throughput without, at most {attempts:.0f} attempts in 10 s", flush=True)
    return [
        result("poison_throughput", throughput, "share", "the same without poison rows", throughput),
        result("poison_attempts", attempts, "attempts"),
    ]


def hold(dsn: str) -> None:
    """A worker that never finishes its batch."""
    with krablet.connect(dsn) as database:
        [stage] = [stage for stage in database.declared_stages() if stage.table.name == "held"]
        krablet.work(stage, lambda rows: time.sleep(3600) or [])  # type: ignore[func-returns-value]


def reclaim(database: Database) -> list[Result]:
    """Seconds from the end of a worker to its rows being claimed again, lease 10 s: killed, and asked to end."""
    found = []
    for name, how in (("reclaim_seconds", signal.SIGKILL), ("reclaim_sigterm_seconds", signal.SIGTERM)):
        # Without statistics a worker starts at the first row, so that one claim takes all.
        stage = fresh_stage(database, "held", 64, lease_seconds=10.0, analyse=False)
        worker = SPAWN.Process(target=hold, args=(database.dsn,))
        worker.start()
        while stage.depth().leased < 64:
            time.sleep(0.05)
        assert worker.pid is not None
        began = time.monotonic()
        getattr(worker, "kill" if how == signal.SIGKILL else "terminate")()
        while stage.claim() is None:
            time.sleep(0.05)
        found.append(result(name, time.monotonic() - began, "s"))
        print(f"{name}: {found[-1]['value']:.2f} s (lease 10 s)", flush=True)
        worker.join()
    return found
