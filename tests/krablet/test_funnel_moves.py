"""Clients of the funnels of several shards: every mutation applied once, in order, while slots move and funnels die."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from pleinair import krablet
from pleinair.krablet import moves
from pleinair.krablet.funnel import wire
from pleinair.krablet.funnel.client import AsyncFunnelClient, FunnelClient
from pleinair.krablet.funnel.errors import FunnelError, MutationError, moved
from pleinair.krablet.funnel.routes import Routes
from pleinair.krablet.shards import slot_of
from pleinair.records.errors import ConfigError, QueueError
from tests.krablet.conftest import empty_databases
from tests.krablet.funnels import TOKEN, Service, stats_table


@dataclass
class Cluster:
    """A warehouse of three shards with a funnel each, that can be killed and started again in its place."""

    database: krablet.Database
    addresses: list[str]
    services: list[Service] = field(default_factory=list)

    def start(self, shard: int) -> Service:
        return Service(self.database.dsn, self.addresses[shard], "--shard", str(shard))

    def restart(self, shard: int) -> None:
        self.services[shard].kill()
        self.services[shard].__exit__(None)
        self.services[shard] = self.start(shard)

    def column(self, name: str) -> dict[str, Any]:
        found = self.database.shards.each(lambda c: c.execute(f"SELECT name, {name} FROM stats").fetchall())
        rows = list(itertools.chain(*found))
        assert len(dict(rows)) == len(rows), "a key is on one shard"
        return dict(rows)

    def client(self, **settings: Any) -> FunnelClient:
        return FunnelClient(self.addresses, token=TOKEN, patience_seconds=300, **settings)

    def key_on(self, shard: int) -> str:
        return next(key for key in map(str, itertools.count()) if self.database.shards.of(key).number == shard)


@pytest.fixture(scope="module")
def running_cluster(postgres: krablet.Database) -> Iterator[Cluster]:
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        database = stack.enter_context(krablet.connect(stack.enter_context(empty_databases(postgres, 3))))
        stats_table(database)
        cluster = Cluster(database, [f"unix:{directory}/{number}" for number in range(3)])
        stack.callback(lambda: [service.__exit__(None) for service in cluster.services])
        cluster.services += [cluster.start(shard) for shard in range(3)]
        yield cluster


@pytest.fixture
def cluster(running_cluster: Cluster) -> Cluster:
    """The same for all tests, with an empty table for each; slots are wherever the test before left them."""
    running_cluster.database.shards.each(lambda connection: connection.execute("TRUNCATE stats"))
    return running_cluster


def test_rows_go_to_the_shard_of_their_key_and_standbys_are_found(cluster: Cluster) -> None:
    places = [[cluster.addresses[0] + "-nowhere", cluster.addresses[0]], *cluster.addresses[1:]]
    names = [f"name-{number}" for number in range(60)]
    with FunnelClient(places, token=TOKEN) as client:
        for name in names * 2:
            client.upsert("stats", {"name": name, "hits": 1})
    assert cluster.column("hits") == dict.fromkeys(names, 2)
    held = cluster.database.shards.each(lambda c: c.execute("SELECT count(*) FROM stats").fetchall()[0][0])
    assert all(count > 5 for count in held)


class Counter(threading.Thread):
    """Counts up shared keys, and the last number of some keys of its own, until it is told to stop."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        super().__init__()
        self.sent: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.failure: BaseException | None = None
        self._cluster, self.own = cluster, [f"own-{number}-{key}" for key in range(20)]
        self._stopped = threading.Event()

    def run(self) -> None:
        try:
            with self._cluster.client(window=500) as client:
                for number in itertools.count(1):
                    if self._stopped.is_set():
                        break
                    self._count(client, number)
        except BaseException as failure:
            self.failure = failure

    def _count(self, client: FunnelClient, number: int) -> None:
        shared, own = f"k{random.randrange(40)}", random.choice(self.own)
        client.upsert("stats", {"name": shared, "hits": 1})
        client.upsert("stats", {"name": own, "latest": number})
        self.sent[shared] = self.sent.get(shared, 0) + 1
        self.last[own] = number
        time.sleep(0.0005)

    def finish(self) -> None:
        self._stopped.set()
        self.join(120)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure


