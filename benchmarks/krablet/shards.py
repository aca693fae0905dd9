"""Three local shards against one, on the same machine: what grows with servers here, and what the processors cap."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.krablet.rounds import Result, interleaved, ratio, result, temporary_server, together
from pleinair import krablet
from pleinair.krablet import Database

COLUMNS = {"key": "text", "result": "boolean"}
WORKERS = 6


def measure(database: Database, rounds: int = 5, rows: int = 30_000) -> list[Result]:
    """Claims and upserts by six processes on three shards, with the ratio to one, and how busy the processors were."""
    with three_shards() as three:
        found = []
        for name, once in (("claims", claims_per_second), ("upserts", upserts_per_second)):
            found += compared(name, partial(once, rows=rows), database, three, rounds)
        return found


def compared(name: str, once: Callable[[Database], float], one: Database, three: Database, rounds: int) -> list[Result]:
    busy_one: list[float] = []
    busy_three: list[float] = []
    runs = {
        "one": lambda: watched(lambda: once(one), busy_one),
        "three": lambda: watched(lambda: once(three), busy_three),
    }
    values = interleaved(rounds, runs)
    of_one, share_one, share_three = median(values["one"]), median(busy_one), median(busy_three)
    print(f"{name}: processors busy {share_one:.0%} with one shard, {share_three:.0%} with three", flush=True)
    return [
        result(f"{name}_one_shard", of_one, "rows/s"),
        result(
            f"{name}_three_shards",
            median(values["three"]),
            "rows/s",
            "one shard",
            ratio(values["three"], values["one"]),
        ),
        result(f"{name}_three_shards_busy", share_three, "share", "one shard", share_three / share_one),
    ]


@contextmanager
def three_shards() -> Iterator[Database]:
    with temporary_server() as database:
        database.add_embedded(2)
        yield database


def watched(run: Callable[[], float], busy: list[float]) -> float:
    """What `run` returns; the share of the processors in use meanwhile is noted in `busy`."""
    before = processor_times()
    value = run()
    used, total = (now - then for now, then in zip(processor_times(), before, strict=True))
    busy.append(used / total)
    return value


def processor_times() -> tuple[int, int]:
    """Ticks of all processors since boot: in use, and in all."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def emptied(database: Database) -> krablet.Table:
    for shard in database.shards:
        shard.session.run(lambda connection: connection.execute("DROP TABLE IF EXISTS spread"))
    table = database.table("spread", key="key", columns=COLUMNS)
    table.stage("check", ready="result IS NULL", writes=["result"], batch=64)
    return table


def claims_per_second(database: Database, rows: int) -> float:
    table = emptied(database)
    table.insert_missing({"key": f"row-{number:09d}"} for number in range(rows))
    for shard in database.shards:
        shard.session.run(lambda connection: connection.execute("VACUUM ANALYZE spread"))
    done, seconds = together(WORKERS, worker, str(database.directory))
    assert done == rows, "every row was done once"
    return rows / seconds


def worker(begin: Callable[[], None], directory: str) -> int:
    with krablet.connect(directory=Path(directory)) as database:
        [stage] = [stage for stage in database.declared_stages() if stage.table.name == "spread"]
        begin()
        return krablet.work(stage, lambda rows: [{"result": True}] * len(rows)).completed


def upserts_per_second(database: Database, rows: int) -> float:
    emptied(database)
    done, seconds = together(WORKERS, writer, str(database.directory), rows // WORKERS)
    return done / seconds


def writer(begin: Callable[[], None], directory: str, rows: int) -> int:
    with krablet.connect(directory=Path(directory)) as database:
        table = database.declared_table("spread")
        begin()
        return sum(
            table.upsert({"key": f"{os.getpid()}-{number}-{place}", "result": True} for place in range(100))
            for number in range(rows // 100)
        )
