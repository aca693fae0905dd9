"""The funnel inside one process: durable answers, once each, in order; poison alone; bounded memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future

import pytest

from pleinair import krablet
from pleinair.krablet.connections import Connection
from pleinair.krablet.funnel import funnel as funnel_module
from pleinair.krablet.funnel.batch import Run
from pleinair.krablet.funnel.clients import ClientState
from pleinair.krablet.funnel.errors import FunnelError, MutationError, ProtocolError, moved_slot
from pleinair.krablet.funnel.funnel import Funnel, FunnelSettings
from pleinair.krablet.queries import query
from pleinair.krablet.shards import slot_bits, slot_of
from pleinair.records.errors import ConfigError, QueueError
from tests.krablet.funnels import column, stats_table


class Answers:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.through = 0
        self.failures: dict[int, str] = {}
        self.reason: str | None = None

    def answered(self, through: int, failures: Mapping[int, str]) -> None:
        self.through = max(self.through, through)
        self.failures.update(failures)

    def dismissed(self, reason: str) -> None:
        self.reason = reason


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.005)


@pytest.fixture
def funnel(database: krablet.Database) -> Iterator[Funnel]:
    stats_table(database)
    with Funnel(database.session) as funnel:
        yield funnel


@pytest.fixture
def blocker(database: krablet.Database) -> Iterator[Connection]:
    """A transaction that holds the row `held`: a flush that needs it waits until this is rolled back."""
    stats_table(database).upsert([{"name": "held", "hits": 0}])
    with database.connection() as connection:
        connection.execute("ALTER TABLE stats ADD CHECK (latest >= 0)")
        connection.execute("BEGIN")
        connection.execute("SELECT FROM stats WHERE name = 'held' FOR UPDATE")
        yield connection
        connection.execute("ROLLBACK")


WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


def until_a_flush_waits(database: krablet.Database) -> None:
    """Until Postgres holds a flush that waits for the blocker's row."""
    with database.connection() as connection:
        eventually(lambda: connection.execute(WAITING).fetchone())


def increments(client: ClientState, first: int, count: int, name: str = "fox") -> Run:
    return Run(client, first, "stats", ("name", "hits"), [name, 1] * count, time.monotonic())


def registered(funnel: Funnel, name: str, sink: Answers, incarnation: str = "one", begins: bool = True) -> ClientState:
    return funnel.register(name, incarnation, begins, sink).result(30)


def test_an_answered_mutation_is_in_the_table(database: krablet.Database, funnel: Funnel) -> None:
    funnel.submit("stats", {"name": "fox", "hits": 2, "tags": ["red"]}).result(30)
    funnel.submit("stats", {"name": "fox", "hits": 3, "tags": ["wild", "red"]}).result(30)
    assert column(database, "hits") == {"fox": 5}
    assert column(database, "tags") == {"fox": ["red", "wild"]}


def test_a_column_that_is_not_given_is_left_alone(database: krablet.Database, funnel: Funnel) -> None:
    rows = [{"name": "fox", "hits": 2}, {"name": "fox", "latest": 7}, {"name": "owl"}, {"name": "fox"}]
    for answer in [funnel.submit("stats", row) for row in rows]:
        answer.result(30)
    assert column(database, "hits") == {"fox": 2, "owl": None}
    assert column(database, "latest") == {"fox": 7, "owl": None}


def test_many_threads_lose_nothing_and_their_mutations_share_commits(
    database: krablet.Database, funnel: Funnel
) -> None:
    def work() -> None:
        for answer in [funnel.submit("stats", {"name": f"k{n % 10}", "hits": 1}) for n in range(500)]:
            answer.result(30)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert column(database, "hits") == {f"k{n}": 400 for n in range(10)}
    stats = funnel.stats()
    assert (stats.received, stats.applied, stats.failed) == (4000, 4000, 0)
    assert stats.flushes < 1000
    assert stats.coalescing > 2


def test_mutations_of_a_key_are_applied_in_the_order_of_submission(database: krablet.Database, funnel: Funnel) -> None:
    answers = [funnel.submit("stats", {"name": f"k{n % 7}", "latest": n}) for n in range(3000)]
    for answer in answers:
        answer.result(30)
    assert column(database, "latest") == {f"k{n % 7}": n for n in range(2993, 3000)}


POISON = [
    ({"name": "fox", "hits": "many"}, "stats.hits of 'fox' is bigint and cannot hold 'many'"),
    ({"name": "fox", "hits": 2**63}, 'value "9223372036854775808" is out of range for type bigint'),
    ({"name": "fox", "latest": -1}, 'new row for relation "stats" violates check constraint'),
    ({"name": "a\x00b", "hits": 1}, "stats.name of 'a\\x00b' is text and cannot hold"),
    ({"name": None, "hits": 1}, "a row for table stats has no key: give 'name'"),
    ({"name": "fox", "hots": 1}, "table stats has no column 'hots': declare it, or use one of name, hits"),
    ({"hits": 1}, "a row for table stats has no key: give 'name'"),
]


