"""The claim protocol, statement by statement: the contract of a warehouse, on one shard and on three."""

from __future__ import annotations

import random
import threading
import time

import pytest

from pleinair import krablet
from pleinair.krablet import Settled
from pleinair.krablet.claims import renew_lease, settle_and_claim, settlement
from pleinair.krablet.connections import open_connection
from pleinair.records.errors import QueueError
from tests.krablet.conftest import Pictures, on_one_shard_and_on_three

pytestmark = on_one_shard_and_on_three
YES = {"contains_text": True}
NO = {"contains_text": False}


def test_claim_leases_rows_and_gives_them_with_their_columns_in_declared_order(pictures: Pictures) -> None:
    names = pictures.add_together(3)
    claim = pictures.ocr.claim()
    assert sorted(claim.keys) == names
    assert claim.attempts == [1, 1, 1]
    by_name = {row["image_name"]: row for row in claim.rows}
    assert by_name[names[1]] == {
        "image_name": names[1],
        "path": f"/pictures/{names[1]}.png",
        "contains_text": None,
        "length": None,
    }
    assert list(by_name[names[1]]) == ["image_name", "path", "contains_text", "length"]


def test_claim_skips_rows_locked_by_another_transaction(pictures: Pictures) -> None:
    pictures.add_together(10)
    pictures.sql("SET lock_timeout = '2s'")
    with open_connection(pictures.last_shard.dsn) as other, other.transaction():
        locked = other.execute("SELECT image_name FROM images ORDER BY image_name LIMIT 4 FOR UPDATE").fetchall()
        claim = pictures.ocr.claim(10)
    assert len(claim) == 6
    assert set(claim.keys).isdisjoint({name for (name,) in locked})


