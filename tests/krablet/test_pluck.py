"""pluck from a function to its results: batches, actors, coroutines, outputs, errors, handles."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pleinair import krablet
from pleinair.krablet.pluck import attach, pluck
from pleinair.krablet.pluck.jobs import Limits
from pleinair.krablet.pluck.worker import Worker, WorkerSettings
from pleinair.records.errors import ConfigError, QueueError, RefusedError
from tests.krablet.pluck_jobs_of_tests import Numbers, double, wait_until


def test_workers_of_this_process_do_every_row_and_end(numbers: Numbers) -> None:
    numbers.add(300)
    handle = pluck(numbers.database, "numbers", "name", "doubled IS NULL").map(double, output="doubled", workers=2)
    progress = handle.wait(60, bar=False)
    assert (progress.state, progress.done, progress.failed, progress.remaining) == ("done", 300, 0, 0)
    assert numbers.done() == numbers.doubles(300)
    assert handle.processes is not None
    assert handle.processes.pids == ()


class Actor:
    """Doubles, and says how often it was made and called."""

    made = 0

    def __init__(self, factor: int) -> None:
        Actor.made += 1
        self.factor = factor
        self.calls = 0

    def __call__(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.calls += 1
        return [{"doubled": self.factor * row["value"] + 1000 * (Actor.made - 1)} for row in rows]


def test_an_actor_is_made_once_for_all_its_batches(numbers: Numbers) -> None:
    numbers.add(40)
    assert numbers.work(numbers.job(partial(Actor, 2), output={"doubled": "bigint"}, batch=4))
    assert numbers.done() == numbers.doubles(40)


def test_a_coroutine_function_is_awaited(numbers: Numbers) -> None:
    async def double_later(rows: list[dict[str, Any]]) -> list[int]:
        import asyncio

        await asyncio.sleep(0)
        return double(rows)

    numbers.add(20)
    assert numbers.work(numbers.job(double_later))
    assert numbers.done() == numbers.doubles(20)


def test_results_of_several_columns_are_typed(numbers: Numbers) -> None:
    def measure(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        import datetime

        import numpy as np

        moment = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        return [
            {"doubled": np.int64(2 * row["value"]), "vector": np.full(3, row["value"], np.float32), "seen_at": moment}
            for row in rows
        ]

    numbers.add(3)
    output = {"doubled": "bigint", "vector": "real[]", "seen_at": "timestamptz"}
    handle = numbers.job(measure, output=output)
    assert handle.spec.packages.keys() == {"numpy"}
    assert numbers.work(handle)
    rows = numbers.sql("SELECT doubled, vector, seen_at = '2020-01-01 00:00Z' FROM numbers ORDER BY name")
    assert rows == [(0, [0.0] * 3, True), (2, [1.0] * 3, True), (4, [2.0] * 3, True)]


def test_results_go_to_a_table_of_their_own(numbers: Numbers) -> None:
    def describe(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"half": row["value"] / 2, "raw": bytes([row["value"]])} for row in rows]

    numbers.add(10)
    handle = numbers.job(describe, output=("halves", {"half": "float8", "raw": "bytea"}), where="value < 8")
    assert numbers.work(handle)
    assert numbers.sql("SELECT name, half, raw FROM halves ORDER BY name") == [
        (f"n{i:06d}", i / 2, bytes([i])) for i in range(8)
    ]
    assert numbers.database.declared_table("halves").columns["half"] == "double precision"


def test_a_function_may_take_and_give_arrow(numbers: Numbers) -> None:
    def double_array(batch: pa.RecordBatch) -> pa.Array:
        import pyarrow.compute as pc

        return pc.multiply(batch["value"], 2)

    numbers.add(20)
    assert numbers.work(numbers.job(double_array, arrow=True, columns=["value"]))
    assert numbers.done() == numbers.doubles(20)


def test_only_rows_that_match_when_their_turn_comes_are_done(numbers: Numbers) -> None:
    numbers.add(20)
    handle = numbers.job(double, where="doubled IS NULL AND value % 2 = 0")
    numbers.sql("UPDATE numbers SET doubled = -1 WHERE value = 4")
    numbers.sql("INSERT INTO numbers (name, value) VALUES ('a later row', 50), ('z later row', 60)")
    assert numbers.work(handle)
    assert numbers.done() == {
        "a later row": 100, "n000004": -1, "z later row": 120,
        **{f"n{i:06d}": 2 * i for i in range(0, 20, 2) if i != 4},
    }  # fmt: skip


def test_a_batch_that_grew_too_large_is_split_when_it_is_claimed(numbers: Numbers) -> None:
    numbers.add(4)
    handle = numbers.job(double, batch=10)
    numbers.sql("INSERT INTO numbers (name, value) SELECT 'later' || i, i FROM generate_series(1, 100) i")
    assert numbers.work(handle)
    sizes = [size for (size,) in numbers.sql("SELECT done FROM pleinair.pluck_batches ORDER BY number")]
    assert sum(sizes) == 104
    assert max(sizes) <= 2 * handle.spec.target


def test_rows_that_raise_fail_alone_and_errors_are_grouped(numbers: Numbers) -> None:
    def picky(rows: list[dict[str, Any]]) -> list[Any]:
        if any(row["value"] == 13 for row in rows):
            raise ValueError("thirteen")
        return [KeyError(row["value"]) if row["value"] % 10 == 7 else 2 * row["value"] for row in rows]

    numbers.add(40)
    handle = numbers.job(picky)
    assert numbers.work(handle)
    assert (handle.progress().done, handle.progress().failed, handle.progress().total) == (35, 5, 40)
    keys, value = handle.errors()
    assert (keys.exception, keys.rows, keys.final) == ("KeyError", 4, 4)
    assert (value.exception, value.rows, value.key, value.message) == ("ValueError", 1, "n000013", "thirteen")
    assert value.row is not None
    assert value.row["value"] == 13
    assert 'raise ValueError("thirteen")' in value.traceback
    assert {*numbers.doubles(40)} - {*numbers.done()} == {f"n{i:06d}" for i in (7, 13, 17, 27, 37)}


def test_a_result_that_does_not_fit_fails_its_row_alone(numbers: Numbers) -> None:
    def odd(rows: list[dict[str, Any]]) -> list[Any]:
        return ["text", 2**80, None, {"doubled": 1}, *[2 * row["value"] for row in rows[4:]]]

    numbers.sql("ALTER TABLE numbers ADD CHECK (doubled <> 10)")
    numbers.add(8)
    handle = numbers.job(odd)
    assert numbers.work(handle)
    assert numbers.done() == {"n000004": 8, "n000006": 12, "n000007": 14}
    assert [(group.exception, group.rows) for group in handle.errors()] == [
        ("QueueError", 2), ("psycopg.errors.CheckViolation", 1), ("psycopg.errors.NumericValueOutOfRange", 1),
    ]  # fmt: skip
    assert handle.progress().done == 4


def test_a_failed_row_is_tried_again_later_and_then_forgotten(numbers: Numbers, tmp_path: Path) -> None:
    marker = str(tmp_path / "seen")

    def fails_once(rows: list[dict[str, Any]]) -> list[int]:
        import os

        if any(row["value"] == 3 for row in rows) and len(rows) == 1 and not os.path.exists(marker):
            open(marker, "w").close()
            raise RuntimeError("not yet")
        if any(row["value"] == 3 for row in rows) and len(rows) > 1:
            raise RuntimeError("not together")
        return [2 * row["value"] for row in rows]

    numbers.add(8)
    handle = numbers.job(fails_once, attempts=2)
    waiter = threading.Timer(0.0, lambda: end_delays(numbers))
    waiter.start()
    assert numbers.work(handle)
    waiter.join()
    assert numbers.done() == numbers.doubles(8)
    assert (handle.progress().done, handle.progress().failed, handle.errors()) == (8, 0, [])


def end_delays(numbers: Numbers) -> None:
    """Once a row waits for its next try, let it wait no longer."""
    session = numbers.database.session.fresh(5.0)
    statement = "UPDATE pleinair.pluck_batches SET not_before = NULL WHERE not_before IS NOT NULL"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not session.run(lambda connection: connection.execute(statement)).rowcount:
        time.sleep(0.05)
    session.close()


def test_a_job_that_mostly_fails_pauses_and_says_so(numbers: Numbers) -> None:
    def broken(rows: list[dict[str, Any]]) -> list[int]:
        return [row["no such column"] for row in rows]

    numbers.add(100)
    handle = numbers.job(broken, max_errors=5, attempts=2, workers=1)
    with pytest.raises(QueueError, match=r"is paused because too many rows failed.*see h.errors\(\)"):
        handle.wait(60, bar=False)
    assert 5 <= handle.progress().retrying < 50
    handle.cancel()
    with pytest.raises(QueueError, match="is cancelled"):
        handle.wait(bar=False)


@pytest.fixture
def second(numbers: Numbers) -> Iterator[Numbers]:
    """Another shard: a database of its own with the same table."""
    dsn = numbers.database.dsn.replace("/test_", "/second_")
    name = dsn.partition("/second_")[2].partition("?")[0]
    numbers.sql(f"CREATE DATABASE second_{name}")
    with krablet.connect(dsn) as database:
        table = database.table("numbers", key="name", columns=numbers.table.columns)
        yield Numbers(database, table, numbers.key_file)
    numbers.sql(f"DROP DATABASE second_{name} WITH (FORCE)")


def test_shards_are_drained_together_and_counted_apart(numbers: Numbers, second: Numbers) -> None:
    numbers.add(30)
    second.add(50)
    dsns = [numbers.database.dsn, second.database.dsn]
    handle = pluck(dsns, "numbers", "name").map(double, output="doubled", key_file=numbers.key_file)
    sessions = {"0": numbers.database.session.fresh(5.0), "1": second.database.session.fresh(5.0)}
    assert Worker(sessions, WorkerSettings(keys=[numbers.key], job=handle.id)).run()
    progress = handle.progress()
    assert (progress.state, [part.done for part in progress.shards]) == ("done", [30, 50])
    assert (numbers.done(), second.done()) == (numbers.doubles(30), second.doubles(50))
    for closing in (handle, *sessions.values()):
        closing.close()


def test_nothing_is_left_of_a_job_that_one_shard_cannot_store(numbers: Numbers, second: Numbers) -> None:
    second.sql("CREATE TABLE halves (name text PRIMARY KEY, half text)")
    shards = {"0": numbers.database.session, "1": second.database.session}
    with pytest.raises(QueueError, match=r"column halves.half is text and is declared as bigint"):
        pluck(shards, "numbers", "name").map(double, output=("halves", {"half": "bigint"}), key_file=numbers.key_file)
    assert numbers.sql("SELECT count(*) FROM pleinair.pluck_jobs") == [(0,)]


def test_pause_resume_and_cancel_take_effect_on_a_running_job(numbers: Numbers) -> None:
    def slow(rows: list[dict[str, Any]]) -> list[int]:
        import time

        time.sleep(0.05)
        return [2 * row["value"] for row in rows]

    numbers.add(4000)
    handle = numbers.job(slow, batch=1, workers=1)
    wait_until(lambda: handle.progress().done > 3)
    handle.pause()
    wait_until(lambda: handle.progress().workers == 0)
    paused = handle.progress()
    assert paused.state == "paused"
    time.sleep(1.2)
    assert handle.progress().done == paused.done
    handle.resume()
    wait_until(lambda: handle.progress().done > paused.done + 3)
    handle.cancel()
    cancelled = handle.progress()
    assert (cancelled.state, cancelled.workers) == ("cancelled", 0)
    assert 0 < len(numbers.done()) == cancelled.done < 4000
    handle.resume()
    assert handle.progress().state == "cancelled"


def test_cancel_ends_a_call_that_would_take_for_ever(numbers: Numbers) -> None:
    def hang(rows: list[dict[str, Any]]) -> list[int]:
        import time

        time.sleep(3600)
        return []

    numbers.add(1)
    handle = numbers.job(hang)
    other = attach(numbers.database, handle.id)
    canceller = threading.Thread(target=lambda: (wait_until(lambda: other.progress().workers == 1), other.cancel()))
    canceller.start()
    assert numbers.work(handle)
    canceller.join()
    assert handle.progress().state == "cancelled"


def test_another_process_attaches_by_id(numbers: Numbers) -> None:
    numbers.add(20)
    handle = numbers.job(double)
    script = (
        "import sys; from pleinair import krablet\n"
        "with krablet.connect(sys.argv[1]) as db:\n"
        "    print(krablet.pluck.attach(db, sys.argv[2]).wait(60).done)\n"
    )
    command = [sys.executable, "-c", script, numbers.database.dsn, handle.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert numbers.work(handle)
        out, shown = process.communicate(timeout=60)
    assert out == "20\n"
    assert "20/20 rows" in shown
    assert "done" in shown.splitlines()[-1]


def test_wait_raises_with_the_state_when_time_is_up(numbers: Numbers) -> None:
    numbers.add(20)
    handle = numbers.job(double)
    with pytest.raises(TimeoutError, match=r"not done after 0 seconds: running, 0 of about 20 rows done, 0 failed"):
        handle.wait(0, bar=False)


def test_ctrl_c_leaves_the_job_running_and_says_how_to_return(numbers: Numbers) -> None:
    numbers.add(20)
    handle = numbers.job(double)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt, match=rf"goes on: look at it with krablet.pluck.attach\(db, '{handle.id}'\)"):
        handle.wait(60, bar=False)
    assert handle.progress().state == "running"


def test_a_job_that_expired_is_not_waited_for(numbers: Numbers) -> None:
    numbers.add(20)
    handle = numbers.job(double, expires_hours=1e-9)
    with pytest.raises(QueueError, match="is expired: expired, 0 of about 20 rows done"):
        handle.wait(bar=False)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"output": "no_such"}, "output column numbers.no_such is not there"),
    ({"output": {"doubled": "text"}}, "output column numbers.doubled is bigint and is given as text"),
    ({"output": {}}, "output names no column"),
    ({"output": "name"}, "output names the key 'name', which never changes"),
    ({"output": ("numbers", {"x": "text"})}, "output names the table 'numbers' that is read"),
    ({"output": ("Bad name", {"x": "text"})}, "table name 'Bad name' is not usable"),
    ({"columns": ["no_such"]}, "table numbers has no column 'no_such'"),
    ({"batch": 0}, "batch is 0: give a positive number"),
    ({"key_file": None}, "nobody would do this job: give workers=4"),
    ({"workers": -1}, "workers is -1"),
    ({"where": "no_such = 1"}, 'column "no_such" does not exist'),
    ({"where": "1"}, "give one boolean SQL expression"),
]


def test_a_wrong_declaration_is_refused_by_name(numbers: Numbers) -> None:
    for options, message in WRONG:
        with pytest.raises((QueueError, ConfigError), match=re.escape(message)):
            numbers.job(double, **options)


def test_a_function_that_cannot_travel_is_refused_with_the_remedy(numbers: Numbers) -> None:
    lock = threading.Lock()
    with pytest.raises(QueueError, match="cannot be sent to workers: TypeError: cannot pickle.*inside the function"):
        numbers.job(lambda rows: [lock for _ in rows])
    with pytest.raises(QueueError, match="42 cannot be called"):
        numbers.job(42)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the limit call_seconds is 0"):
        Limits(call_seconds=0)


def test_an_unknown_job_is_refused(numbers: Numbers) -> None:
    with pytest.raises(QueueError, match="'soon' is not the id of a job"):
        attach(numbers.database, "soon")
    with pytest.raises(QueueError, match="there is no job 00000000-"):
        attach(numbers.database, "00000000-0000-0000-0000-000000000000")


def test_a_condition_that_fails_on_some_rows_ends_the_wait_with_its_reason(numbers: Numbers) -> None:
    numbers.sql("INSERT INTO numbers (name, value) VALUES ('a', 1), ('b', 2)")
    handle = numbers.job(double, where="1 / value >= 0", workers=1)
    numbers.sql("UPDATE numbers SET value = 0 WHERE name = 'b'")
    with pytest.raises((QueueError, RefusedError), match="division by zero"):
        handle.wait(60, bar=False)
    handle.cancel()


def test_a_table_may_be_named_with_its_schema(numbers: Numbers) -> None:
    numbers.sql("CREATE SCHEMA lab; CREATE TABLE lab.numbers (name varchar(9) PRIMARY KEY, value int, doubled int)")
    numbers.sql("INSERT INTO lab.numbers VALUES ('one', 1)")
    handle = pluck(numbers.database, "lab.numbers", "name").map(double, output="doubled", key_file=numbers.key_file)
    assert numbers.work(handle)
    assert numbers.sql("SELECT doubled FROM lab.numbers") == [(2,)]
