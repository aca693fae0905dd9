"""pluck when processes die: workers killed anywhere, functions that crash, hang or take too much."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from pleinair.krablet.pluck import Handle
from pleinair.krablet.pluck.home import PREFIX, Home
from pleinair.krablet.pluck.jobs import Limits
from tests.krablet.pluck_jobs_of_tests import Forked, Numbers, double, wait_until

KILLS = 20
COUNT_WRITES = """
CREATE TABLE writes (name text, doubled bigint);
CREATE FUNCTION count_write() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO writes VALUES (NEW.name, NEW.doubled); RETURN NEW; END $$;
CREATE TRIGGER count_writes AFTER UPDATE ON numbers FOR EACH ROW EXECUTE FUNCTION count_write();
"""


@pytest.mark.slow
def test_workers_killed_at_random_points_write_every_row_exactly_once(numbers: Numbers) -> None:
    def slow(rows: list[dict[str, Any]]) -> list[int]:
        import time

        time.sleep(0.004 * len(rows))
        return [2 * row["value"] for row in rows]

    numbers.sql(COUNT_WRITES)
    numbers.add(1200)
    # The condition holds for rows that are done as well: only the batches' beginnings say what is left.
    handle = numbers.job(slow, batch=4, where="TRUE")
    chance = random.Random(7)
    workers = [Forked(numbers, handle, {"lease_seconds": 1.0}) for _ in range(2)]
    killed_while_holding = 0
    for _ in range(KILLS):
        holder = a_holder(numbers, workers)
        time.sleep(chance.uniform(0.0, 0.1))
        held = holder.pid in holders(numbers)
        holder.end(signal.SIGKILL)
        killed_while_holding += held
        workers[workers.index(holder)] = Forked(numbers, handle, {"lease_seconds": 1.0})
    progress = handle.wait(300, bar=False)
    assert [worker.wait() for worker in workers] == [0, 0]
    assert killed_while_holding >= KILLS // 2
    assert (progress.done, progress.failed) == (1200, 0)
    assert numbers.done() == numbers.doubles(1200)
    assert numbers.sql("SELECT count(*), count(DISTINCT name) FROM writes") == [(1200, 1200)]


def holders(numbers: Numbers) -> set[int]:
    found = numbers.sql("SELECT worker FROM pleinair.pluck_batches WHERE leased_until > now()")
    return {int(worker.rpartition(":")[2]) for (worker,) in found}


def a_holder(numbers: Numbers, workers: list[Forked]) -> Forked:
    wait_until(lambda: any(worker.pid in holders(numbers) for worker in workers))
    return next((worker for worker in workers if worker.pid in holders(numbers)), workers[0])


def test_the_function_ends_with_its_killed_worker(numbers: Numbers, tmp_path: Path) -> None:
    place = tmp_path / "pid"

    def hang(rows: list[dict[str, Any]]) -> list[int]:
        import os
        import time

        place.write_text(str(os.getpid()))
        time.sleep(3600)
        return []

    numbers.add(1)
    worker = Forked(numbers, numbers.job(hang))
    wait_until(lambda: place.exists() and place.read_text() != "")
    pid = int(place.read_text())
    assert alive(pid)
    worker.end(signal.SIGKILL)
    wait_until(lambda: not alive(pid))
    assert not alive(pid)


def alive(pid: int) -> bool:
    """False also for a process that ended and that nobody has asked about."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_directory_of_a_killed_worker_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living, dead = Home(None), tmp_path / f"{PREFIX}dead"
    dead.mkdir()
    (dead / "file").touch()
    for path in (living.path, dead):
        os.utime(path, (0, 0))
    third = Home(None)
    assert sorted(tmp_path.iterdir()) == sorted([Path(living.path), Path(third.path)])
    living.remove()
    third.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_told_to_stop_gives_its_batch_back_at_once(numbers: Numbers) -> None:
    def hang(rows: list[dict[str, Any]]) -> list[int]:
        import time

        time.sleep(3600)
        return []

    numbers.add(4)
    handle = numbers.job(hang)
    worker = Forked(numbers, handle)
    wait_until(lambda: handle.progress().workers == 1)
    assert worker.end(signal.SIGTERM) == 0
    open_batches = numbers.sql("SELECT DISTINCT token, lost, tried_at, leased_until FROM pleinair.pluck_batches")
    assert open_batches == [(None, 0, None, None)]
    handle.cancel()


