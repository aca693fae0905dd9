"""Contended upserts: the funnel service beside direct psycopg, interleaved on one server, sums checked.

    python -m benchmarks.krablet funnel

Keys are drawn from 10,000 by Zipf 1.2. The peer is 32 psycopg connections that upsert one row per transaction. Ours are
256 clients that wait for every answer, each with a socket of its own; 256 callers that wait likewise and share one client
per process, as the threads of a program do; and 32 clients with 64 mutations outstanding.

Clients, service and Postgres share the machine. Everything is durable (fsync and synchronous_commit on), every client
counts only what was acknowledged to it, and after each run the table must hold exactly that sum. Latency is from the call
to the acknowledgement, as the client sees it. Beside every run stands who used the processors: the service, and the two
client processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import psycopg

from benchmarks.krablet.rounds import Result, processor_seconds, ratio, result
from pleinair.krablet import Database
from pleinair.krablet.event_loops import run_event_loop
from pleinair.krablet.funnel.client import AsyncFunnelClient
from pleinair.krablet.funnel.visitor import service_stats

KEYS, EXPONENT = 10_000, 1.2
PROCESSES = 2
TABLE = "contended"
DIRECT = f"INSERT INTO {TABLE} VALUES (%s, 1) ON CONFLICT (name) DO UPDATE SET hits = {TABLE}.hits + 1"
_LATENCIES = 2_000  # a process reports at most so many, evenly picked: less than a pipe holds


@dataclass(frozen=True)
class Outcome:
    """One run of one way to write."""

    upserts_per_second: float
    p50_ms: float
    p99_ms: float
    commits_per_second: float
    coalescing: float
    service_processors: float
    """Processors the service kept busy."""
    client_processors: float


def zipf_keys(seed: int, count: int = 200_000) -> list[str]:
    weights = 1 / np.arange(1, KEYS + 1) ** EXPONENT
    drawn = np.random.default_rng(seed).choice(KEYS, size=count, p=weights / weights.sum())
    return [f"name-{key:05d}" for key in drawn.tolist()]


STARTED: list[float] = []  # the processor time at "go", in a client process


# The client processes: `python -m benchmarks.krablet.funnel --role ROLE`, ready, go, result as JSON.


def run_direct(job: dict[str, Any]) -> list[float]:
    """Some psycopg connections, each a thread that upserts one row per transaction."""
    latencies: list[list[float]] = [[] for _ in range(job["clients"])]
    connections = [psycopg.connect(job["dsn"], autocommit=True, prepare_threshold=0) for _ in latencies]
    started = threading.Event()

    def work(place: int) -> None:
        connection, mine = connections[place], latencies[place]
        keys = zipf_keys(job["seed"] * 1000 + place, 20_000)
        waiting.release()
        started.wait()
        end = time.perf_counter() + job["seconds"]
        while (begin := time.perf_counter()) < end:
            connection.execute(DIRECT, [keys[len(mine) % len(keys)]])
            mine.append(time.perf_counter() - begin)

    waiting = threading.Semaphore(0)
    threads = [threading.Thread(target=work, args=[place]) for place in range(job["clients"])]
    for thread in threads:
        thread.start()
    for _ in threads:
        waiting.acquire()
    await_go()
    started.set()
    for thread in threads:
        thread.join()
    for connection in connections:
        connection.close()
    return [latency for mine in latencies for latency in mine]


async def run_funnel(job: dict[str, Any]) -> list[float]:
    """Some clients of the service, each with `outstanding` mutations on their way, on `sockets` sockets."""
    latencies: list[float] = []
    sockets = [AsyncFunnelClient(job["address"], token=job["token"]) for _ in range(job["sockets"])]
    await asyncio.gather(*(client.__aenter__() for client in sockets))
    await asyncio.gather(*(client.applied() for client in sockets))
    drawn = zipf_keys(job["seed"])
    share = len(drawn) // job["clients"]
    keys = [cycle(drawn[place * share : (place + 1) * share]) for place in range(job["clients"])]
    work = waiting_client if job["outstanding"] == 1 else pipelined_client
    await asyncio.to_thread(await_go)
    end = time.perf_counter() + job["seconds"]
    await asyncio.gather(
        *(
            work(sockets[place % len(sockets)], keys[place], job["outstanding"], end, latencies)
            for place in range(job["clients"])
        )
    )
    for client in sockets:
        await client.__aexit__(None, None, None)
    return latencies


async def waiting_client(
    client: AsyncFunnelClient, keys: Iterator[str], _: int, end: float, latencies: list[float]
) -> None:
    while (begin := time.perf_counter()) < end:
        await client.upsert(TABLE, {"name": next(keys), "hits": 1})
        latencies.append(time.perf_counter() - begin)


async def pipelined_client(
    client: AsyncFunnelClient, keys: Iterator[str], outstanding: int, end: float, latencies: list[float]
) -> None:
    begun: deque[float] = deque()  # answers come in order
    room = asyncio.Event()

    def note(_: asyncio.Future[None]) -> None:
        latencies.append(time.perf_counter() - begun.popleft())
        room.set()

    while (begin := time.perf_counter()) < end:
        if len(begun) >= outstanding:
            room.clear()
            await room.wait()
            continue
        begun.append(begin)
        (await client.submit(TABLE, {"name": next(keys), "hits": 1})).add_done_callback(note)
    while begun:
        room.clear()
        await room.wait()


def await_go() -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    STARTED.append(time.process_time())


def child(role: str) -> None:
    job = json.loads(sys.stdin.readline())
    latencies = run_direct(job) if role == "direct" else run_event_loop(run_funnel(job))
    used = time.process_time() - STARTED[0]
    picked = [round(latency, 6) for latency in sorted(latencies)[:: len(latencies) // _LATENCIES + 1]]
    print(json.dumps({"count": len(latencies), "latencies": picked, "processor": used}), flush=True)


# The parent.


def run_way(database: Database, role: str, job: dict[str, Any], service: Service | None) -> Outcome:
    """Start the client processes, let them go together, and check the sum."""
    address = "" if service is None else service.address
    with database.connection() as connection:
        connection.execute(f"TRUNCATE {TABLE}")
    before, written = commits(database), rows_written(address, job)
    command = [sys.executable, "-m", "benchmarks.krablet.funnel", "--role", role]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    for number, process in enumerate(children):
        share = {**job, "seed": job["seed"] + number, "address": address, "dsn": database.dsn}
        for name in ("clients", "sockets"):
            share[name] = job[name] // PROCESSES
        tell(process, json.dumps(share))
    for process in children:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    service_began = 0.0 if service is None else processor_seconds(service.pid)
    for process in children:
        tell(process, "go")
    results = [json.loads(process.communicate()[0]) for process in children]
    service_used = 0.0 if service is None else processor_seconds(service.pid) - service_began
    acknowledged = sum(result["count"] for result in results)
    check_sum(database, acknowledged)
    latencies = np.concatenate([result["latencies"] for result in results])
    rows = rows_written(address, job) - written
    return Outcome(
        upserts_per_second=acknowledged / job["seconds"],
        p50_ms=float(np.quantile(latencies, 0.50)) * 1e3,
        p99_ms=float(np.quantile(latencies, 0.99)) * 1e3,
        commits_per_second=(commits(database) - before) / job["seconds"],
        coalescing=acknowledged / rows if rows else 1.0,
        service_processors=service_used / job["seconds"],
        client_processors=sum(result["processor"] for result in results) / job["seconds"],
    )


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def commits(database: Database) -> int:
    with database.connection() as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
        time.sleep(1.1)  # every backend reports its commits once a second
        found = connection.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        return int(found.fetchall()[0][0])


def rows_written(address: str, job: dict[str, Any]) -> int:
    if not address:
        return 0
    return int(service_stats(address, token=job["token"])["rows_written"])


def check_sum(database: Database, acknowledged: int) -> None:
    with database.connection() as connection:
        found = connection.execute(f"SELECT coalesce(sum(hits), 0)::bigint FROM {TABLE}").fetchall()[0][0]
    if found != acknowledged:
        raise SystemExit(f"wrong: {acknowledged} upserts were acknowledged and the table holds {found}")


@dataclass(frozen=True)
class Service:
    pid: int
    address: str


@contextmanager
def funnel_service(dsn: str, token: str) -> Iterator[Service]:
    """A service process on a loopback port."""
    command = [sys.executable, "-m", "pleinair.cli.main", "krablet", "funnel", "--listen", "127.0.0.1:0", "--dsn", dsn]
    environment = {**os.environ, "PLEINAIR_FUNNEL_TOKEN": token}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as service:
        try:
            assert service.stdout is not None
            yield Service(service.pid, service.stdout.readline().split()[-1])
        finally:
            service.terminate()


def figures(outcomes: dict[str, list[Outcome]]) -> list[Result]:
    """By the names of the aims; ratios are medians over rounds of ratios within a round."""
    direct, waiting = outcomes["direct 32"], outcomes["256 clients x 1"]
    peer = "psycopg, 32 connections, one row per transaction"

    def figure(name: str, of: Sequence[Outcome], field: str = "upserts_per_second", unit: str = "upserts/s") -> Result:
        mine, theirs = ([getattr(outcome, field) for outcome in each] for each in (of, direct))
        return result(name, statistics.median(mine), unit, peer, ratio(mine, theirs))

    return [
        figure("upsert_256_vs_direct32", waiting),
        figure("upsert_256_callers_vs_direct32", outcomes["256 callers x 1"]),
        figure("upsert_32x64_vs_direct32", outcomes["32 clients x 64"]),
        figure("upsert_p99_ms", waiting, "p99_ms", "ms, 256 clients"),
        figure("upserts_per_second", waiting, unit="upserts/s, 256 clients"),
        figure("upsert_commits_per_second", waiting, "commits_per_second", "commits/s, 256 clients"),
        figure("upsert_coalescing", waiting, "coalescing", "mutations per row written, 256 clients"),
    ]


def measure(database: Database, rounds: int = 3, seconds: float = 3.0) -> list[Result]:
    """Every way to write in turn, `rounds` times."""
    database.table(TABLE, key="name", columns={"name": "text", "hits": "bigint"}, merge={"hits": "sum"})
    token = os.urandom(16).hex()
    ways: dict[str, dict[str, Any]] = {
        "direct 32": {"clients": 32, "sockets": 0},
        "256 clients x 1": {"clients": 256, "sockets": 256, "outstanding": 1},
        "256 callers x 1": {"clients": 256, "sockets": PROCESSES, "outstanding": 1},
        "32 clients x 64": {"clients": 32, "sockets": 32, "outstanding": 64},
    }
    outcomes: dict[str, list[Outcome]] = {name: [] for name in ways}
    with funnel_service(database.dsn, token) as service:
        for number in range(rounds):
            for name, way in ways.items():
                job = {**way, "seconds": seconds, "seed": number, "token": token}
                direct = not way["sockets"]
                found = run_way(database, "direct" if direct else "funnel", job, None if direct else service)
                outcomes[name].append(found)
                print(f"  round {number + 1}: {name:15}  {describe(found)}", flush=True)
    return figures(outcomes)


def describe(outcome: Outcome) -> str:
    return (
        f"{outcome.upserts_per_second:8.0f} upserts/s   p50 {outcome.p50_ms:6.1f} ms   p99 {outcome.p99_ms:6.1f} ms   "
        f"{outcome.commits_per_second:6.0f} commits/s   {outcome.coalescing:4.1f} mutations per row   "
        f"processors: service {outcome.service_processors:.2f}, clients {outcome.client_processors:.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a client process of this benchmark")
    parser.add_argument("--role", choices=["direct", "funnel"], required=True)
    child(parser.parse_args().role)