def test_no_row_is_claimed_twice_while_it_is_leased(pictures: Pictures) -> None:
    names = pictures.add(200)
    claimed: list[str] = []

    def claim_all() -> None:
        with krablet.connect(pictures.database.dsn) as another:
            [ocr] = another.declared_stages()
            while (claim := ocr.claim(7)) is not None:
                claimed.extend(claim.keys)

    threads = [threading.Thread(target=claim_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == names
    assert pictures.ocr.claim() is None


def test_a_row_whose_lease_ran_out_is_claimable_at_once_and_says_that_the_worker_died(pictures: Pictures) -> None:
    pictures.add(1)
    first = pictures.ocr.claim()
    assert pictures.ocr.claim() is None
    pictures.expire_leases()
    second = pictures.ocr.claim()
    assert second.attempts == [2]
    assert second.token > first.token
    assert pictures.sql("SELECT ocr_error FROM images")[0][0].startswith("LeaseExpired")


def test_a_row_that_keeps_killing_its_workers_is_leased_longer_and_longer(pictures: Pictures) -> None:
    """A worker that dies cannot charge a delay, so a lease after a death lasts as long as that delay."""
    pictures.add(1)
    leases = []
    for _ in range(9):
        pictures.ocr.claim()
        [(seconds,)] = pictures.sql("SELECT extract(epoch FROM ocr_leased_until - ocr_tried_at)::float8 FROM images")
        leases.append(seconds)
        pictures.expire_leases()
    assert leases[:5] == [60, 60, 60, 60, 60]
    assert 0.8 * 2**9 <= leases[-1] <= 1.2 * 2**9


def test_fresh_rows_come_in_key_order_and_round_again(pictures: Pictures) -> None:
    names = pictures.add_together(6)
    assert pictures.ocr.claim(2).keys == names[:2]
    held = pictures.ocr.claim(2)
    assert held.keys == names[2:4]
    pictures.ocr.release(held)
    assert pictures.ocr.claim(9).keys == names[4:], "the walk goes on"
    assert pictures.ocr.claim(9).keys == names[2:4], "and comes round"


def test_a_stage_with_an_order_takes_smaller_values_first_and_new_urgent_rows_before_old_ones(
    pictures: Pictures,
) -> None:
    urgent = pictures.table.stage("urgent", ready="contains_text IS NULL", writes=["contains_text"], order="-length")
    *names, new = pictures.add_together(7)
    pictures.table.update({"image_name": name, "length": number} for number, name in enumerate([*names, new]))
    pictures.sql("DELETE FROM images WHERE image_name = %s", new)
    assert sorted(urgent.claim(2).keys) == names[4:]
    pictures.table.upsert([{"image_name": new, "length": 99}])
    assert urgent.claim(1).keys == [new]
    assert sorted(urgent.claim(9).keys) == names[:4]


def test_failed_rows_get_a_turn_though_fresh_ones_never_end(pictures: Pictures) -> None:
    failed = pictures.add_together(2)[0]
    pictures.ocr.fail(pictures.ocr.claim(1), ValueError("bad"))
    pictures.end_delays()
    pictures.add_together(50, start=10)
    claims = [pictures.ocr.claim(1).keys[0] for _ in range(10)]
    assert failed in claims


def test_a_zombie_with_an_old_token_never_overwrites(pictures: Pictures) -> None:
    pictures.add(1)
    zombie = pictures.ocr.claim()
    pictures.expire_leases()
    current = pictures.ocr.claim()
    assert pictures.ocr.complete(zombie, [YES]) == Settled(lost=1)
    assert pictures.ocr.fail(zombie, ValueError("late")) == 0
    assert pictures.ocr.renew(zombie) == 0
    assert pictures.ocr.release(zombie) == 0
    assert pictures.results() == {"picture-00000": None}
    assert pictures.ocr.complete(current, [NO]) == Settled(completed=1)
    assert pictures.ocr.complete(zombie, [YES]) == Settled(lost=1)
    assert pictures.results() == {"picture-00000": False}


def test_a_failing_row_goes_to_the_end_with_a_growing_delay_and_never_disappears(pictures: Pictures) -> None:
    failing, other = pictures.add_together(2)
    delays = []
    for attempt in range(1, 7):
        claim = pictures.ocr.claim(1)
        while claim.keys != [failing]:
            claim = pictures.ocr.claim(1)
        assert claim.attempts == [attempt]
        assert pictures.ocr.fail(claim, ValueError("bad picture")) == 1
        [(delay, error)] = pictures.sql(
            "SELECT extract(epoch FROM ocr_not_before - now())::float8, ocr_error FROM images WHERE image_name = %s",
            failing,
        )
        assert error == "ValueError: bad picture"
        delays.append(delay)
        pictures.end_delays()
    for attempt, delay in enumerate(delays, start=1):
        assert 0.8 * 2**attempt - 1 < delay < 1.2 * 2**attempt
    pictures.expire_leases()
    [untried] = [stage for stage in pictures.database.declared_stages() if stage.name == "ocr"]
    assert untried.claim(1).keys == [other], "a row that never failed comes first"
    assert [row.key for row in pictures.ocr.stuck()] == [failing]


def test_the_longest_delay_is_about_an_hour(pictures: Pictures) -> None:
    longest = pictures.sql("SELECT extract(epoch FROM pleinair.retry_delay(1000000))::float8")
    assert all(2880 <= seconds <= 4320 for (seconds,) in longest)


def test_completion_forgets_the_failures_before_it(pictures: Pictures) -> None:
    pictures.add(1)
    pictures.ocr.fail(pictures.ocr.claim(), ValueError("once"))
    pictures.end_delays()
    assert pictures.ocr.complete(pictures.ocr.claim(), [YES]) == Settled(completed=1)
    state = pictures.sql("SELECT ocr_attempts, ocr_error, ocr_leased_until, ocr_not_before, ocr_token FROM images")
    assert state == [(0, None, None, None, None)]


def test_a_result_that_leaves_its_row_ready_counts_as_a_failure(pictures: Pictures) -> None:
    pictures.add_together(2)
    claim = pictures.ocr.claim()
    assert pictures.ocr.complete(claim, [{"contains_text": None}, YES]) == Settled(completed=1, failed=1)
    assert pictures.ocr.claim() is None, "it waits like any failure instead of being claimed again at once"
    [stuck] = pictures.ocr.stuck(attempts=1)
    assert stuck.key == claim.keys[0]
    assert stuck.error.startswith("StillReady")


def test_releasing_gives_rows_back_at_once_as_if_never_tried(pictures: Pictures) -> None:
    names = pictures.add_together(3)
    assert pictures.ocr.release(pictures.ocr.claim()) == 3
    again = pictures.ocr.claim()
    assert sorted(again.keys) == names
    assert again.attempts == [1, 1, 1]


def test_a_row_whose_lease_is_renewed_while_it_is_completed_is_completed_all_the_same(pictures: Pictures) -> None:
    pictures.add_together(4)
    claim = pictures.ocr.claim(4)
    settled: list[Settled] = []
    completing = threading.Thread(target=lambda: settled.append(pictures.ocr.complete(claim, [YES] * 4)))
    with open_connection(pictures.last_shard.dsn) as heart:
        with heart.transaction():
            renew_lease(heart, pictures.ocr, claim)
            completing.start()
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            while heart.execute(waiting).fetchone() == (0,):
                assert completing.is_alive()
                time.sleep(0.01)
        completing.join()
    assert settled == [Settled(completed=4)]
    assert set(pictures.results().values()) == {True}


def test_a_row_that_is_completed_and_claimable_at_once_is_one_of_both(pictures: Pictures) -> None:
    pictures.add(30)
    claim = pictures.ocr.claim(2)
    pictures.expire_leases()
    session = pictures.database.shards[claim.shard].session
    results = settlement(pictures.ocr, claim, [YES] * 2)
    settled, following = session.run(lambda c: settle_and_claim(c, results, pictures.ocr, 40))
    assert following is not None
    written = {name for name, result in pictures.results().items() if result}
    assert len(written) == settled.completed
    assert not written & set(following.keys)
    there = session.run(lambda c: c.execute("SELECT image_name FROM images").fetchall())
    assert written | set(following.keys) == {name for (name,) in there}


def test_the_heartbeat_moves_the_lease_and_not_the_time_of_the_attempt(pictures: Pictures) -> None:
    pictures.add(1)
    claim = pictures.ocr.claim()
    before = pictures.sql("SELECT ocr_tried_at, ocr_leased_until FROM images")[0]
    assert pictures.ocr.renew(claim) == 1
    after = pictures.sql("SELECT ocr_tried_at, ocr_leased_until FROM images")[0]
    assert after[0] == before[0]
    assert after[1] > before[1]


def test_the_heartbeat_does_not_shorten_the_lease_of_a_row_that_may_kill_its_worker(pictures: Pictures) -> None:
    pictures.add(1)
    for _ in range(6):
        assert pictures.ocr.claim() is not None
        pictures.expire_leases()
    stage = pictures.table.stage("ocr", ready="contains_text IS NULL", writes=["contains_text"], lease_seconds=1)
    claim = stage.claim()
    assert stage.renew(claim) == 1
    [(left,)] = pictures.sql("SELECT extract(epoch FROM ocr_leased_until - now())::float8 FROM images")
    assert left > 30


def test_a_row_that_is_tried_once_more_is_still_listed_as_stuck(pictures: Pictures) -> None:
    pictures.add(1)
    for _ in range(4):
        pictures.ocr.fail(pictures.ocr.claim(), ValueError("bad"))
        pictures.end_delays()
    assert pictures.ocr.claim() is not None
    [stuck] = pictures.ocr.stuck(attempts=4)
    assert (stuck.attempts, pictures.ocr.depth().stuck) == (5, 1)
    assert pictures.ocr.stuck(attempts=5) == []


def test_a_row_whose_worker_died_twice_is_claimed_alone(pictures: Pictures) -> None:
    pictures.add_together(4)
    for _ in range(2):
        assert len(pictures.ocr.claim()) == 4
        pictures.expire_leases()
    claims = [pictures.ocr.claim() for _ in range(4)]
    assert [len(claim) for claim in claims] == [1, 1, 1, 1]
    assert pictures.ocr.claim() is None


def test_a_suspect_row_takes_no_fresh_row_with_it(pictures: Pictures) -> None:
    suspect = pictures.add_together(1)
    for _ in range(2):
        pictures.ocr.claim()
        pictures.expire_leases()
    fresh = pictures.add_together(3, start=100)
    claims = sorted(pictures.ocr.claim().keys for _ in range(2))
    assert claims == [suspect, fresh]


def test_a_result_the_database_refuses_fails_its_row_alone(pictures: Pictures) -> None:
    pictures.sql("ALTER TABLE images ADD CHECK (length < 100)")
    measure = pictures.table.stage("measure", ready="length IS NULL", writes=["length"])
    pictures.add_together(8)
    claim = measure.claim()
    results = [{"length": 500 if place == 3 else place} for place in range(8)]
    assert measure.complete(claim, results) == Settled(completed=7, failed=1)
    [stuck] = measure.stuck(attempts=1)
    assert stuck.key == claim.keys[3]
    assert stuck.error.startswith("CheckViolation")


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        ({"contains_text": "yes"}, "images.contains_text of 'picture-00000' is boolean and cannot hold 'yes'"),
        ({}, "return a dict with exactly ['contains_text']"),
        ({"contains_text": True, "path": "x"}, "return a dict with exactly ['contains_text']"),
        (None, "is NoneType: return a dict"),
    ],
)
def test_a_result_of_the_wrong_shape_fails_its_row_and_says_why(
    pictures: Pictures, result: object, complaint: str
) -> None:
    pictures.add(1)
    assert pictures.ocr.complete(pictures.ocr.claim(), [result]) == Settled(failed=1)  # type: ignore[list-item]
    assert complaint in pictures.ocr.stuck(attempts=1)[0].error


