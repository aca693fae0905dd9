"""A claim of eight rows at growing tables: all pending, 99% done, and under a snapshot that somebody holds."""

from __future__ import annotations

import statistics
import time

from benchmarks.krablet.rounds import Result, result
from pleinair import krablet
from pleinair.krablet import Database, Stage

FILL = """
INSERT INTO big (key, payload) SELECT 'row-' || lpad(i::text, 9, '0'), md5(i::text) FROM generate_series(1, %s) AS i
"""
SIZES = {"100k": 100_000, "1m": 1_000_000, "5m": 5_000_000}


def measure(database: Database, sizes: dict[str, int] | None = None, snapshot_claims: int = 200_000) -> list[Result]:
    """`claim8_ms_*`: medians of up to 200 claims each, the worse of all pending and 99% done."""
    found = []
    for label, rows in (sizes or SIZES).items():
        stage = table_of(database, rows)
        times = min(200, rows // 1000)  # a hundredth of the rows must last
        pending = claim_milliseconds(stage, times)
        with database.connection() as connection:
            connection.execute("UPDATE big SET result = TRUE WHERE hashtext(key) % 100 <> 0")
            connection.execute("VACUUM ANALYZE big")
        done = claim_milliseconds(stage, times)
        print(f"claim of 8 at {rows} rows: all pending {pending:.2f} ms, 99% done {done:.2f} ms", flush=True)
        found.append(result(f"claim8_ms_{label}", max(pending, done), "ms"))
    return [*found, under_a_snapshot(database, snapshot_claims)]


def under_a_snapshot(database: Database, claims: int) -> Result:
    """The last 200 of many claims of 64 rows, completed, while another session holds a snapshot from before them."""
    stage = table_of(database, claims + 20_000)
    with database.connection() as other, other.transaction():
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT count(*) FROM big").fetchone()
        worked = 0

        def stop() -> bool:
            return worked >= claims

        def finish(rows: list[dict[str, object]]) -> list[dict[str, object]]:
            nonlocal worked
            worked += len(rows)
            return [{"result": True}] * len(rows)

        krablet.work(stage, finish, stop=stop, batches={"check": 64})
        held = claim_milliseconds(stage, 200)
    print(f"claim of 8 after {worked} claims under a held snapshot: {held:.2f} ms", flush=True)
    return result("claim8_ms_snapshot", held, "ms")


def table_of(database: Database, rows: int) -> Stage:
    with database.connection() as connection:
        connection.execute("DROP TABLE IF EXISTS big")
        table = database.table("big", key="key", columns={"key": "text", "payload": "text", "result": "boolean"})
        stage = table.stage("check", ready="result IS NULL", writes=["result"], batch=8)
        connection.execute(FILL, [rows])
        connection.execute("VACUUM ANALYZE big")
    return stage


def claim_milliseconds(stage: Stage, times: int) -> float:
    """The median of claims of eight, each with its durable commit."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        claim = stage.claim(8)
        taken.append(1000 * (time.perf_counter() - began))
        assert claim is not None
    return statistics.median(taken)
