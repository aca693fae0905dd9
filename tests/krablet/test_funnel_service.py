"""Fault drills: a real funnel process, real sockets, real Postgres; killed anywhere, every sum is exact."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from pleinair import krablet
from pleinair.krablet.funnel.client import AsyncFunnelClient, FunnelClient
from pleinair.krablet.funnel.errors import FunnelError, MutationError
from pleinair.krablet.funnel.service import ServiceSettings
from pleinair.krablet.funnel.visitor import service_stats
from pleinair.krablet.postgres.embedded import open_server, running
from pleinair.records.errors import ConfigError, QueueError
from tests.krablet.funnels import TOKEN, Service, column, self_made_certificate, stats_table

KEYS = 5


@pytest.fixture
def listen() -> Iterator[str]:
    """A Unix socket that outlives the services that listen on it one after the other."""
    with tempfile.TemporaryDirectory() as directory:
        yield f"unix:{directory}/funnel"


@pytest.fixture
def service(database: krablet.Database, listen: str) -> Iterator[Service]:
    stats_table(database)
    with Service(database.dsn, listen) as service:
        yield service


class Incrementer(threading.Thread):
    """Counts up `hits` of shared keys, and `latest` of a key of its own, until it is told to stop."""

    def __init__(self, address: str, number: int) -> None:
        super().__init__()
        self.sent = dict.fromkeys((f"k{key}" for key in range(KEYS)), 0)
        self.own = f"own-{number}"
        self.last = 0
        self.failure: BaseException | None = None
        self._stopped = threading.Event()
        self._address = address

    def run(self) -> None:
        try:
            with FunnelClient(self._address, token=TOKEN, window=200, patience_seconds=300) as client:
                while not self._stopped.is_set():
                    self._count(client)
        except BaseException as failure:
            self.failure = failure

    def _count(self, client: FunnelClient) -> None:
        for key in random.sample(sorted(self.sent), 3):
            client.upsert("stats", {"name": key, "hits": 1})
            self.sent[key] += 1
        self.last += 1
        client.upsert("stats", {"name": self.own, "latest": self.last})
        time.sleep(0.001)

    def finish(self) -> None:
        self._stopped.set()
        self.join(300)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure


def started(address: str, count: int) -> list[Incrementer]:
    threads = [Incrementer(address, number) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads


def until_it_has_applied(listen: str) -> None:
    """On a busy machine a funnel could otherwise be killed before its clients have found it."""
    deadline = time.monotonic() + 120
    while service_stats(listen, token=TOKEN)["applied"] == 0:
        assert time.monotonic() < deadline, "the funnel applied nothing within 120 s"
        time.sleep(0.01)


def assert_exact(database: krablet.Database, threads: list[Incrementer]) -> None:
    hits, latest = column(database, "hits"), column(database, "latest")
    expected = {key: sum(thread.sent[key] for thread in threads) for key in threads[0].sent}
    assert {key: hits[key] for key in expected} == expected
    assert {thread.own: latest[thread.own] for thread in threads} == {thread.own: thread.last for thread in threads}


@pytest.mark.slow
def test_a_funnel_killed_at_random_loses_and_repeats_nothing(database: krablet.Database, listen: str) -> None:
    stats_table(database)
    threads = started(listen, 4)
    for _ in range(4):
        with Service(database.dsn, listen) as service:
            until_it_has_applied(listen)
            time.sleep(random.uniform(0, 0.3))
            service.kill()
    with Service(database.dsn, listen):
        for thread in threads:
            thread.finish()
    assert_exact(database, threads)


def test_a_funnel_killed_between_commit_and_answer_does_not_apply_twice(
    database: krablet.Database, service: Service, listen: str
) -> None:
    stats_table(database).upsert([{"name": "held", "hits": 0}])
    with database.connection() as blocker, database.connection() as watcher:
        blocker.execute("BEGIN")
        blocker.execute("SELECT FROM stats WHERE name = 'held' FOR UPDATE")
        with FunnelClient(listen, token=TOKEN) as client:
            answer = client.upsert("stats", {"name": "held", "hits": 1})
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while watcher.execute(waiting).fetchone() == (0,):
                time.sleep(0.01)
            service.kill()  # Postgres has the whole flush, and commits it when the lock is free
            with Service(database.dsn, listen):
                blocker.execute("COMMIT")
                answer.result(60)
    assert column(database, "hits") == {"held": 1}


def test_a_postmaster_killed_and_started_again_needs_no_manual_step(stopped_server: Path, listen: str) -> None:
    with krablet.connect(directory=stopped_server) as database:
        with database.connection() as connection:
            connection.execute("DROP TABLE IF EXISTS stats")
        stats_table(database)
        with Service(database.dsn, listen) as service:
            threads = started(listen, 3)
            for sign in (signal.SIGKILL, signal.SIGQUIT):  # SIGQUIT is pg_ctl's immediate stop
                time.sleep(0.4)
                server = running(stopped_server)
                assert server is not None
                os.kill(server.pid, sign)
                time.sleep(0.3)
                open_server(stopped_server, stays=True).leave()
            time.sleep(0.4)
            for thread in threads:
                thread.finish()
            assert service.process.poll() is None
            assert_exact(database, threads)
            assert service.stop() == 0


LOADER = """
import sys
from pleinair.krablet.funnel.client import FunnelClient
address, token, count, first = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
with FunnelClient(address, token=token, name="loader", first=int(first) if first else None, window=64) as client:
    begin = 0 if first else client.applied()
    print("begins after", begin, flush=True)
    for number in range(begin, count):
        client.upsert("stats", {"name": f"k{number % 5}", "hits": number})