def test_results_that_do_not_align_with_the_claim_are_refused(pictures: Pictures) -> None:
    pictures.add_together(3)
    with pytest.raises(QueueError, match="got 2 results for 3 rows"):
        pictures.ocr.complete(pictures.ocr.claim(), [YES, NO])


def test_new_rows_flow_into_the_last_stage_and_a_stage_added_later_sees_old_rows(pictures: Pictures) -> None:
    pictures.add_together(2)
    claim = pictures.ocr.claim()
    pictures.ocr.complete(claim, [YES, NO])
    measure = pictures.table.stage("measure", ready="length IS NULL AND contains_text", writes=["length"])
    assert measure.claim().keys == [claim.keys[0]]
    [new] = pictures.add_together(1, start=100)
    pictures.ocr.complete(pictures.ocr.claim(), [YES])
    assert measure.claim().keys == [new]


def test_settling_one_claim_and_taking_the_next_is_one_transaction(pictures: Pictures) -> None:
    pictures.add_together(16)
    first = pictures.ocr.claim(8)
    with open_connection(pictures.last_shard.dsn) as connection:
        before = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()[0]
        settled, second = settle_and_claim(connection, settlement(pictures.ocr, first, [YES] * 8), pictures.ocr, 8)
        after = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()[0]
    assert (settled, len(second)) == (Settled(completed=8), 8)
    assert after - before == 2, "one transaction between the two that asked"


