"""Claim + complete of small rows: our worker loop beside a bare hand-written psycopg loop, interleaved on one server.

    python benchmarks/krablet/claim.py [--rows 20000] [--batch 64] [--rounds 5] [--dsn DSN]

The bare loop has a narrow table, a partial index, no lease, no token, no errors, and like ours completes a batch and
claims the next in one round trip and one commit. Both are durable (fsync and synchronous_commit on).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from pleinair import krablet
from pleinair.krablet import Database

CREATE = """
DROP TABLE IF EXISTS bare;
CREATE TABLE bare (key text PRIMARY KEY, tried_at timestamptz, result boolean);
CREATE INDEX bare_ready ON bare (tried_at NULLS FIRST) WHERE result IS NULL;
"""
FILL = "INSERT INTO bare SELECT 'row-' || lpad(i::text, 9, '0') FROM generate_series(1, %s) AS i"
CLAIM = """
UPDATE bare SET tried_at = now() WHERE key = ANY (ARRAY(
    SELECT key FROM bare WHERE result IS NULL AND (tried_at IS NULL OR tried_at < now() - interval '60 s')
    ORDER BY tried_at NULLS FIRST LIMIT {batch:d} FOR UPDATE SKIP LOCKED))
RETURNING key
"""
COMPLETE = "UPDATE bare SET result = TRUE WHERE key = ANY (%s::text[])"


def bare_rows_per_second(database: Database, rows: int, batch: int) -> float:
    with database.connection() as connection:
        connection.execute(CREATE)
        connection.execute(FILL, [rows])
        connection.execute("VACUUM ANALYZE bare")
        claim, done = CLAIM.format(batch=batch), 0
        began = time.perf_counter()
        keys = [key for (key,) in connection.execute(claim)]
        while keys:
            done += len(keys)
            with connection.pipeline():
                connection.execute(COMPLETE, [keys])
                claimed = connection.execute(claim)
            keys = [key for (key,) in claimed.fetchall()]
        assert done == rows, "the bare loop did every row once"
        return rows / (time.perf_counter() - began)


def worker_rows_per_second(database: Database, rows: int, batch: int) -> float:
    with database.connection() as connection:
        connection.execute("DROP TABLE IF EXISTS ours")
        table = database.table("ours", key="key", columns={"key": "text", "result": "boolean"})
        stage = table.stage("check", ready="result IS NULL", writes=["result"], batch=batch)
        connection.execute(
            "INSERT INTO ours (key) SELECT 'row-' || lpad(i::text, 9, '0') FROM generate_series(1, %s) AS i", [rows]
        )
        connection.execute("VACUUM ANALYZE ours")
    began = time.perf_counter()
    settled = krablet.work(stage, lambda given: [{"result": True}] * len(given))
    assert settled.completed == rows, "our loop did every row once"
    return rows / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dsn", help="a server of your own instead of a temporary embedded one")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="pleinair-bench-"))
    try:
        with krablet.connect(args.dsn, directory=directory) as database:
            bare, ours = [], []
            for number in range(args.rounds):
                bare.append(bare_rows_per_second(database, args.rows, args.batch))
                ours.append(worker_rows_per_second(database, args.rows, args.batch))
                print(f"round {number + 1}: bare {bare[-1]:8.0f} rows/s   worker {ours[-1]:8.0f} rows/s", flush=True)
    finally:
        shutil.rmtree(directory)
    ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, bare, strict=True))
    print(
        f"batch {args.batch}: bare {statistics.median(bare):.0f} rows/s, worker {statistics.median(ours):.0f} rows/s, "
        f"median ratio {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