"""


@pytest.mark.parametrize("first", ["", "1"], ids=["going on", "repeating all"])
def test_a_client_killed_and_begun_again_in_its_name_is_applied_once(
    database: krablet.Database, service: Service, first: str
) -> None:
    count = 3000
    command = [sys.executable, "-c", LOADER, service.address, TOKEN, str(count), first]
    for _ in range(3):
        loader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert loader.stdout is not None
        assert loader.stdout.readline().startswith("begins after")
        time.sleep(random.uniform(0.01, 0.1))
        loader.kill()
        loader.wait()
        loader.stdout.close()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    assert sum(column(database, "hits").values()) == sum(range(count))


def test_a_second_program_of_the_same_name_ends_the_first(service: Service) -> None:
    with FunnelClient(service.address, token=TOKEN, name="loader") as first:
        first.upsert("stats", {"name": "fox", "hits": 1}).result(30)
        with FunnelClient(service.address, token=TOKEN, name="loader") as second:
            assert second.applied() == 1
            with pytest.raises(FunnelError, match="another program took over the name 'loader'"):
                first.upsert("stats", {"name": "fox", "hits": 1}).result(30)
            second.upsert("stats", {"name": "fox", "hits": 1}).result(30)
        with pytest.raises(FunnelError, match="another program took over the name 'loader'"):
            first.flush()
        first.close()


def test_poison_fails_alone_and_flush_tells_of_it(database: krablet.Database, service: Service) -> None:
    with FunnelClient(service.address, token=TOKEN) as client:
        good = [client.upsert("stats", {"name": f"k{n % 5}", "hits": 1}) for n in range(50)]
        bad = client.upsert("stats", {"name": "fox", "hits": 2**63})
        good += [client.upsert("stats", {"name": f"k{n % 5}", "hits": 1}) for n in range(50)]
        with pytest.raises(MutationError, match=r"^1 mutations were refused, the first: value .* is out of range"):
            client.flush()
        assert [answer.exception() for answer in good] == [None] * 100
        assert isinstance(bad.exception(), MutationError)
        with pytest.raises(QueueError, match="cannot be sent: a object cannot be sent: give text, numbers, bytes"):
            client.upsert("stats", {"name": "fox", "hits": object()})
        client.flush()
    assert sum(column(database, "hits").values()) == 100


def test_a_full_buffer_stops_reading_and_never_exceeds_its_limit(database: krablet.Database, listen: str) -> None:
    limit = 4096
    stats_table(database).upsert([{"name": "held", "hits": 0}])
    with database.connection() as blocker, Service(database.dsn, listen, "--buffer", str(limit)):
        blocker.execute("BEGIN")
        blocker.execute("SELECT FROM stats WHERE name = 'held' FOR UPDATE")
        clients = [FunnelClient(listen, token=TOKEN, window=3000) for _ in range(3)]
        try:
            answers = [client.upsert("stats", {"name": "held", "hits": 1}) for _ in range(3000) for client in clients]
            time.sleep(1.0)
            assert 0 < service_stats(listen, token=TOKEN)["buffered"] <= limit
            assert not any(answer.done() for answer in answers)
            blocker.execute("COMMIT")
            for answer in answers:
                answer.result(60)
            assert clients[0].stats()["peak_buffered"] <= limit
            with pytest.raises(FunnelError, match="the funnel refuses: the token is wrong"):
                service_stats(listen, token="guessed")
        finally:
            for client in clients:
                client.close()
    assert column(database, "hits") == {"held": 9000}


def test_sigterm_settles_what_was_accepted_and_clients_go_on_with_the_next(
    database: krablet.Database, listen: str
) -> None:
    stats_table(database)
    threads = started(listen, 2)
    for _ in range(2):
        with Service(database.dsn, listen) as service:
            time.sleep(0.3)
            assert service.stop() == 0
            assert "leaving:" in service.output
    with Service(database.dsn, listen):
        for thread in threads:
            thread.finish()
    assert_exact(database, threads)


def test_a_wrong_token_is_refused_and_no_token_is_ever_logged(database: krablet.Database) -> None:
    stats_table(database)
    with Service(database.dsn, "127.0.0.1:0") as service:
        with FunnelClient(service.address, token=TOKEN) as client:
            client.upsert("stats", {"name": "fox", "hits": 1}).result(30)
        for wrong in ("", "guessed-token-xyz", TOKEN + "x"):
            client = FunnelClient(service.address, token=wrong)
            with pytest.raises(FunnelError, match="refuses this client: the token is wrong: give the token") as refused:
                client.upsert("stats", {"name": "fox", "hits": 1}).result(30)
            assert TOKEN not in str(refused.value)
            client.close()
        service.stop()
        assert "refused a client with a wrong token" in service.output
        assert TOKEN not in service.output
        assert "guessed-token-xyz" not in service.output
    assert TOKEN not in repr(ServiceSettings(listen="127.0.0.1:0", token=TOKEN))
    assert column(database, "hits") == {"fox": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x02\x91\x02",  # MUTATE before HELLO
        b"\x00\x00\x00\x01\xc1",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x06\x81\x92\x01\x02\x03\x04",
    ],
)
def test_nonsense_is_answered_with_a_refusal_and_harms_nobody(service: Service, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(30)
        peer.connect(service.address.removeprefix("unix:"))
        peer.sendall(data)
        answer = b""
        while piece := peer.recv(4096):
            answer += piece
    assert msgpack.unpackb(answer[4:])[0] == 7  # REFUSE
    with FunnelClient(service.address, token=TOKEN) as client:
        client.upsert("stats", {"name": "fox", "hits": 1}).result(30)


def test_tls_carries_the_funnel_and_plaintext_is_refused(database: krablet.Database, tmp_path: Path) -> None:
    stats_table(database)
    certificate, key = self_made_certificate(tmp_path)
    with Service(database.dsn, "127.0.0.1:0", "--cert", str(certificate), "--key", str(key)) as service:
        trusting = ssl.create_default_context(cafile=certificate)
        with FunnelClient(service.address, token=TOKEN, tls=trusting) as client:
            client.upsert("stats", {"name": "fox", "hits": 1}).result(30)
        plain = FunnelClient(service.address, token=TOKEN, patience_seconds=1.0)
        with pytest.raises(FunnelError, match=r"did not answer for \d s .*does this funnel require TLS\?"):
            plain.upsert("stats", {"name": "fox", "hits": 1}).result(30)
        plain.close()
        doubting = FunnelClient(service.address, token=TOKEN, tls=ssl.create_default_context())
        with pytest.raises(FunnelError, match="shows a certificate that is not trusted"):
            doubting.upsert("stats", {"name": "fox", "hits": 1}).result(30)
        doubting.close()
    assert column(database, "hits") == {"fox": 1}


def test_a_certificate_for_another_host_is_refused(database: krablet.Database, tmp_path: Path) -> None:
    stats_table(database)
    certificate, key = self_made_certificate(tmp_path, names=["DNS:elsewhere.example"])
    with Service(database.dsn, "127.0.0.1:0", "--cert", str(certificate), "--key", str(key)) as service:
        client = FunnelClient(service.address, token=TOKEN, tls=ssl.create_default_context(cafile=certificate))
        with pytest.raises(FunnelError, match="not trusted: .* is not valid for '127.0.0.1'"):
            client.upsert("stats", {"name": "fox", "hits": 1}).result(30)
        client.close()


def test_an_address_open_to_others_needs_a_token_and_tls() -> None:
    with pytest.raises(ConfigError, match=r"listen is '127\.0\.0\.1:1' and there is no token"):
        ServiceSettings(listen="127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"listen is '0\.0\.0\.0:1', reachable from other machines, without TLS"):
        ServiceSettings(listen="0.0.0.0:1", token="t")
    with pytest.raises(
        ConfigError, match=r"address 'somewhere' is not usable: write HOST:PORT, \[IPV6\]:PORT or unix:"
    ):
        ServiceSettings(listen="somewhere", token="t")
    ServiceSettings(listen="0.0.0.0:1", token="t", plaintext=True)
    ServiceSettings(listen="[::1]:1", token="t")


def test_the_async_client_does_what_the_threaded_one_does(database: krablet.Database, service: Service) -> None:
    async def work() -> dict[str, Any]:
        async with AsyncFunnelClient(service.address, token=TOKEN) as client:
            await asyncio.gather(*(client.upsert("stats", {"name": f"k{n % 5}", "hits": 1}) for n in range(500)))
            with pytest.raises(MutationError, match="cannot hold 'x'"):
                await client.upsert("stats", {"name": "fox", "hits": "x"})
            await client.submit("stats", {"name": "fox", "hits": 1})
            await client.flush()
            return await client.stats()

    stats = asyncio.run(work())
    assert (stats["applied"], stats["failed"], stats["clients"]) == (501, 1, 1)
    assert column(database, "hits") == {**{f"k{n}": 100 for n in range(5)}, "fox": 1}


def test_prometheus_finds_what_the_funnel_counts_under_documented_names(
    database: krablet.Database, listen: str
) -> None:
    stats_table(database)
    with Service(database.dsn, listen, "--metrics", "127.0.0.1:0") as service:
        with FunnelClient(listen, token=TOKEN) as client:
            for _ in range(50):
                client.upsert("stats", {"name": "fox", "hits": 1})
        url = service.output.split("metrics: ")[1].split()[0]
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["pleinair_funnel_mutations_applied_total"] == "50"
    assert values["pleinair_funnel_rows_written_total"] == values["pleinair_funnel_flushes_total"], "one key"
    assert (
        values['pleinair_funnel_latency_seconds_bucket{le="+Inf"}'] == values["pleinair_funnel_latency_seconds_count"]
    )
    page = (Path(__file__).parents[2] / "docs/krablet-funnel.md").read_text()
    names = {line.split()[2].removeprefix("pleinair_funnel_") for line in text.splitlines() if "# HELP" in line}
    assert len(names) == 17
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_a_client_without_a_funnel_gives_up_after_its_patience(listen: str) -> None:
    with FunnelClient(listen, token=TOKEN, patience_seconds=0.5) as client:
        with pytest.raises(FunnelError, match=r"did not answer for \d s .*may or may not have been applied"):
            client.upsert("stats", {"name": "fox", "hits": 1}).result(30)
        with pytest.raises(FunnelError, match="did not answer"):
            client.upsert("stats", {"name": "fox", "hits": 1})
        with pytest.raises(FunnelError, match="did not answer"):
            client.applied()
        client.close()