def test_depth_counts_every_pending_row_once(pictures: Pictures) -> None:
    names = pictures.add_together(10)
    pictures.ocr.fail(pictures.ocr.claim(2), ValueError("bad"))
    pictures.ocr.claim(3)
    pictures.sql("UPDATE images SET ocr_attempts = 9 WHERE image_name = %s", names[-1])
    depth = pictures.ocr.depth()
    assert (depth.claimable, depth.leased, depth.waiting, depth.stuck) == (4, 3, 2, 1)
    assert (depth.ready, depth.pending) == (7, 9)


def test_stats_count_done_failed_and_the_rate(pictures: Pictures) -> None:
    pictures.add_together(10)
    pictures.ocr.complete(pictures.ocr.claim(4), [YES, YES, NO, ValueError("bad")])
    stats = pictures.ocr.stats()
    assert (stats.ready, stats.leased, stats.done, stats.failed, stats.most_attempts) == (7, 0, 3, 1, 1)
    assert 0 < stats.rows_per_second <= 3
    assert stats.oldest_seconds >= 0


def test_retry_lets_failed_rows_be_claimed_at_once(pictures: Pictures) -> None:
    pictures.add(2)
    pictures.ocr.fail(pictures.ocr.claim(), ValueError("bad"))
    assert pictures.ocr.claim() is None
    assert pictures.ocr.retry() == 2
    assert len(pictures.ocr.claim()) == 2


