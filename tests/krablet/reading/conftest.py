"""One and three real Postgres servers, each with its own rows of one table, and what is in them as Python values."""

from __future__ import annotations

import datetime
import itertools
import json
import math
import random
import shutil
import struct
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from psycopg import conninfo

from pleinair import krablet
from pleinair.krablet.bulk import load
from pleinair.krablet.connections import Session
from pleinair.krablet.reading.pools import ReadPools
from pleinair.krablet.reading.reader import READER, make_reader

_numbers = itertools.count(1)

WIDE = {
    "key": "text",
    "flag": "boolean",
    "small": "integer",
    "n": "bigint",
    "r": "real",
    "x": "double precision",
    "day": "date",
    "at": "timestamptz",
    "raw": "bytea",
    "u": "uuid",
    "j": "jsonb",
    "tags": "text[]",
    "nums": "bigint[]",
    "v": "real[]",
}
WIDE_ROWS = 300


def shard_of_key(key: str, num_shards: int) -> int:
    return zlib.crc32(key.encode()) % num_shards


@dataclass(frozen=True)
class Shards:
    """A database on each server, with the login of its owner and of its reader."""

    dsns: tuple[str, ...]
    readers: tuple[str, ...]

    def shard_of(self, key: str) -> int:
        return shard_of_key(key, len(self.dsns))

    def pools(self, size: int = 4) -> ReadPools:
        return ReadPools(self.readers, size=size)

    def load(self, table: str, data: pa.Table, **options: Any) -> int:
        with ExitStack() as stack:
            sessions = [stack.enter_context(closing(Session(dsn))) for dsn in self.dsns]
            return load(sessions, table, data, **{"shard_of": self.shard_of} | options)

    def execute(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """On every shard; all rows."""
        found: list[tuple[Any, ...]] = []
        for dsn in self.dsns:
            with psycopg.connect(dsn, autocommit=True) as connection:
                cursor = connection.execute(statement, values or None)
                found += cursor.fetchall() if cursor.description else []
        return found

    def running(self) -> int:
        """How many reads run on the servers now."""
        state = "application_name = 'pleinair read' AND state <> 'idle' AND datname = current_database()"
        return sum(count for (count,) in self.execute(f"SELECT count(*) FROM pg_stat_activity WHERE {state}"))

    def wait_until_idle(self) -> None:
        deadline = time.monotonic() + 60
        while self.running():
            assert time.monotonic() < deadline, "the queries on the servers end"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def three_servers(postgres: krablet.Database) -> Iterator[tuple[str, ...]]:
    """The DSNs of the session's server and of two more."""
    with ExitStack() as stack:
        dsns = [postgres.dsn]
        for _ in range(2):
            directory = Path(tempfile.mkdtemp(prefix="pleinair-test-"))
            stack.callback(shutil.rmtree, directory)
            database = stack.enter_context(krablet.connect(directory=directory))
            with database.connection() as connection:
                connection.execute("ALTER SYSTEM SET fsync = off")
                connection.execute("SELECT pg_reload_conf()")
            dsns.append(database.dsn)
        yield tuple(dsns)


@pytest.fixture(scope="session", params=[1, 3], ids=["one server", "three servers"])
def some_servers(request: pytest.FixtureRequest, three_servers: tuple[str, ...]) -> tuple[str, ...]:
    return three_servers[: request.param]


def _databases(servers: tuple[str, ...], stack: ExitStack) -> Shards:
    name = f"reading_{next(_numbers)}"
    for server in servers:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        stack.callback(_drop, server, name)
    dsns = tuple(conninfo.make_conninfo(server, dbname=name) for server in servers)
    for dsn in dsns:
        with psycopg.connect(dsn, autocommit=True) as connection:
            make_reader(connection)
    return Shards(dsns, tuple(conninfo.make_conninfo(dsn, user=READER) for dsn in dsns))


def _drop(server: str, name: str) -> None:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def shards(some_servers: tuple[str, ...]) -> Iterator[Shards]:
    """Empty databases for one test, on one server and on three."""
    with ExitStack() as stack:
        yield _databases(some_servers, stack)


@pytest.fixture
def three_shards(three_servers: tuple[str, ...]) -> Iterator[Shards]:
    with ExitStack() as stack:
        yield _databases(three_servers, stack)


class Wide:
    """A table of every type with rows nobody changes, and the rows. No dataclass: all rows would be in every report."""

    def __init__(self, shards: Shards, pools: ReadPools, rows: list[dict[str, Any]]) -> None:
        self.shards = shards
        self.pools = pools
        self.rows = rows


@pytest.fixture(scope="session")
def wide(some_servers: tuple[str, ...]) -> Iterator[Wide]:
    with ExitStack() as stack:
        shards = _databases(some_servers, stack)
        rows = _random_rows(random.Random(7), WIDE_ROWS)
        for place, dsn in enumerate(shards.dsns):
            with krablet.connect(dsn) as database:
                database.table("wide", key="key", columns=WIDE)
                _insert(database, [row for row in rows if shards.shard_of(row["key"]) == place])
        pools = stack.enter_context(shards.pools())
        yield Wide(shards, pools, rows)


def _insert(database: krablet.Database, rows: list[dict[str, Any]]) -> None:
    names = ", ".join(WIDE)
    marks = ", ".join(f"%({name})s::{type_}" for name, type_ in WIDE.items())
    with database.connection() as connection, connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO wide ({names}) VALUES ({marks})", rows)


def _random_rows(chance: random.Random, count: int) -> list[dict[str, Any]]:
    makers = {
        "flag": lambda: chance.random() < 0.5,
        "small": lambda: chance.randint(-5, 5),
        "n": lambda: chance.choice([chance.randint(-(2**50), 2**50), chance.randint(-3, 3)]),
        "r": lambda: struct.unpack("f", struct.pack("f", chance.choice([chance.gauss(0, 1), 0.5, math.nan])))[0],
        "x": lambda: chance.choice([chance.gauss(0, 1), 1.5, -0.0, math.nan, math.inf, -math.inf]),
        "day": lambda: datetime.date(2000, 1, 1) + datetime.timedelta(chance.randint(-20_000, 20_000)),
        "at": lambda: (
            datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
            + datetime.timedelta(microseconds=chance.choice([0, chance.randint(-(10**16), 10**16)]))
        ),
        "raw": lambda: chance.randbytes(chance.choice([0, 3, 200])),
        "u": lambda: str(uuid.UUID(int=chance.getrandbits(128))),
        "j": lambda: json.dumps({"size": chance.randint(0, 9), "name": _word(chance)}),
        "tags": lambda: [chance.choice([None, _word(chance), ""]) for _ in range(chance.randint(0, 3))],
        "nums": lambda: [chance.choice([None, chance.randint(-9, 9)]) for _ in range(chance.randint(0, 3))],
        "v": lambda: [chance.randint(-9, 9) / 4 for _ in range(chance.randint(0, 3))],
    }
    return [
        {"key": f"{_word(chance)}-{number}"}
        | {name: None if chance.random() < 0.15 else make() for name, make in makers.items()}
        for number in range(count)
    ]


def _word(chance: random.Random) -> str:
    words = ["", "a", "B", "b", "\u00e9", "\u00fc\u4e2d", "it's", '"q"', "x" * 100, "\U0001f3a8"]
    return chance.choice(words) + chance.choice("_Zz")
