"""Worker processes: killed, crashing, interrupted, orphaned; and Postgres killed under them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pleinair import krablet
from pleinair.krablet import Progress
from pleinair.krablet.postgres.embedded import running
from pleinair.records.errors import ConfigError, DatabaseError, PleinairError
from tests.krablet.conftest import COLUMNS, Pictures

AUDIT = """
CREATE TABLE written (image_name text, value boolean);
CREATE FUNCTION note_result() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO written VALUES (NEW.image_name, NEW.contains_text); RETURN NEW; END $$;
CREATE TRIGGER note AFTER UPDATE ON images FOR EACH ROW
WHEN (OLD.contains_text IS DISTINCT FROM NEW.contains_text) EXECUTE FUNCTION note_result();
"""


def expected(names: list[str]) -> dict[str, bool]:
    return {name: int(name[-5:]) % 2 == 1 for name in names}


def with_lease(pictures: Pictures, seconds: float) -> krablet.Stage:
    return pictures.table.stage(
        "ocr", ready="contains_text IS NULL", writes=["contains_text"], batch=8, lease_seconds=seconds
    )


def test_processes_drain_two_stages_and_report_progress(pictures: Pictures, functions_on_path: str) -> None:
    names = pictures.add(60)
    measure = pictures.table.stage("measure", ready="length IS NULL AND contains_text", writes=["length"])
    reports: list[Progress] = []
    summary = krablet.run_workers(
        pictures.database.dsn,
        [
            pictures.ocr.spec(f"{functions_on_path}:has_odd_number", sleep_seconds=0.01),
            measure.spec(f"{functions_on_path}:name_length", batch=4),
        ],
        on_progress=reports.append,
        interval_seconds=0.1,
    )
    assert pictures.results() == expected(names)
    assert summary.completed == {"images.ocr": 60, "images.measure": 30}
    assert (summary.failed, summary.deaths) == ({"images.ocr": 0, "images.measure": 0}, 0)
    assert summary.stuck == {"images.ocr": [], "images.measure": []}
    assert [stage.pending for stage in reports[-1].stages] == [0, 0]
    assert any(report.workers == 2 and report.stages[0].rows_per_second > 0 for report in reports)
    assert krablet.run_workers(pictures.database.dsn, [pictures.ocr.spec("none:here")]).seconds < 1


def test_what_workers_settle_while_they_are_asked_to_end_is_counted(pictures: Pictures, functions_on_path: str) -> None:
    pictures.add(60)
    asked = iter([False, True])

    def stop() -> bool:
        ending = next(asked)
        while ending and pictures.table.count("contains_text IS NULL"):
            time.sleep(0.02)
        return ending

    spec = pictures.ocr.spec(f"{functions_on_path}:has_odd_number", sleep_seconds=0.01)
    summary = krablet.run_workers(pictures.database.dsn, [spec], processes=1, stop=stop, interval_seconds=0.5)
    assert summary.completed == {"images.ocr": 60}


@pytest.mark.slow
@pytest.mark.parametrize(("function", "slots"), [("has_odd_number", 1), ("has_odd_number_later", 6)])
def test_workers_killed_at_random_moments_lose_nothing_and_double_nothing(
    pictures: Pictures, functions_on_path: str, function: str, slots: int
) -> None:
    names = pictures.add(400)
    pictures.sql(AUDIT)
    stage = with_lease(pictures, 1.0)
    chance = random.Random(7)
    kill_after = sorted(chance.sample(range(10, 350), 5))

    def kill_now_and_then(progress: Progress) -> None:
        """In the supervisor, so between two of its glances; anywhere at all in the life of a worker."""
        if kill_after and progress.stages[0].completed >= kill_after[0] and progress.worker_pids:
            kill_after.pop(0)
            os.kill(chance.choice(progress.worker_pids), signal.SIGKILL)

    summary = krablet.run_workers(
        pictures.database.dsn,
        [stage.spec(f"{functions_on_path}:{function}", sleep_seconds=0.005 * slots)],
        slots=slots,
        on_progress=kill_now_and_then,
        interval_seconds=0.05,
        give_up_after=20,
    )
    assert 3 <= summary.deaths <= 5
    assert pictures.results() == expected(names)
    assert sorted(pictures.sql("SELECT * FROM written")) == sorted(expected(names).items())


def test_a_row_that_kills_its_worker_is_isolated_and_reported_as_stuck(
    pictures: Pictures, functions_on_path: str
) -> None:
    names = pictures.add(24)
    stage = with_lease(pictures, 0.5)
    summary = krablet.run_workers(
        pictures.database.dsn,
        [stage.spec(f"{functions_on_path}:kill_the_worker_on", poison=names[3])],
        processes=1,
        interval_seconds=0.1,
        give_up_after=3,
    )
    assert pictures.results() == {**expected(names), names[3]: None}
    [stuck] = summary.stuck["images.ocr"]
    assert (stuck.key, stuck.attempts) == (names[3], 3)
    assert summary.deaths == 3


@pytest.mark.slow
def test_a_row_that_crashes_and_one_that_swallows_all_memory_take_no_row_of_other_slots_with_them(
    pictures: Pictures, functions_on_path: str
) -> None:
    names = pictures.add(24)
    stage = with_lease(pictures, 0.5)
    summary = krablet.run_workers(
        pictures.database.dsn,
        [stage.spec(f"{functions_on_path}:crash_or_swallow_memory_on", crash=names[3], swallow=names[9], batch=4)],
        processes=1,
        slots=3,
        memory_mb=300,
        interval_seconds=0.1,
        give_up_after=3,
    )
    assert pictures.results() == {**expected(names), names[3]: None, names[9]: None}
    assert {row.key for row in summary.stuck["images.ocr"]} == {names[3], names[9]}
    assert 4 <= summary.deaths <= 8
    assert summary.retired == 0


def test_a_worker_that_leaks_is_replaced_between_batches(pictures: Pictures, functions_on_path: str) -> None:
    names = pictures.add(96)
    summary = krablet.run_workers(
        pictures.database.dsn,
        [pictures.ocr.spec(f"{functions_on_path}:Leaky")],
        processes=1,
        memory_mb=200,
        interval_seconds=0.1,
    )
    assert pictures.results() == expected(names)
    assert (summary.deaths, summary.failed) == (0, {"images.ocr": 0})
    assert 1 <= summary.retired <= 6


def test_a_ceiling_below_what_a_worker_needs_ends_the_run_with_a_sentence(
    pictures: Pictures, functions_on_path: str
) -> None:
    pictures.add(1)
    spec = pictures.ocr.spec(f"{functions_on_path}:has_odd_number")
    for too_low in (12, 30):
        with pytest.raises(
            PleinairError, match=f"memory_mb is {too_low} and a worker has [0-9]+ MiB before its first batch: give more"
        ):
            krablet.run_workers(pictures.database.dsn, [spec], memory_mb=too_low)
    with pytest.raises(ConfigError, match="memory_mb is 0: give a positive number of MiB"):
        krablet.run_workers(pictures.database.dsn, [spec], memory_mb=0)


def test_an_actor_that_cannot_be_built_ends_the_run_with_a_sentence(pictures: Pictures, functions_on_path: str) -> None:
    pictures.add(4)
    with pytest.raises(DatabaseError, match=r"NeedsWeights of stage images.ocr cannot be built \(FileNotFoundError"):
        krablet.run_workers(
            pictures.database.dsn, [pictures.ocr.spec(f"{functions_on_path}:NeedsWeights", path="/no/weights")]
        )
    assert pictures.sql("SELECT max(ocr_attempts), count(ocr_tried_at) FROM images") == [(0, 0)]


def test_a_row_that_keeps_failing_ends_as_stuck_and_the_next_run_tries_it_again(
    pictures: Pictures, functions_on_path: str
) -> None:
    names = pictures.add(20)
    spec = pictures.ocr.spec(f"{functions_on_path}:refuse", poison=names[9])
    summary = krablet.run_workers(pictures.database.dsn, [spec], processes=1, interval_seconds=0.1, give_up_after=2)
    assert pictures.results() == {**expected(names), names[9]: None}
    assert [row.error for row in summary.stuck["images.ocr"]] == [f"ValueError: cannot read {names[9]}"]
    krablet.run_workers(
        pictures.database.dsn, [pictures.ocr.spec(f"{functions_on_path}:has_odd_number")], interval_seconds=0.1
    )
    assert pictures.results() == expected(names)


def test_a_function_that_cannot_be_imported_ends_the_run_with_a_sentence(pictures: Pictures) -> None:
    pictures.add(1)
    with pytest.raises(DatabaseError, match="'no_such_module:f' of stage images.ocr cannot be imported"):
        krablet.run_workers(pictures.database.dsn, [pictures.ocr.spec("no_such_module:f")])
    with pytest.raises(ConfigError, match="processes is 0"):
        krablet.run_workers(pictures.database.dsn, [], processes=0)
    with pytest.raises(ConfigError, match="slots is 0"):
        krablet.run_workers(pictures.database.dsn, [], slots=0)


def test_workers_that_only_die_end_the_run_with_a_sentence(pictures: Pictures, functions_on_path: str) -> None:
    names = pictures.add(1)
    stage = with_lease(pictures, 0.2)
    with pytest.raises(DatabaseError, match="2 workers in a row died .* the last by signal SIGSEGV"):
        krablet.run_workers(
            pictures.database.dsn,
            [stage.spec(f"{functions_on_path}:kill_the_worker_on", poison=names[0])],
            processes=1,
            max_deaths=2,
            interval_seconds=0.1,
        )


SCRIPT = """
import sys
from pleinair import krablet
sys.path.insert(0, {here!r})
stage = krablet.connect({dsn!r}).declared_stages()[0]
def show(progress):
    print(*progress.worker_pids, flush=True)