def test_a_worker_whose_batch_passed_to_another_overwrites_nothing(numbers: Numbers, tmp_path: Path) -> None:
    go, started = tmp_path / "go", tmp_path / "started"

    def late(rows: list[dict[str, Any]]) -> list[int]:
        import time

        started.touch()
        while not go.exists():
            time.sleep(0.02)
        return [-1 for _ in rows]

    numbers.add(4)
    handle = numbers.job(late)
    worker = Forked(numbers, handle)
    wait_until(started.exists)
    os.kill(worker.pid, signal.SIGSTOP)
    numbers.sql("UPDATE pleinair.pluck_batches SET token = nextval('pleinair.pluck_tokens')")
    go.touch()
    os.kill(worker.pid, signal.SIGCONT)
    time.sleep(1.0)
    assert worker.end(signal.SIGTERM) == 0
    assert numbers.done() == {}
    assert numbers.sql("SELECT DISTINCT done, failed, finished_at FROM pleinair.pluck_batches") == [(0, 0, None)]


def finished(numbers: Numbers, function: Any, limits: Limits | None = None, **options: Any) -> Handle:
    handle = numbers.job(function, limits=limits, **options)
    assert numbers.work(handle)
    assert numbers.done() == {name: value for name, value in numbers.doubles(16).items() if name != "n000011"}
    assert (handle.progress().done, handle.progress().failed) == (15, 1)
    return handle


def test_a_row_that_crashes_the_process_fails_alone(numbers: Numbers) -> None:
    def crash(rows: list[dict[str, Any]]) -> list[int]:
        if any(row["value"] == 11 for row in rows):
            print("about to read address 0", flush=True)
            ctypes.string_at(0)
        return [2 * row["value"] for row in rows]

    numbers.add(16)
    [group] = finished(numbers, crash).errors()
    assert (group.exception, group.key) == ("ProcessDied", "n000011")
    assert group.message == "the function's process was ended by SIGSEGV"
    assert "about to read address 0" in group.traceback
    assert "string_at" in group.traceback


def test_a_row_that_takes_too_much_memory_fails_alone(numbers: Numbers) -> None:
    def hog(rows: list[dict[str, Any]]) -> list[int]:
        if any(row["value"] == 11 for row in rows):
            bytearray(4 << 30)
        return [2 * row["value"] for row in rows]

    numbers.add(16)
    [group] = finished(numbers, hog, Limits(memory_bytes=1 << 30)).errors()
    assert (group.exception, group.key) == ("MemoryError", "n000011")


def test_a_row_that_never_ends_fails_alone(numbers: Numbers) -> None:
    def hang(rows: list[dict[str, Any]]) -> list[int]:
        import time

        if any(row["value"] == 11 for row in rows):
            time.sleep(3600)
        return [2 * row["value"] for row in rows]

    numbers.add(16)
    [group] = finished(numbers, hang, Limits(call_seconds=1.0), batch=4).errors()
    assert (group.exception, group.message) == ("TimeoutError", "the call took longer than 1 seconds and was ended")


def test_a_row_that_uses_too_much_processor_time_fails_alone(numbers: Numbers) -> None:
    def spin(rows: list[dict[str, Any]]) -> list[int]:
        while any(row["value"] == 11 for row in rows):
            pass
        return [2 * row["value"] for row in rows]

    numbers.add(16)
    [group] = finished(numbers, spin, Limits(cpu_seconds=1), batch=1).errors()
    assert "ended by SIGXCPU (it used more processor time than it may)" in group.message


def test_a_row_that_ends_its_process_politely_fails_alone(numbers: Numbers) -> None:
    def leave(rows: list[dict[str, Any]]) -> list[int]:
        import os

        if any(row["value"] == 11 for row in rows):
            os._exit(0)
        return [2 * row["value"] for row in rows]

    numbers.add(16)
    [group] = finished(numbers, leave).errors()
    assert group.message == "the function's process ended by itself with exit status 0"


def test_a_row_that_kills_its_worker_again_and_again_fails_alone(numbers: Numbers) -> None:
    numbers.add(4)
    handle = numbers.job(double, batch=4)
    assert handle.spec.target == 4
    # As many workers died as it takes to be down to one row and to have had its attempt.
    numbers.sql("UPDATE pleinair.pluck_batches SET lost = 4")
    assert numbers.work(handle)
    assert numbers.done() == {name: value for name, value in numbers.doubles(4).items() if name != "n000000"}
    [group] = handle.errors()
    assert (group.exception, group.message) == ("WorkerDied", "4 workers died while they held this row")


def test_a_batch_whose_worker_died_is_halved(numbers: Numbers) -> None:
    numbers.add(8)
    handle = numbers.job(double, batch=8)
    numbers.sql("UPDATE pleinair.pluck_batches SET lost = 1")
    assert numbers.work(handle)
    assert numbers.sql("SELECT done FROM pleinair.pluck_batches ORDER BY number") == [(4,), (4,)]
