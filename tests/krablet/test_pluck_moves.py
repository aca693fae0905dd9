"""Jobs of pluck while rows move between shards: every row done once, wherever it is."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from pleinair import krablet
from pleinair.krablet import moves
from pleinair.krablet.pluck import Handle, pluck
from pleinair.krablet.pluck.signing import load_key, write_keys
from pleinair.krablet.pluck.worker import Worker, WorkerSettings
from pleinair.krablet.shards import slot_of
from pleinair.records.errors import QueueError
from tests.krablet.pluck_jobs_of_tests import double, wait_until

COLUMNS = {"name": "text", "value": "bigint", "doubled": "bigint"}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write_keys(tmp_path / "key")[0]


@pytest.fixture
def database(shard_dsns: list[str]) -> Iterator[krablet.Database]:
    """A table of numbers over two shards."""
    with krablet.connect(shard_dsns[:2]) as database:
        database.table("numbers", key="name", columns=COLUMNS)
        yield database


def add(database: krablet.Database, count: int) -> None:
    rows = ({"name": f"n{number:06d}", "value": number} for number in range(count))
    database.declared_table("numbers").upsert(rows)


def work(database: krablet.Database, handle: Handle, key_file: Path, shards: list[int]) -> None:
    sessions = {str(number): database.shards[number].session.fresh(5.0) for number in shards}
    given: dict[str, Any] = {"keys": [load_key(key_file)], "job": handle.id, "report": lambda line: None}
    Worker(sessions, WorkerSettings(**given)).run()
    for session in sessions.values():
        session.close()


def values(database: krablet.Database, statement: str) -> dict[str, int]:
    found = list(chain(*database.shards.each(lambda connection: connection.execute(statement).fetchall())))
    assert len(dict(found)) == len(found), "a row is on one shard"
    return dict(found)


def names_on(database: krablet.Database, shard: int) -> list[str]:
    """Names that belong to a shard now."""
    return [name for name in (f"n{number:06d}" for number in range(300)) if database.shards.of(name).number == shard]


def move(database: krablet.Database, target: int, count: int) -> None:
    source = database.shards.slots(1 - target)
    moves.move_slots(database.shards, random.sample(source, min(count, len(source))), target)


def test_no_row_is_missed_and_none_fails_twice_when_rows_move_in_the_middle_of_a_job(
    database: krablet.Database,
) -> None:
    def halve(rows: list[dict[str, Any]]) -> list[Any]:
        import time

        time.sleep(0.01)
        return [ValueError("odd") if row["value"] % 50 == 7 else {"half": row["value"] / 2} for row in rows]

    add(database, 400)
    rows = pluck(database, "numbers", "name")
    handle = rows.map(halve, output=("halves", {"half": "real"}), workers=2, batch=2, attempts=2)
    wait_until(lambda: handle.progress().done > 20)
    for target in (1, 0, 1):
        move(database, target, 24)
    progress = handle.wait(90, bar=False)
    assert (progress.state, progress.failed, progress.retrying) == ("done", 8, 0)
    assert [(group.exception, group.rows, group.final) for group in handle.errors()] == [("ValueError", 8, 8)]
    halves = values(database, "SELECT name, half FROM halves")
    assert halves == {f"n{number:06d}": number / 2 for number in range(400) if number % 50 != 7}
    owners = database.shards.each(lambda connection: connection.execute("SELECT name FROM halves").fetchall())
    for number, names in enumerate(owners):
        assert {database.shards.of(name).number for (name,) in names} == {number}, "results move with their rows"


def test_a_call_whose_rows_move_meanwhile_writes_nothing_where_they_were(database: krablet.Database) -> None:
    def slow(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        import time

        time.sleep(1.0)
        return [{"half": row["value"] / 2} for row in rows]

    names = names_on(database, 0)[:8]
    database.declared_table("numbers").upsert({"name": name, "value": 6} for name in names)
    handle = pluck(database, "numbers", "name").map(slow, output=("halves", {"half": "real"}), workers=1, batch=8)
    wait_until(lambda: handle.progress().workers == 1)
    moves.move_slots(database.shards, [slot_of(name) for name in names[:4]], 1)
    assert handle.progress().done == 0, "the call is still under way"
    assert handle.wait(60, bar=False).done == 8
    owners = database.shards.each(lambda c: c.execute("SELECT name FROM halves ORDER BY name").fetchall())
    assert [[name for (name,) in rows] for rows in owners] == [names[4:], names[:4]]


def test_rows_that_come_to_a_shard_that_has_ended_are_done_there(database: krablet.Database, key_file: Path) -> None:
    add(database, 60)
    handle = pluck(database, "numbers", "name").map(double, output="doubled", key_file=key_file, batch=4)
    work(database, handle, key_file, [1])
    assert [part.state for part in handle.progress().shards] == ["running", "done"]
    moves.move_slots(database.shards, [slot_of(name) for name in names_on(database, 0)[:8]], 1)
    assert [part.state for part in handle.progress().shards] == ["running", "running"]
    work(database, handle, key_file, [0, 1])
    assert handle.progress().state == "done"
    doubled = values(database, "SELECT name, doubled FROM numbers")
    assert doubled == {f"n{number:06d}": 2 * number for number in range(60)}


def test_a_worker_that_saw_a_job_end_on_one_shard_goes_on_there_when_rows_come(database: krablet.Database) -> None:
    def slow(rows: list[dict[str, Any]]) -> list[int]:
        import time

        time.sleep(0.02)
        return [2 * row["value"] for row in rows]

    here, there = names_on(database, 0)[:100], names_on(database, 1)[:4]
    database.declared_table("numbers").upsert({"name": name, "value": 6} for name in here + there)
    handle = pluck(database, "numbers", "name").map(slow, output="doubled", workers=1, batch=1)
    wait_until(lambda: handle.progress().shards[1].state == "done")
    assert handle.progress().shards[0].state == "running"
    moves.move_slots(database.shards, [slot_of(name) for name in here[-8:]], 1)
    assert handle.wait(60, bar=False).done == 104
    assert handle.progress().refusals == ()


def test_a_move_that_does_not_happen_leaves_nothing_of_a_job_behind(
    database: krablet.Database, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = moves.carry_jobs

    def carry_and_die(*given: Any) -> None:
        carried(*given)
        raise RuntimeError("the mover died")

    add(database, 60)
    handle = pluck(database, "numbers", "name").map(double, output="doubled", key_file=key_file, batch=4)
    monkeypatch.setattr(moves, "carry_jobs", carry_and_die)
    with pytest.raises(RuntimeError, match="the mover died"):
        move(database, 1, 8)
    there = "SELECT count(*) FROM pleinair.pluck_batches WHERE slots IS NOT NULL"
    assert database.shards.each(lambda connection: connection.execute(there).fetchone()) == [(0,), (0,)]
    work(database, handle, key_file, [0, 1])
    assert handle.progress().done == 60


def test_a_job_whose_rows_moved_to_a_shard_that_joined_later_says_so(
    database: krablet.Database, shard_dsns: list[str], key_file: Path
) -> None:
    add(database, 60)
    handle = pluck(database, "numbers", "name").map(double, output="doubled", key_file=key_file)
    with krablet.connect(shard_dsns) as larger:
        moves.rebalance(larger.shards)
        work(database, handle, key_file, [0, 1])
        with pytest.raises(QueueError, match=r"not complete because rows moved to a shard that joined after it began"):
            handle.wait(30, bar=False)
        again = pluck(larger, "numbers", "name", "doubled IS NULL")
        rest = again.map(double, output="doubled", key_file=key_file)
        work(larger, rest, key_file, [0, 1, 2])
        assert rest.wait(30, bar=False).done == 60 - handle.progress().done > 0


def test_a_worker_verifies_the_order_before_every_batch(database: krablet.Database) -> None:
    def slow(rows: list[dict[str, Any]]) -> list[int]:
        import time

        time.sleep(0.05)
        return [2 * row["value"] for row in rows]

    add(database, 400)
    handle = pluck(database, "numbers", "name").map(slow, output="doubled", workers=1, batch=1)
    wait_until(lambda: handle.progress().done > 5)
    forged = "UPDATE pleinair.pluck_jobs SET header = replace(header, '\"attempts\":3', '\"attempts\":9')"
    database.shards.each(lambda connection: connection.execute(forged))
    wait_until(lambda: handle.processes is not None and not handle.processes.alive)
    after = handle.progress()
    assert after.done < 60, "the batch in work was finished, no other begun"
    assert any("signature" in reason for _, reason in after.refusals)
    time.sleep(0.3)
    assert handle.progress().done == after.done
    handle.close()


def test_jobs_that_ended_are_forgotten_after_thirty_days(database: krablet.Database, key_file: Path) -> None:
    def ids() -> set[str]:
        return {str(job) for (job,) in database.session.run(lambda c: c.execute("SELECT id FROM pleinair.pluck_jobs"))}

    old, young, running = (
        pluck(database, "numbers", "name").map(double, output="doubled", key_file=key_file) for _ in range(3)
    )
    old.cancel()
    young.cancel()
    age = """
    UPDATE pleinair.pluck_jobs SET finished_at = now() - interval '31 days', expires_at = finished_at - interval '32 days'
    WHERE id = %s"""
    database.shards.each(lambda connection: connection.execute(age, [old.id]))
    latest = pluck(database, "numbers", "name").map(double, output="doubled", key_file=key_file)
    assert ids() == {young.id, running.id, latest.id}
