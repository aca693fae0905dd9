"""Two workers draining no-op rows: ours beside graphile-worker and pgqueuer, each at its own best settings.

The rate is that between 90% and 10% of the rows left, so neither starting nor the last poll counts. The peers are put
into a folder of the user's cache by npm and pip, once; they are no dependencies of pleinair.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from psycopg import conninfo

from benchmarks.krablet.claim import FILL
from benchmarks.krablet.rounds import SPAWN, Result, interleaved, ratio, result
from pleinair import krablet
from pleinair.cli.places import cache_dir
from pleinair.krablet import Database

GRAPHILE, PGQUEUER = "graphile-worker@0.17.3", ("pgqueuer==1.6.0", "asyncpg==0.32.0")
SCRIPTS = Path(__file__).with_name("peers")


def measure(database: Database, rounds: int, rows: int) -> list[Result]:
    """`claim_vs_graphile` and `claim_vs_pgqueuer`."""
    home = installed()
    print(f"draining {rows} rows, 2 workers, durable", flush=True)
    values = interleaved(
        rounds,
        {
            "ours": lambda: drain_ours(database, rows),
            "graphile": lambda: drain_graphile(database, home, rows),
            "pgqueuer": lambda: drain_pgqueuer(database, home, rows),
        },
    )
    median = statistics.median(values["ours"])
    return [
        result("claim_vs_graphile", median, "rows/s", GRAPHILE, ratio(values["ours"], values["graphile"])),
        result("claim_vs_pgqueuer", median, "rows/s", PGQUEUER[0], ratio(values["ours"], values["pgqueuer"])),
    ]


def installed() -> Path:
    """The folder with both peers."""
    home = cache_dir() / "bench-peers"
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "node_modules" / "graphile-worker").exists():
        subprocess.run(["npm", "install", "--silent", "--prefix", str(home), GRAPHILE], check=True)
    if not (home / "venv" / "bin" / "pip").exists():
        venv.create(home / "venv", with_pip=True)
        subprocess.run([str(home / "venv" / "bin" / "pip"), "install", "-q", *PGQUEUER], check=True)
    return home


def environment(database: Database) -> dict[str, str]:
    parts = conninfo.conninfo_to_dict(database.dsn)
    return {**os.environ, "PGHOST": str(parts["host"]), "PGUSER": str(parts["user"]), "PGDATABASE": "postgres"}


@contextmanager
def running(commands: Sequence[Sequence[str]], env: dict[str, str], cwd: Path) -> Iterator[None]:
    """Processes that have said they are ready, ended at the end."""
    processes = [subprocess.Popen(c, env=env, cwd=cwd, stdout=subprocess.PIPE, text=True) for c in commands]
    try:
        for process in processes:
            assert process.stdout is not None
            while "ready" not in process.stdout.readline():
                assert process.poll() is None
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def middle_rate(rows: int, left: Callable[[], int]) -> float:
    """Rows a second between 90% and 10% left."""
    marks: list[tuple[float, int]] = []
    while (count := left()) > rows * 0.1:
        if count < rows * 0.9:
            marks.append((time.monotonic(), count))
        time.sleep(0.02)
    marks.append((time.monotonic(), count))
    (began, most), (ended, fewest) = marks[0], marks[-1]
    while left():
        time.sleep(0.02)
    return (most - fewest) / (ended - began)


def _ours(dsn: str) -> None:
    with krablet.connect(dsn) as database:
        [stage] = [stage for stage in database.declared_stages() if stage.table.name == "ours"]
        krablet.work(stage, lambda rows: [{"result": True}] * len(rows), idle="wait", batches={"check": 512})


def drain_ours(database: Database, rows: int) -> float:
    with database.connection() as connection:
        connection.execute("DROP TABLE IF EXISTS ours")
        table = database.table("ours", key="key", columns={"key": "text", "result": "boolean"})
        table.stage("check", ready="result IS NULL", writes=["result"])
        workers = [SPAWN.Process(target=_ours, args=(database.dsn,)) for _ in range(2)]
        for worker in workers:
            worker.start()
        count = "SELECT count(*) FROM pleinair.workers WHERE seen_at > now() - interval '2 s'"
        while connection.execute(count).fetchone() != (2,):
            time.sleep(0.05)
        connection.execute(FILL.format(table="ours", rows=rows))
        rate = middle_rate(rows, lambda: _count(connection, "SELECT count(*) FROM ours WHERE result IS NULL"))
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
        connection.execute("DELETE FROM pleinair.workers")
    return rate


def drain_graphile(database: Database, home: Path, rows: int) -> float:
    env = environment(database)
    script = home / "graphile.mjs"
    script.write_text((SCRIPTS / "graphile.mjs").read_text())
    with running([["node", str(script)]] * 2, env, home), database.connection() as connection:
        connection.execute(
            "SELECT count(*) FROM graphile_worker.add_jobs(ARRAY(SELECT ROW('noop', NULL, NULL, NULL, NULL, NULL, NULL, "
            "NULL)::graphile_worker.job_spec FROM generate_series(1, %s)))",
            [rows],
        )
        return middle_rate(rows, lambda: _count(connection, "SELECT count(*) FROM graphile_worker.jobs"))


def drain_pgqueuer(database: Database, home: Path, rows: int) -> float:
    env, python = environment(database), str(home / "venv" / "bin" / "python")
    with database.connection() as connection:
        subprocess.run([python, str(SCRIPTS / "pgqueuer_fill.py"), str(rows)], env=env, check=True)
        with running([[python, str(SCRIPTS / "pgqueuer_worker.py")]] * 2, env, home):
            return middle_rate(rows, lambda: _count(connection, "SELECT count(*) FROM pgqueuer"))


def _count(connection: object, statement: str) -> int:
    found = connection.execute(statement).fetchone()  # type: ignore[attr-defined]
    return int(found[0])


if __name__ == "__main__":
    sys.exit(print(installed()))