@pytest.mark.slow
def test_sums_and_order_are_exact_while_slots_move_and_funnels_are_killed(cluster: Cluster) -> None:
    counters = [Counter(cluster, number) for number in range(3)]
    for counter in counters:
        counter.start()
    moving = threading.Event()

    def kill_funnels() -> None:
        while not moving.is_set():
            time.sleep(random.uniform(0.2, 0.5))
            cluster.restart(random.randrange(3))

    killer = threading.Thread(target=kill_funnels)
    killer.start()
    keys = [f"k{number}" for number in range(40)] + [key for counter in counters for key in counter.own]
    slots = sorted({slot_of(key) for key in keys})
    for target in (0, 1, 2, 0):
        moves.move_slots(cluster.database.shards, random.sample(slots, 40), target)
    moving.set()
    killer.join()
    for counter in counters:
        counter.finish()
    sums = {key: sum(counter.sent.get(key, 0) for counter in counters) for key in keys[:40]}
    hits, latest = cluster.column("hits"), cluster.column("latest")
    assert {key: hits[key] for key in sums} == sums
    assert {key: latest[key] for counter in counters for key in counter.last} == {
        key: number for counter in counters for key, number in counter.last.items()
    }


def test_a_mutation_whose_slot_moves_between_commit_and_lost_answer_is_applied_once(cluster: Cluster) -> None:
    key = cluster.key_on(1)
    cluster.database.declared_table("stats").upsert([{"name": key, "hits": 0}])
    shard = cluster.database.shards[1]
    with krablet.connect(shard.dsn) as there, there.connection() as blocker, there.connection() as watcher:
        blocker.execute("BEGIN")
        blocker.execute("SELECT FROM stats WHERE name = %s FOR UPDATE", [key])
        with cluster.client() as client:
            answer = client.upsert("stats", {"name": key, "hits": 1})
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%stats%%'"
            while watcher.execute(waiting).fetchone() == (0,):
                time.sleep(0.01)
            cluster.services[1].kill()  # Postgres has the whole flush, and commits it when the lock is free
            blocker.execute("COMMIT")
            moves.move_slots(cluster.database.shards, [slot_of(key)], 2)
            later = client.upsert("stats", {"name": key, "hits": 10})
            time.sleep(0.5)
            assert not answer.done(), "only the funnel of the shard that it was sent to knows"
            cluster.restart(1)
            answer.result(60)
            later.result(60)
    assert cluster.column("hits") == {key: 11}


