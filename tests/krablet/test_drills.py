"""Fault drills on real servers: no row is lost, no result is written over by another, and everything drains by itself."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pleinair import krablet
from pleinair.krablet import Progress, Settled
from pleinair.krablet.claims import settle_and_claim, settlement
from pleinair.krablet.connections import open_connection
from pleinair.krablet.postgres.accounts import account_for, give_to
from pleinair.krablet.workers import line_watch
from pleinair.records.errors import DatabaseError
from tests.krablet.conftest import Pictures, on_one_shard_and_on_three, pictures_in, three_databases
from tests.krablet.drills import (
    Line,
    Worker,
    assert_all_written_once,
    audited,
    done,
    number_each,
    shifted_clock,
    wait_until,
    working,
)

KILLS = 20
MOVER = """
import random, sys
from pleinair import krablet
from pleinair.krablet import moves
database = krablet.connect(sys.argv[1])
print("moving", flush=True)
while True:
    moves.move_slots(database.shards, random.sample(range(1024), 24), random.randrange(3))
"""


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [3], indirect=True)
def test_workers_killed_at_twenty_random_points(pictures: Pictures, functions_on_path: str) -> None:
    stage = audited(pictures, lease_seconds=0.5)
    names, kills = pictures.add(400), 0

    def kill_one_and_add_rows(progress: Progress) -> None:
        nonlocal kills
        if kills < KILLS and progress.worker_pids:
            time.sleep(random.uniform(0.0, 0.2))
            os.kill(random.choice(progress.worker_pids), signal.SIGKILL)
            kills += 1
            if done(pictures) > len(names) - 300:  # or the run would end before the last kill
                names.extend(pictures.add(300, start=len(names)))

    krablet.run_workers(
        pictures.database,
        [stage.spec(f"{functions_on_path}:number_each", sleep_seconds=0.01)],
        processes=3,
        on_progress=kill_one_and_add_rows,
        interval_seconds=0.05,
        give_up_after=1000,
        max_deaths=1000,
    )
    assert kills == KILLS
    assert_all_written_once(pictures, names)


def test_a_stopped_backend_holds_back_nobody_and_doubles_nothing(pictures: Pictures) -> None:
    """One is stopped in the middle of its claim's transaction, another in the middle of writing its results."""
    stage = audited(pictures, lease_seconds=0.5, batch=8)
    names = pictures.add(60)
    with open_connection(pictures.database.dsn) as claiming, open_connection(pictures.database.dsn) as writing:
        written = settle_and_claim(writing, None, stage, 8)[1]
        claiming.execute("BEGIN")
        claimed = settle_and_claim(claiming, None, stage, 8)[1]
        assert written is not None
        assert claimed is not None
        stopped = [connection.info.backend_pid for connection in (claiming, writing)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        late = threading.Thread(
            target=settle_and_claim, args=(writing, settlement(stage, written, number_each(written.rows)))
        )
        late.start()
        try:
            with working([Worker(pictures.database.dsn), Worker(pictures.database.dsn)]):
                wait_until(lambda: done(pictures) == len(names) - len(claimed))
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        late.join()
        claiming.execute("COMMIT")
        settled, _ = settle_and_claim(claiming, settlement(stage, claimed, number_each(claimed.rows)))
    assert settled == Settled(completed=len(claimed))
    assert_all_written_once(pictures, names)


def test_backends_stopped_at_random_double_nothing(pictures: Pictures) -> None:
    audited(pictures, lease_seconds=0.2)
    names = pictures.add(200)
    backends = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

    def slowly(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        time.sleep(0.02)
        return number_each(rows)

    with working([Worker(pictures.database.dsn, function=slowly) for _ in range(3)]):
        for _ in range(10):
            pids = [pid for (pid,) in pictures.sql(backends)]
            stopped = random.sample(pids, min(2, len(pids)))
            try:
                for pid in stopped:
                    os.kill(int(str(pid)), signal.SIGSTOP)
                time.sleep(0.3)
            finally:
                for pid in stopped:
                    os.kill(int(str(pid)), signal.SIGCONT)
        wait_until(lambda: done(pictures) == len(names))
    assert_all_written_once(pictures, names)


@pytest.fixture
def line(pictures: Pictures) -> Iterator[Line]:
    line = Line(pictures.database.dsn)
    yield line
    line.close()


def test_a_worker_behind_a_dead_line_notices_and_its_late_results_change_nothing(
    pictures: Pictures, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partition that nobody is told of: both ends stay connected and hear nothing."""
    monkeypatch.setattr(line_watch, "QUIET_SECONDS", 0.5)
    audited(pictures, lease_seconds=0.5)
    names = pictures.add(40)
    executed: list[str] = []

    def cut_then_answer(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        if len(executed) == 8:
            line.cut()
        executed.extend(str(row["image_name"]) for row in rows)
        return number_each(rows)

    with working([Worker(line.dsn, function=cut_then_answer)]):
        wait_until(lambda: len(executed) > 8)
        with working([Worker(pictures.database.dsn)]):
            wait_until(lambda: done(pictures) == len(names))
        line.mend()
        names += pictures.add(20, start=len(names))
        wait_until(lambda: done(pictures) == len(names))
        line.deliver()
        time.sleep(0.3)
    assert_all_written_once(pictures, names)


def test_a_long_statement_is_not_taken_for_a_dead_line(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_watch, "QUIET_SECONDS", 0.2)
    audited(pictures, lease_seconds=60)
    names = pictures.add(4)
    pictures.sql(
        "CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END $$"
    )
    pictures.sql("CREATE TRIGGER nap BEFORE UPDATE ON images FOR EACH STATEMENT EXECUTE FUNCTION nap()")
    executed: list[object] = []
    with working([Worker(pictures.database.dsn, function=lambda rows: executed.extend(rows) or number_each(rows))]):
        wait_until(lambda: done(pictures) == len(names))
    assert len(executed) == len(names), "no claim was cut and made again"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, for the library that shifts the clock")
@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_worker_whose_clock_is_an_hour_off_takes_and_keeps_rows_like_any_other(
    pictures: Pictures, functions_on_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    stage = audited(pictures, lease_seconds=1.0)
    names = pictures.add(60)
    held = stage.claim(4)
    by_its_clock = "length < 1::bigint << 52"

    def after_the_other(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        wait_until(lambda: pictures.table.count(by_its_clock) > 0)
        return number_each(rows)

    with working([Worker(pictures.database.dsn, function=after_the_other)]):
        monkeypatch.setenv("LD_PRELOAD", str(shifted_clock(tmp_path, seconds)))
        spec = stage.spec(f"{functions_on_path}:number_by_the_clock", sleep_seconds=0.02)
        krablet.run_workers(pictures.database, [spec], processes=1, interval_seconds=0.1)
    assert held is not None
    assert_all_written_once(pictures, names)
    told = pictures.sql(f"SELECT length / 1000000 FROM images WHERE {by_its_clock}")
    assert all(abs(int(str(clock)) - seconds - time.time()) < 600 for (clock,) in told)
    skew = "SELECT max(measure_tried_at) <= now() AND min(measure_tried_at) > now() - interval '10 min' FROM images"
    assert pictures.sql(skew) == [(True,)], "all times are the database's"


@pytest.mark.parametrize("pictures", [3], indirect=True)
def test_a_mover_killed_again_and_again_under_load(pictures: Pictures) -> None:
    stage = audited(pictures, lease_seconds=1.0)
    names = pictures.add(300)
    dsn = pictures.database.dsn

    def slowly(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        time.sleep(0.02)
        return number_each(rows)

    with working([Worker(dsn, function=slowly), Worker(dsn, function=slowly)]):
        for _ in range(4):
            with subprocess.Popen([sys.executable, "-c", MOVER, dsn], stdout=subprocess.PIPE, text=True) as mover:
                assert mover.stdout is not None
                assert mover.stdout.readline() == "moving\n"
                time.sleep(random.uniform(0.0, 0.8))
                mover.kill()
            names += pictures.add(20, start=len(names))
        wait_until(lambda: stage.depth().pending == 0 and not pictures.database.shards.in_transit())
    pictures.database.shards.reload()
    assert_all_written_once(pictures, names)


@pytest.fixture
def small_disk(postgres: krablet.Database) -> Iterator[Path]:
    """A file system of 24 MB that the server may use."""
    directory = Path(tempfile.mkdtemp(prefix="pleinair-test-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0777", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        directory.rmdir()
        pytest.skip("only root may mount the small file system that is filled")
    try:
        directory.chmod(0o777)
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
        directory.rmdir()


@pytest.fixture
def one_of_three_on_a_small_disk(postgres: krablet.Database, small_disk: Path) -> Iterator[Pictures]:
    """A warehouse whose last shard keeps its table there."""
    space = small_disk / "space"
    space.mkdir(mode=0o777)
    give_to(account_for(postgres_data(postgres)), space)
    with postgres.connection() as connection:
        connection.execute(f"CREATE TABLESPACE small LOCATION '{space}'".encode())
        with three_databases(postgres) as dsns, krablet.connect(dsns) as database:
            pictures = pictures_in(database)
            with open_connection(pictures.last_shard.dsn) as last:
                last.execute("ALTER TABLE images SET TABLESPACE small")
            yield pictures
        connection.execute("DROP TABLESPACE small")


def postgres_data(database: krablet.Database) -> Path:
    assert database.directory is not None
    return database.directory / "data"


def test_a_full_disk_on_one_shard_is_told_and_waited_for(
    one_of_three_on_a_small_disk: Pictures, small_disk: Path
) -> None:
    pictures = one_of_three_on_a_small_disk
    audited(pictures, lease_seconds=1.0)
    names, ballast = pictures.add(300), small_disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(DatabaseError, match="the disk of Postgres is full .*free space and run this again"):
        pictures.table.update({"image_name": name, "path": random.randbytes(50_000).hex()} for name in names)
    with working([Worker(pictures.database.dsn), Worker(pictures.database.dsn)]):
        time.sleep(1.0)
        ballast.unlink()
        wait_until(lambda: done(pictures) == len(names))
    assert_all_written_once(pictures, names)


@on_one_shard_and_on_three
def test_rows_inserted_while_everything_runs_reach_the_last_stage_and_a_later_stage_finds_all_old_rows(
    pictures: Pictures,
) -> None:
    audited(pictures, lease_seconds=60)
    pictures.table.stage("check", ready="contains_text IS NULL AND length IS NOT NULL", writes=["contains_text"])
    dsn, names = pictures.database.dsn, pictures.add(20)

    def say_yes(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        return [{"contains_text": True}] * len(rows)

    with working([Worker(dsn), Worker(dsn, "check", say_yes)]):
        for _ in range(3):
            names += pictures.add(20, start=len(names))
            time.sleep(0.1)
        wait_until(lambda: pictures.table.count("contains_text") == len(names))
        later = pictures.database.table("images", key="image_name", columns={"image_name": "text", "seen": "boolean"})
        later.stage("look", ready="seen IS NULL AND contains_text", writes=["seen"])
        with working([Worker(dsn, "look", lambda rows: [{"seen": True}] * len(rows))]):
            names += pictures.add(20, start=len(names))
            wait_until(lambda: pictures.table.count("seen") == len(names))
    assert_all_written_once(pictures, names)