WRITERS = {
    "upsert": lambda pictures, claim, keys: pictures.table.upsert({"image_name": key, "length": 1} for key in keys),
    "update": lambda pictures, claim, keys: pictures.table.update({"image_name": key, "length": 1} for key in keys),
    "complete": lambda pictures, claim, keys: pictures.ocr.complete(
        claim, [ValueError("bad") if key == min(keys) else YES for key in claim.keys]
    ),
    "renew": lambda pictures, claim, keys: pictures.ocr.renew(claim),
    "release": lambda pictures, claim, keys: pictures.ocr.release(claim),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_locks_rows_in_key_order(pictures: Pictures, writer: str) -> None:
    """Two writers that both go by key never deadlock. The rows lie in the table the other way round."""
    keys = pictures.add_together(3)[::-1]
    pictures.sql("DELETE FROM images")
    for key in keys:
        pictures.table.insert_missing([{"image_name": key}])
    claim = pictures.ocr.claim()
    where = pictures.last_shard.dsn
    with open_connection(where) as other, open_connection(where) as third:
        with other.transaction():
            other.execute("SELECT FROM images WHERE image_name = %s FOR UPDATE", (keys[1],))
            thread = threading.Thread(target=WRITERS[writer], args=(pictures, claim, keys))
            thread.start()
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while third.execute(waiting).fetchone() == (0,):
                assert thread.is_alive()
                time.sleep(0.01)
            free = third.execute("SELECT image_name FROM images FOR UPDATE SKIP LOCKED").fetchall()
        thread.join()
    assert free == [(keys[0],)], "it holds the first key and waits for the second"


def test_concurrent_upserts_and_claims_of_the_same_rows_never_deadlock(pictures: Pictures) -> None:
    names = pictures.add(300)
    failures: list[Exception] = []

    def upsert_shuffled(seed: int) -> None:
        shuffled = random.Random(seed).sample(names, len(names))
        try:
            with krablet.connect(pictures.database.dsn) as another:
                table = another.declared_table("images")
                for start in range(0, len(names), 50):
                    table.upsert({"image_name": name, "path": f"/{seed}"} for name in shuffled[start : start + 50])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=upsert_shuffled, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    writing, claim = True, None
    while writing or claim is not None:  # rows that are being written are skipped: no claim does not mean no rows
        writing = any(thread.is_alive() for thread in threads)
        if (claim := pictures.ocr.claim(16)) is not None:
            pictures.ocr.complete(claim, [YES] * len(claim))
    assert failures == []
    assert set(pictures.results().values()) == {True}
    # A deadlock is retried, so only the server's own count shows it.
    deadlocks = pictures.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert {count for (count,) in deadlocks} == {0}