def test_slots_whose_mover_died_are_brought_in_by_the_funnel(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    key = cluster.key_on(1)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with cluster.client() as client:
        client.upsert("stats", {"name": key, "hits": 1}).result(60)
        with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
            patched.setattr(moves, "_arrive", die)
            moves.move_slots(cluster.database.shards, [slot_of(key)], 2)
        assert cluster.database.shards.in_transit()
        client.upsert("stats", {"name": key, "hits": 1}).result(60)
    assert cluster.column("hits") == {key: 2}


def test_the_async_client_follows_too(cluster: Cluster) -> None:
    key = cluster.key_on(0)

    async def work() -> None:
        async with AsyncFunnelClient(cluster.addresses, token=TOKEN) as client:
            await client.upsert("stats", {"name": key, "hits": 1})
            await asyncio.to_thread(moves.move_slots, cluster.database.shards, [slot_of(key)], 1)
            await client.submit("stats", {"name": key, "hits": 1})
            await client.flush()
            with pytest.raises(QueueError, match="no table 'nothing' is declared here"):
                await client.submit("nothing", {"name": key})

    asyncio.run(work())
    assert cluster.column("hits") == {key: 2}


def test_a_client_that_lacks_the_funnel_of_a_shard_is_told(cluster: Cluster) -> None:
    key = cluster.key_on(2)
    with FunnelClient(cluster.addresses[:2], token=TOKEN, patience_seconds=1.0) as client:
        with pytest.raises(FunnelError, match=rf"slot {slot_of(key)} was on none of these 2 shards .*every shard's"):
            client.upsert("stats", {"name": key, "hits": 1}).result(60)
        with pytest.raises(QueueError, match="has no key: give 'name'"):
            client.upsert("stats", {"hits": 1})
    alone = FunnelClient(cluster.addresses[0], token=TOKEN)
    with pytest.raises(MutationError, match=r"is not on this shard: give the client the addresses of all"), alone:
        alone.upsert("stats", {"name": key, "hits": 1})
    with pytest.raises(ConfigError, match="first is 1 and 3 funnels are given"):
        cluster.client(name="loader", first=1)


def test_a_key_of_type_uuid_is_placed_by_its_value_however_it_is_written(cluster: Cluster) -> None:
    cluster.database.table("things", key="id", columns={"id": "uuid", "hits": "bigint"}, merge={"hits": "sum"})
    ids = [uuid.uuid4() for _ in range(20)]
    with cluster.client() as client:
        for id_ in ids:
            client.upsert("things", {"id": id_, "hits": 1})
            client.upsert("things", {"id": str(id_).upper(), "hits": 1})
        with pytest.raises(QueueError, match="is a uuid and not 'fox'"):
            client.upsert("things", {"id": "fox"})
    assert cluster.database.declared_table("things").count("hits = 2") == 20


def test_what_is_sent_again_of_a_slot_that_was_refused_is_withdrawn(tmp_path: Path) -> None:
    """The slot may be back: were it sent as it was, the later mutation could be applied before the refused one."""
    key, frames, servers = "fox", list[Any](), list[asyncio.Server]()

    class Peer(asyncio.Protocol):
        """A funnel that owns all slots, refuses the first mutation, and hangs up."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.frames = cast(asyncio.Transport, transport), wire.Frames()

        def data_received(self, data: bytes) -> None:
            self.frames.feed(data)
            while (found := self.frames.next()) is not None:
                self.answer(found[0])

        def answer(self, message: list[Any]) -> None:
            if message[0] == wire.HELLO:
                settled = [1, [[1, moved(slot_of(key))]]] if frames else [0, []]
                self.transport.write(wire.frame([wire.WELCOME, *settled]))
            elif message[0] == wire.SLOTS and not frames:
                self.transport.write(wire.frame([wire.SLOTS, b"\xff" * 128, {"stats": ["name", "text"]}]))
            elif message[0] == wire.MUTATE:
                frames.append(message[1:])
                if len(frames) == 1:
                    self.transport.abort()

    async def work() -> None:
        loop = asyncio.get_running_loop()
        addresses = [f"unix:{tmp_path}/{number}" for number in range(2)]
        for address in addresses:
            servers.append(await loop.create_unix_server(Peer, address.removeprefix("unix:")))
        async with AsyncFunnelClient(addresses) as client:
            for _ in range(3):
                (await client.submit("stats", {"name": key, "hits": 1})).add_done_callback(
                    lambda done: done.exception()
                )
            while len(frames) < 2:
                await asyncio.sleep(0.01)
            for server in servers:
                server.close()
            raise KeyError("seen")

    with pytest.raises(KeyError, match="seen"):
        asyncio.run(work())
    assert frames[0] == [0, 1, [["stats", ["name", "hits"], [key, 1] * 3]]]
    assert frames[1] == [1, 2, [["", ["slot"], [slot_of(key)] * 2]]]


def test_asking_over_a_connection_that_was_just_lost_is_refused_with_a_sentence(cluster: Cluster) -> None:
    with cluster.client() as client:
        client.upsert("stats", {"name": "fox", "hits": 1}).result(60)
        link = client._routes.links[1]

        async def ask_at_once() -> None:
            assert link._wire is not None
            await link._wire.lost.wait()
            await link.ask(wire.SLOTS)

        asked = asyncio.run_coroutine_threadsafe(ask_at_once(), client._loop)
        time.sleep(0.2)
        cluster.restart(1)
        with pytest.raises(FunnelError, match="the connection to the funnel was lost|no connection to the funnel now"):
            asked.result(60)


def test_a_client_that_breaks_says_so_instead_of_waiting(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    key = cluster.key_on(1)

    async def broken(self: Routes) -> int:
        raise ZeroDivisionError

    with pytest.raises(FunnelError, match=r"broke \(ZeroDivisionError.*open another"), cluster.client() as client:
        count_while_it_breaks(cluster, client, key, lambda: monkeypatch.setattr(Routes, "_ask_all", broken))


def count_while_it_breaks(cluster: Cluster, client: FunnelClient, key: str, break_it: Callable[[], None]) -> None:
    client.upsert("stats", {"name": key, "hits": 1}).result(60)
    break_it()
    moves.move_slots(cluster.database.shards, [slot_of(key)], 2)
    with pytest.raises(FunnelError, match="broke"):
        client.upsert("stats", {"name": key, "hits": 1}).result(60)
    client.upsert("stats", {"name": key, "hits": 1})