spec = stage.spec("krablet_worker_functions:has_odd_number", sleep_seconds=0.05)
krablet.run_workers({dsn!r}, [spec], on_progress=show, interval_seconds=0.1)
"""


def start_run_in_a_process(pictures: Pictures) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that supervises two workers, and the ids of those once both hold rows."""
    pictures.add(1000)
    script = SCRIPT.format(here=str(Path(__file__).parent), dsn=pictures.database.dsn)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    assert process.stdout is not None
    pids: list[int] = []
    while len(pids) < 2:
        pids = [int(pid) for pid in process.stdout.readline().split()]
    while pictures.ocr.depth().leased < 16:
        time.sleep(0.02)
    return process, pids


def wait_until_gone(pids: list[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"{pids} still run"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_die_with_a_killed_supervisor_and_give_their_rows_back(pictures: Pictures) -> None:
    process, pids = start_run_in_a_process(pictures)
    process.kill()
    process.communicate()
    wait_until_gone(pids, 8)
    assert pictures.ocr.depth().leased == 0


def test_ctrl_c_ends_the_run_and_gives_the_rows_in_work_back(pictures: Pictures) -> None:
    process, pids = start_run_in_a_process(pictures)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    assert "KeyboardInterrupt" in errors.splitlines()[-1]
    wait_until_gone(pids, 1)
    depth = pictures.ocr.depth()
    assert (depth.leased, depth.waiting) == (0, 0)


@pytest.mark.parametrize(("function", "slots"), [("has_odd_number", 1), ("has_odd_number_later", 5)])
def test_a_run_goes_on_after_postgres_was_killed_under_it(
    stopped_server: Path, functions_on_path: str, function: str, slots: int
) -> None:
    with krablet.connect(directory=stopped_server) as database:
        table = database.table("images", key="image_name", columns=COLUMNS)
        stage = table.stage("ocr", ready="contains_text IS NULL", writes=["contains_text"], batch=8, lease_seconds=2)
        names = [f"picture-{number:05d}" for number in range(300)]
        table.upsert({"image_name": name, "contains_text": None} for name in names)
        killed: list[int] = []

        def kill_postgres_once(progress: Progress) -> None:
            if not killed and progress.stages[0].completed > 50:
                server = running(stopped_server)
                assert server is not None
                killed.append(server.pid)
                os.kill(server.pid, signal.SIGKILL)

        summary = krablet.run_workers(
            database,
            [stage.spec(f"{functions_on_path}:{function}", sleep_seconds=0.005 * slots)],
            slots=slots,
            on_progress=kill_postgres_once,
            interval_seconds=0.1,
        )
        assert len(killed) == 1
        assert summary.deaths == 0
        read = [row for batch in table.read(columns=["image_name", "contains_text"]) for row in batch.to_pylist()]
        assert {row["image_name"]: row["contains_text"] for row in read} == expected(names)