@pytest.mark.parametrize(("row", "reason"), POISON)
def test_a_poison_mutation_fails_alone(
    database: krablet.Database, funnel: Funnel, blocker: Connection, row: dict[str, object], reason: str
) -> None:
    first = funnel.submit("stats", {"name": "held", "hits": 1})  # while it waits, the others gather in one flush
    good = [funnel.submit("stats", {"name": f"k{n % 5}", "hits": 1}) for n in range(40)]
    bad = funnel.submit("stats", row)
    good += [funnel.submit("stats", {"name": f"k{n % 5}", "hits": 1}) for n in range(23)]
    blocker.execute("ROLLBACK")
    for answer in [first, *good]:
        answer.result(30)
    with pytest.raises(MutationError) as refused:
        bad.result(30)
    assert str(refused.value).startswith(reason)
    assert sum(column(database, "hits").values()) == 64
    assert funnel.stats().failed == 1


def test_a_flush_of_nothing_but_poison_fails_one_by_one(
    database: krablet.Database, funnel: Funnel, blocker: Connection
) -> None:
    first = funnel.submit("stats", {"name": "held", "hits": 1})
    bad = [funnel.submit("stats", {"name": f"k{n}", "hits": 2**63 + n}) for n in range(20)]
    blocker.execute("ROLLBACK")
    first.result(30)
    reasons = [str(answer.exception(30)) for answer in bad]
    assert all(f'"{2**63 + n}" is out of range' in reason for n, reason in enumerate(reasons))
    assert column(database, "hits") == {"held": 1}


def test_an_unknown_table_is_refused_and_may_be_declared_later(database: krablet.Database, funnel: Funnel) -> None:
    with pytest.raises(MutationError, match=r"no table 'later' is declared in this database: declare it with"):
        funnel.submit("later", {"key": 1}).result(30)
    database.table("later", key="key", columns={"key": "bigint"})
    funnel.submit("later", {"key": 1}).result(30)
    database.table("later", key="key", columns={"key": "bigint", "more": "text"})
    funnel.submit("later", {"key": 1, "more": "yes"}).result(30)
    assert database.table("later", key="key", columns={"key": "bigint"}).count("more = 'yes'") == 1


def test_an_empty_row_and_a_closed_funnel_are_refused(database: krablet.Database, funnel: Funnel) -> None:
    with pytest.raises(QueueError, match=r"^a row for table stats is empty: give at least its key$"):
        funnel.submit("stats", {})
    funnel.submit("stats", {"name": "fox", "hits": 1})
    assert funnel.close()
    assert column(database, "hits") == {"fox": 1}
    with pytest.raises(FunnelError, match="the funnel is closed: open another one"):
        funnel.submit("stats", {"name": "fox", "hits": 1})


def test_a_callback_may_submit_again(database: krablet.Database, funnel: Funnel) -> None:
    second: Future[Future[None]] = Future()

    def again(_: Future[None]) -> None:
        second.set_result(funnel.submit("stats", {"name": "fox", "hits": 1}))

    funnel.submit("stats", {"name": "fox", "hits": 1}).add_done_callback(again)
    second.result(30).result(30)
    assert column(database, "hits") == {"fox": 2}


def test_the_buffer_never_exceeds_its_limit_and_submit_waits_for_room(
    database: krablet.Database, blocker: Connection
) -> None:
    settings = FunnelSettings(buffer_mutations=100, flush_mutations=30)
    with Funnel(database.session, settings) as funnel:
        answers: list[Future[None]] = []

        def work() -> None:
            for n in range(250):
                answers.append(funnel.submit("stats", {"name": "held", "hits": n}))

        thread = threading.Thread(target=work)
        thread.start()
        eventually(lambda: funnel.stats().buffered == 100)
        time.sleep(0.2)
        assert len(answers) == 100
        assert thread.is_alive()
        blocker.execute("ROLLBACK")
        thread.join()
        for answer in answers:
            answer.result(30)
        stats = funnel.stats()
        assert (stats.peak_buffered, stats.buffered, stats.buffered_bytes) == (100, 0, 0)
    assert column(database, "hits") == {"held": sum(range(250))}


