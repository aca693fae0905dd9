"""Claim + complete of small rows by two workers: ours beside a bare hand-written psycopg loop, and two peers.

The bare loop has a narrow table, a partial index, no lease, no token, no errors, and like ours completes a batch and
claims the next in one round trip and one commit. All are durable.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from benchmarks.krablet.rounds import Result, interleaved, ratio, result, together
from pleinair import krablet
from pleinair.krablet import Database

CREATE = """
DROP TABLE IF EXISTS bare;
CREATE TABLE bare (key text PRIMARY KEY, tried_at timestamptz, result boolean);
CREATE INDEX bare_ready ON bare (tried_at NULLS FIRST) WHERE result IS NULL;
"""
FILL = "INSERT INTO {table} (key) SELECT 'row-' || lpad(i::text, 9, '0') FROM generate_series(1, {rows:d}) AS i"
CLAIM = """
UPDATE bare SET tried_at = now() WHERE key = ANY (ARRAY(
    SELECT key FROM bare WHERE result IS NULL AND (tried_at IS NULL OR tried_at < now() - interval '60 s')
    ORDER BY tried_at NULLS FIRST LIMIT {batch:d} FOR UPDATE SKIP LOCKED))
RETURNING key
"""
COMPLETE = "UPDATE bare SET result = TRUE WHERE key = ANY (%s::text[])"


def bare_worker(begin: Callable[[], None], dsn: str, batch: int) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        claim, done = CLAIM.format(batch=batch), 0
        begin()
        keys = [key for (key,) in connection.execute(claim)]
        while keys:
            done += len(keys)
            with connection.pipeline():
                connection.execute(COMPLETE, [keys])
                claimed = connection.execute(claim)
            keys = [key for (key,) in claimed.fetchall()]
        return done


def our_worker(begin: Callable[[], None], dsn: str, batch: int) -> int:
    with krablet.connect(dsn) as database:
        [stage] = [stage for stage in database.declared_stages() if stage.table.name == "ours"]
        begin()
        return krablet.work(stage, lambda rows: [{"result": True}] * len(rows), batches={"check": batch}).completed


def bare_rows_per_second(database: Database, rows: int, batch: int, workers: int = 2) -> float:
    with database.connection() as connection:
        connection.execute(CREATE)
        connection.execute(FILL.format(table="bare", rows=rows))
        connection.execute("VACUUM ANALYZE bare")
    done, seconds = together(workers, bare_worker, database.dsn, batch)
    assert done == rows, "the bare loop did every row once"
    return rows / seconds


def our_rows_per_second(database: Database, rows: int, batch: int, workers: int = 2) -> float:
    with database.connection() as connection:
        connection.execute("DROP TABLE IF EXISTS ours")
        table = database.table("ours", key="key", columns={"key": "text", "result": "boolean"})
        table.stage("check", ready="result IS NULL", writes=["result"], batch=batch)
        connection.execute(FILL.format(table="ours", rows=rows))
        connection.execute("VACUUM ANALYZE ours")
    done, seconds = together(workers, our_worker, database.dsn, batch)
    assert done == rows, "our loop did every row once"
    return rows / seconds


def measure(database: Database, rounds: int, rows: int) -> list[Result]:
    """`claim_vs_bare` at batches of 64, 8 and 512."""
    found = []
    for batch, share in ((64, 1.0), (8, 0.25), (512, 2.0)):
        count = int(rows * share)
        print(f"claim + complete, batch {batch}, {count} rows, 2 workers", flush=True)
        values = interleaved(
            rounds,
            {
                "bare": lambda batch=batch, count=count: bare_rows_per_second(database, count, batch),
                "ours": lambda batch=batch, count=count: our_rows_per_second(database, count, batch),
            },
        )
        name = "claim_vs_bare" if batch == 64 else f"claim_vs_bare_{batch}"
        median = sorted(values["ours"])[rounds // 2]
        found.append(result(name, median, "rows/s", "bare psycopg loop", ratio(values["ours"], values["bare"])))
    return found
