"""Reads while slots move: every row once, in every read, or a refusal that says why."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from pleinair import krablet
from pleinair.krablet import moves, rpc
from pleinair.krablet.reading.ownership import SlotPlaces
from pleinair.krablet.reading.pools import ReadPools
from pleinair.krablet.reading.requests import GetRequest, MovingError, ScanRequest
from pleinair.krablet.reading.scan import get, scan
from pleinair.krablet.rpc.server import ReadService, ServiceConfig
from pleinair.krablet.shards import slot_of

ROWS = 600
NAMES = [f"row-{number:04d}" for number in range(ROWS)]


@pytest.fixture
def database(shard_dsns: list[str]) -> Iterator[krablet.Database]:
    """A table of ROWS rows over three shards."""
    with krablet.connect(shard_dsns) as database:
        table = database.table("things", key="name", columns={"name": "text", "n": "bigint"})
        table.upsert({"name": name, "n": number} for number, name in enumerate(NAMES))
        yield database


@pytest.fixture
def moving(database: krablet.Database, shard_dsns: list[str]) -> Iterator[threading.Event]:
    """Slots move from shard to shard until the test has ended; the event is set after every eight."""
    moved, ended = threading.Event(), threading.Event()

    def move() -> None:
        with krablet.connect(shard_dsns[0]) as mover:
            slots = sorted(map(slot_of, NAMES))
            while not ended.is_set():
                moves.move_slots(mover.shards, random.sample(sorted(set(slots)), 8), random.randrange(3))
                moved.set()

    thread = threading.Thread(target=move)
    thread.start()
    yield moved
    ended.set()
    thread.join(60)


def wait_for_moves(moving: threading.Event, count: int) -> Iterator[int]:
    """Go round until slots have moved so often."""
    seen = 0
    for number in itertools.count():
        if seen >= count:
            return
        yield number
        if moving.is_set():
            moving.clear()
            seen += 1


def test_every_read_gives_every_row_once_while_slots_move(database: krablet.Database, moving: threading.Event) -> None:
    table = database.declared_table("things")
    for number in wait_for_moves(moving, 12):
        assert table.count() == ROWS, f"count {number}"
        assert table.count("n < %s", params=[100]) == 100
        ordered = [
            name for batch in table.read(columns=["name"], order_by="name") for name in batch["name"].to_pylist()
        ]
        assert ordered == NAMES, f"read {number}"
        summed = database.scan("things", aggregate={"rows": "count(*)", "total": "sum(n)"}).to_table().to_pylist()
        assert summed == [{"rows": ROWS, "total": sum(range(ROWS))}]


def test_the_service_gives_every_row_once_and_finds_keys_where_they_are_now(
    database: krablet.Database, moving: threading.Event
) -> None:
    pools = ReadPools(database.shards.dsns)
    with (
        closing(ReadService(pools, ServiceConfig(port=0, drain_seconds=0.5), trusted=True)) as service,
        rpc.connect(service.address) as client,
    ):
        for number in wait_for_moves(moving, 12):
            assert client.read("things", columns=["name"]).to_table().num_rows == ROWS, f"read {number}"
            keys = random.sample(NAMES, 5)
            assert client.get("things", keys)["name"].to_pylist() == keys, f"get {number}"
            assert client.sql("SELECT name FROM things WHERE n >= 0").to_table().num_rows == ROWS


def test_while_slots_are_between_shards_a_read_brings_them_in_or_is_refused(
    database: krablet.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    key = next(name for name in NAMES if database.shards.of(name).number == 1)
    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(moves, "_arrive", die)
        moves.move_slots(database.shards, [slot_of(key)], 2)
    with ReadPools(database.shards.dsns, moving_seconds=0.3) as pools:
        with pytest.raises(MovingError, match=rf"slot {slot_of(key)} is on none of these 3 shards: name every shard"):
            scan(pools, ScanRequest(table="things")).to_table()
        with pytest.raises(MovingError, match=rf"slot {slot_of(key)} is not where it was"):
            get(pools, GetRequest(table="things", keys=(key,)))
    assert database.declared_table("things").count() == ROWS, "whoever has the catalog brings them in"
    some = ReadPools(database.shards.dsns[:2], moving_seconds=0.1)
    with some, pytest.raises(MovingError, match=r"\d+ slots, slot \d+ first, are on none of these 2 shards"):
        scan(some, ScanRequest(table="things")).to_table()


def test_a_process_that_does_not_know_of_a_new_shard_reads_its_rows_all_the_same(shard_dsns: list[str]) -> None:
    with krablet.connect(shard_dsns[0]) as early:
        table = early.table("things", key="name", columns={"name": "text"})
        table.upsert({"name": name} for name in NAMES)
        with krablet.connect(shard_dsns) as later:
            moves.rebalance(later.shards)
        assert len(early.shards) == 1
        assert table.count() == ROWS
        assert len(early.shards) == 3


def test_a_key_is_asked_of_its_shard_alone(database: krablet.Database) -> None:
    key = next(name for name in NAMES if database.shards.of(name).number == 2)
    with ReadPools(database.shards.dsns) as pools:
        places = SlotPlaces()
        assert get(pools, GetRequest(table="things", keys=(key,), columns=("n",)), places=places).num_rows == 1
        pools.close()
        assert get(pools, GetRequest(table="things", keys=(key,)), places=places)["name"].to_pylist() == [key]
        assert [pool.idle for pool in pools.shards] == [1, 0, 1], "the first is asked for the columns only"