def test_a_mutation_sent_again_is_applied_once(database: krablet.Database, funnel: Funnel) -> None:
    sink = Answers()
    client = registered(funnel, "loader", sink)
    for first, count in ((1, 5), (1, 5), (3, 6), (2, 1), (9, 2)):  # 1 to 10, with repetitions
        assert funnel.offer(client, 0, [increments(client, first, count)], 100)
    eventually(lambda: sink.through == 10)
    assert funnel.offer(client, 0, [increments(client, 1, 10)], 100)
    funnel.submit("stats", {"name": "owl", "hits": 1}).result(30)
    assert column(database, "hits") == {"fox": 10, "owl": 1}
    assert funnel.stats().duplicates == 19


def test_a_gap_in_the_numbers_is_refused(funnel: Funnel) -> None:
    client = registered(funnel, "loader", Answers())
    with pytest.raises(ProtocolError, match="sent mutation 2 where 1 was expected: send all that is unacknowledged"):
        funnel.offer(client, 0, [increments(client, 2, 1)], 100)


def test_a_client_may_not_have_more_outstanding_than_is_remembered(
    funnel: Funnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(funnel_module, "MAX_OUTSTANDING", 8)
    sink = Answers()
    client = registered(funnel, "loader", sink)
    funnel.offer(client, 0, [increments(client, 1, 8)], 100)
    eventually(lambda: sink.through == 8)
    with pytest.raises(ProtocolError, match="client 'loader' has more than 8 mutations outstanding"):
        funnel.offer(client, 0, [increments(client, 9, 1)], 100)
    assert funnel.offer(client, 1, [increments(client, 9, 1)], 100)


def test_a_failure_is_remembered_until_its_client_knows_it(database: krablet.Database) -> None:
    stats_table(database)

    def run(first: int, value: int) -> Run:
        return Run(client, first, "stats", ("name", "hits"), ["fox", value], time.monotonic())

    with Funnel(database.session) as funnel:
        client = registered(funnel, "loader", sink := Answers())
        funnel.offer(client, 0, [run(1, 1), run(2, 2**63), run(3, 1)], 100)
        eventually(lambda: sink.through == 3)
    with Funnel(database.session) as funnel:
        # The answers were lost with the first funnel. The value has become good, but the answer stands.
        client = registered(funnel, "loader", sink := Answers(), begins=False)
        assert (client.applied, list(client.failures)) == (3, [2])
        assert funnel.offer(client, 0, [run(1, 1), run(2, 5), run(3, 1), run(4, 1)], 100)
        eventually(lambda: sink.through == 4)
        assert list(sink.failures) == [2]
        assert "out of range" in sink.failures[2]
        funnel.offer(client, 4, [run(5, 1)], 100)
        eventually(lambda: sink.through == 5)
        assert client.failures == {}
    assert column(database, "hits") == {"fox": 4}
    with database.connection() as connection:
        assert connection.execute("SELECT count(*) FROM pleinair.funnel_failures").fetchone() == (0,)


def test_two_funnels_that_serve_one_client_apply_its_mutations_once(
    database: krablet.Database, funnel: Funnel, blocker: Connection
) -> None:
    with Funnel(database.session) as other:
        first, second = Answers(), Answers()
        client = registered(funnel, "loader", first)
        funnel.offer(client, 0, [increments(client, 1, 3), increments(client, 4, 1, "held")], 100)
        until_a_flush_waits(database)
        same = registered(other, "loader", second, begins=False)
        assert same.applied == 0
        other.offer(same, 0, [increments(same, 1, 3), increments(same, 4, 1, "held"), increments(same, 5, 2)], 100)
        funnel.offer(client, 0, [increments(client, 5, 1)], 100)
        blocker.execute("ROLLBACK")
        eventually(lambda: second.through == 6 and first.through >= 5)
        assert other.stats().fenced + funnel.stats().fenced > 0
    assert column(database, "hits") == {"fox": 5, "held": 1}


def test_a_new_program_of_the_same_name_ends_the_old_one(database: krablet.Database, funnel: Funnel) -> None:
    with Funnel(database.session) as other:
        old, new = Answers(), Answers()
        before = registered(funnel, "loader", old, incarnation="before")
        funnel.offer(before, 0, [increments(before, 1, 2)], 100)
        eventually(lambda: old.through == 2)
        after = registered(other, "loader", new, incarnation="after")
        assert after.applied == 2
        funnel.offer(before, 0, [increments(before, 3, 5)], 100)
        eventually(lambda: old.reason is not None)
        assert old.reason is not None
        assert old.reason.startswith("another program took over the name 'loader'")
        with pytest.raises(FunnelError, match="another program took over"):
            registered(funnel, "loader", old, incarnation="before", begins=False)
        with pytest.raises(FunnelError, match="another program took over"):
            funnel.offer(before, 0, [increments(before, 8, 1)], 100)
        other.offer(after, 2, [increments(after, 3, 1)], 100)
        eventually(lambda: new.through == 3)
    assert column(database, "hits") == {"fox": 3}


def test_a_program_of_the_same_name_is_taken_over_within_one_funnel(
    database: krablet.Database, funnel: Funnel, blocker: Connection
) -> None:
    old, new = Answers(), Answers()
    before = registered(funnel, "loader", old, incarnation="before")
    funnel.offer(before, 0, [increments(before, 1, 1, "held")], 100)
    until_a_flush_waits(database)
    waiting = funnel.register("loader", "after", True, new)
    funnel.offer(before, 0, [increments(before, 2, 4)], 100)
    blocker.execute("ROLLBACK")
    after = waiting.result(30)
    assert after.applied == 1
    eventually(lambda: old.reason is not None)
    funnel.offer(after, 1, [increments(after, 2, 1)], 100)
    eventually(lambda: new.through == 2)
    assert column(database, "hits") == {"held": 1, "fox": 1}


def test_a_commit_whose_answer_was_lost_is_recognised(
    database: krablet.Database, funnel: Funnel, blocker: Connection
) -> None:
    funnel.submit("stats", {"name": "fox", "hits": 1}).result(30)
    answer = funnel.submit("stats", {"name": "held", "hits": 5})
    with database.connection() as connection:
        until_a_flush_waits(database)
        blocker.execute("ROLLBACK")
        # Killed before or after its commit: whichever, the sum must be right.
        connection.execute(f"SELECT pg_terminate_backend(pid) FROM ({WAITING}) AS flusher")
    answer.result(30)
    assert column(database, "hits") == {"fox": 1, "held": 5}


def test_a_cut_connection_is_replaced_and_nothing_is_lost(database: krablet.Database, funnel: Funnel) -> None:
    answers = []
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> %s"
    with database.connection() as connection:
        for n in range(2000):
            answers.append(funnel.submit("stats", {"name": f"k{n % 3}", "hits": 1}))
            if n % 400 == 399:
                connection.execute(cut, [connection.info.backend_pid])
    for answer in answers:
        answer.result(30)
    assert sum(column(database, "hits").values()) == 2000


def test_idle_clients_are_forgotten_and_connected_ones_are_not(database: krablet.Database, funnel: Funnel) -> None:
    registered(funnel, "busy", Answers())
    gone = Answers()
    funnel.detach(registered(funnel, "gone", gone), gone)
    with database.connection() as connection:
        connection.execute("UPDATE pleinair.funnel_clients SET seen_at = now() - interval '8 days'")
        funnel._purge()
        names = connection.execute("SELECT client FROM pleinair.funnel_clients").fetchall()
    assert ("busy",) in names
    assert ("gone",) not in names
    with pytest.raises(FunnelError, match="or its record has expired"):
        registered(funnel, "gone", gone, begins=False)


def test_a_funnel_whose_own_tables_are_gone_ends_with_the_reason(database: krablet.Database, funnel: Funnel) -> None:
    funnel.submit("stats", {"name": "fox", "hits": 1}).result(30)
    with database.connection() as connection:
        connection.execute("DROP TABLE pleinair.funnel_clients CASCADE")
    with pytest.raises(FunnelError, match='the funnel has ended: relation "pleinair.funnel_clients" does not exist'):
        funnel.submit("stats", {"name": "fox", "hits": 1}).result(30)
    with pytest.raises(FunnelError, match="the funnel has ended"):
        funnel.submit("stats", {"name": "fox", "hits": 1})


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="buffer_mutations is 0: give a positive number"):
        FunnelSettings(buffer_mutations=0)


def test_what_was_sent_before_a_refusal_was_known_is_refused_too_although_the_slot_is_back(
    database: krablet.Database, funnel: Funnel
) -> None:
    """Else the later of two mutations of a key could be applied first."""

    def own(name: str) -> None:
        bits = {"slots": slot_bits([slot_of("fox")])}
        database.session.run(lambda connection: connection.execute(query("shards", name), bits))

    own("disown_slots")
    client = registered(funnel, "loader", sink := Answers())
    funnel.offer(client, 0, [increments(client, 1, 1), increments(client, 2, 1, "wolf")], 100)
    eventually(lambda: sink.through == 2)
    own("own_slots")
    funnel.offer(client, 0, [increments(client, 3, 1)], 100)
    eventually(lambda: sink.through == 3)
    assert {number: moved_slot(why) for number, why in sink.failures.items()} == dict.fromkeys((1, 3), slot_of("fox"))
    funnel.offer(client, 3, [increments(client, 4, 1), Run(client, 5, "", ("slot",), [7], 0.0)], 100)
    eventually(lambda: sink.through == 5)
    assert moved_slot(sink.failures[5]) == 7, "a withdrawn mutation is settled and not applied"
    assert column(database, "hits") == {"fox": 1, "wolf": 1}
