"""Reads through the service beside ADBC straight from Postgres and psycopg; loading beside COPY. Interleaved rounds.

    python -m benchmarks.krablet rpc

Rows are narrow: text key, boolean, bigint, double precision, timestamptz. The service runs in a process of its own, so
that its memory is seen, and reads the one server the peers read. Besides the rates by the clock, the processor time of
client and service together is compared, which a loaded machine distorts less. ADBC comes with the extra `dev`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pyarrow as pa
from psycopg import conninfo

from benchmarks.krablet.rounds import Result, processor_seconds, ratio, result
from pleinair.krablet import Database, rpc
from pleinair.krablet.bulk import load
from pleinair.krablet.reading.reader import READER, make_reader

COLUMNS = {"key": "text", "flag": "boolean", "n": "bigint", "x": "double precision", "at": "timestamptz"}
FILL = """
INSERT INTO narrow
SELECT 'row-' || lpad(i::text, 9, '0'), i %% 2 = 0, i, i * 0.5, '2024-01-01Z'::timestamptz + i * interval '1 s'
FROM generate_series(1, %s) AS i
"""
QUERY = "SELECT key, flag, n, x, at FROM narrow"
ADBC_READ = f"""
import sys, resource
import adbc_driver_postgresql.dbapi as adbc
with adbc.connect(sys.argv[1]) as connection, connection.cursor() as cursor:
    cursor.execute({QUERY!r})
    rows = sum(batch.num_rows for batch in cursor.fetch_record_batch())
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
PEERS = {
    "adbc": "ADBC, straight from Postgres",
    "fetchall": "psycopg fetchall, binary",
    "copy": "psycopg COPY, row by row",
}


@contextmanager
def service(dsn: str) -> Iterator[tuple[int, str]]:
    """The service in a process of its own: its process id and address."""
    command = [sys.executable, "-m", "pleinair.cli.main", "krablet", "rpc", "--listen", "127.0.0.1:0", "--dsn", dsn]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate()


@dataclass(frozen=True)
class Cost:
    """Of one run of one way, in seconds."""

    clock: float
    processor: float


def cost(action: Callable[[], int], rows: int, service_pid: int | None = None) -> Cost:
    clock, processor = time.perf_counter(), _processor(service_pid)
    assert action() == rows, "every row came"
    return Cost(time.perf_counter() - clock, _processor(service_pid) - processor)


def _processor(service_pid: int | None) -> float:
    """Of this process, and of the service."""
    return time.process_time() + (0.0 if service_pid is None else processor_seconds(service_pid))


def read_adbc(dsn: str) -> int:
    import adbc_driver_postgresql.dbapi as adbc

    with adbc.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute(QUERY)
        return sum(batch.num_rows for batch in cursor.fetch_record_batch())


def read_fetchall(dsn: str) -> int:
    with psycopg.connect(dsn) as connection, connection.cursor(binary=True) as cursor:
        return len(cursor.execute(QUERY).fetchall())


def peak_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure_reads(database: Database, rows: int, rounds: int) -> list[Result]:
    database.table("narrow", key="key", columns=COLUMNS)
    with closing(database.connection()) as connection:
        connection.execute(FILL, [rows])
        connection.execute("VACUUM ANALYZE narrow")
        make_reader(connection)
    dsn = conninfo.make_conninfo(database.dsn, user=READER)
    with service(dsn) as (pid, address), rpc.connect(address) as client:
        ways: dict[str, Callable[[], int]] = {
            "service": lambda: sum(batch.num_rows for batch in client.read("narrow")),
            "adbc": lambda: read_adbc(dsn),
            "fetchall": lambda: read_fetchall(dsn),
        }
        times = in_turn(ways, rows, rounds, pid)
        resident = peak_megabytes(pid)
    adbc = subprocess.run([sys.executable, "-c", ADBC_READ, dsn], capture_output=True, text=True, check=True)
    peer = int(adbc.stdout.split()[1]) / 1024
    return [
        compared("rpc_read_vs_adbc", rows, times, "service", "adbc"),
        compared("rpc_read_vs_fetchall", rows, times, "service", "fetchall"),
        compared("rpc_read_processor_vs_adbc", rows, times, "service", "adbc", "processor"),
        result("rpc_service_peak_memory", resident, "MB", f"ADBC's client: {peer:.0f} MB", resident / peer),
    ]


def in_turn(ways: dict[str, Callable[[], int]], rows: int, rounds: int, pid: int) -> dict[str, list[Cost]]:
    """What each way took, round by round, the first round left out."""
    times: dict[str, list[Cost]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            took = cost(way, rows, pid if name == "service" else None)
            if number:
                times[name].append(took)
    return times


def compared(name: str, rows: int, times: dict[str, list[Cost]], ours: str, peer: str, by: str = "clock") -> Result:
    """Rates by the clock or by processor time outside Postgres; above 1 ours is better."""
    mine, theirs = ([rows / getattr(took, by) for took in times[way]] for way in (ours, peer))
    unit = "rows/s" if by == "clock" else "rows/processor second"
    return result(name, statistics.median(mine), unit, PEERS[peer], ratio(mine, theirs))


def measure_loads(database: Database, rows: int, rounds: int) -> list[Result]:
    """New rows into an empty table with its primary key, from what each way takes: mappings, tuples, Arrow."""
    mappings = [
        {"key": f"row-{number:09d}", "flag": number % 2 == 0, "n": number, "x": number * 0.5} for number in range(rows)
    ]
    tuples = [tuple(row.values()) for row in mappings]
    data = pa.Table.from_pylist(mappings)
    table = database.table("loaded", key="key", columns={name: COLUMNS[name] for name in mappings[0]})

    def copy_rows() -> int:
        with closing(database.connection()) as connection, connection.cursor() as cursor:
            with cursor.copy("COPY loaded (key, flag, n, x) FROM STDIN") as copy:
                for row in tuples:
                    copy.write_row(row)
            return cursor.rowcount

    ways: dict[str, Callable[[], int]] = {
        "copy": copy_rows,
        "insert_missing": lambda: table.insert_missing(mappings),
        "load_update": lambda: load([database.session], "loaded", data, on_conflict="update"),
        "load_new": lambda: load([database.session], "loaded", data, on_conflict="error"),
        "load_new_from_rows": lambda: load(
            [database.session], "loaded", pa.Table.from_pylist(mappings), on_conflict="error"
        ),
    }
    times: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            with closing(database.connection()) as connection:
                connection.execute("TRUNCATE loaded")
                connection.execute("CHECKPOINT")
            times[name].append(cost(way, rows))
    return [
        compared("ingest_vs_copy", rows, times, "load_new", "copy"),
        compared("ingest_rows_vs_copy", rows, times, "load_new_from_rows", "copy"),
        compared("ingest_update_vs_copy", rows, times, "load_update", "copy"),
        compared("insert_missing_vs_copy", rows, times, "insert_missing", "copy"),
    ]


def measure(database: Database, rounds: int = 5, rows: int = 150_000) -> list[Result]:
    """Reads, then loads."""
    return [*measure_reads(database, rows, rounds), *measure_loads(database, rows, max(1, rounds // 2))]
