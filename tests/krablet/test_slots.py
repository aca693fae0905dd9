"""One worker with many rows in work: threads, an event loop, actors; stopped, cut off, and beside each other."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

from pleinair import krablet
from pleinair.krablet.claims import Settled
from pleinair.records.errors import ConfigError, QueueError
from tests.krablet.conftest import Pictures

Rows = list[dict[str, object]]


def all_true(rows: Rows) -> Rows:
    return [{"contains_text": True}] * len(rows)


def test_slots_of_a_function_run_side_by_side_in_threads(pictures: Pictures) -> None:
    pictures.add(64)
    all_eight = threading.Barrier(8, timeout=30)

    def together(rows: Rows) -> Rows:
        all_eight.wait()
        return all_true(rows)

    assert krablet.work(pictures.ocr, together, slots=8) == Settled(completed=64)
    assert set(pictures.results().values()) == {True}


def test_slots_of_an_async_function_share_one_thread_and_few_connections(pictures: Pictures) -> None:
    pictures.add(400)
    threads, connections, in_work, most = set(), [], 0, 0
    others = pictures.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")[0][0]

    async def fetch(rows: Rows) -> Rows:
        nonlocal in_work, most
        threads.add(threading.get_ident())
        in_work += 1
        most = max(most, in_work)
        await asyncio.sleep(0.3)
        if not connections:
            connections.append(
                pictures.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")[0][0]
            )
        in_work -= 1
        return all_true(rows)

    assert krablet.work(pictures.ocr, fetch, slots=100, batches={"ocr": 4}) == Settled(completed=400)
    assert most > 60
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert connections[0] - others <= 2


def test_rows_of_all_slots_are_kept_longer_than_their_lease(pictures: Pictures) -> None:
    short = pictures.table.stage(
        "ocr", ready="contains_text IS NULL", writes=["contains_text"], lease_seconds=0.6, batch=1
    )
    pictures.add(6)

    async def slow(rows: Rows) -> Rows:
        await asyncio.sleep(1.5)
        return all_true(rows)

    worker = threading.Thread(target=krablet.work, args=(short, slow), kwargs={"slots": 6})
    worker.start()
    while pictures.ocr.depth().leased < 6:
        time.sleep(0.02)
    time.sleep(1.0)
    assert short.claim() is None
    worker.join()
    assert set(pictures.results().values()) == {True}


def test_a_part_that_raises_is_halved_and_the_other_slots_go_on(pictures: Pictures) -> None:
    names = pictures.add(32)

    async def refuse_one(rows: Rows) -> Rows:
        await asyncio.sleep(0)
        if any(row["image_name"] == names[5] for row in rows):
            raise ValueError("cannot read it")
        return all_true(rows)

    assert krablet.work(pictures.ocr, refuse_one, slots=4) == Settled(completed=31, failed=1)
    [stuck] = pictures.ocr.stuck(attempts=1)
    assert (stuck.key, stuck.attempts, stuck.error) == (names[5], 1, "ValueError: cannot read it")


def test_a_function_that_is_cancelled_inside_fails_its_row_alone(pictures: Pictures) -> None:
    names = pictures.add(8)

    async def cancelled(rows: Rows) -> Rows:
        if any(row["image_name"] == names[3] for row in rows):
            raise asyncio.CancelledError
        return all_true(rows)

    assert krablet.work(pictures.ocr, cancelled, slots=2) == Settled(completed=7, failed=1)
    assert [group.kind for group in pictures.ocr.errors()] == ["CancelledInsideError"]


def test_sigterm_cancels_async_functions_and_gives_their_rows_back(pictures: Pictures) -> None:
    pictures.add(64)
    began, cancelled = [], []

    async def hang(rows: Rows) -> Rows:
        began.append(len(rows))
        if sum(began) == 64:
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(len(rows))
            raise
        return all_true(rows)

    assert krablet.work(pictures.ocr, hang, slots=8, idle="wait") == Settled()
    assert sum(cancelled) == 64
    depth = pictures.ocr.depth()
    assert (depth.claimable, depth.leased, depth.waiting) == (64, 0, 0)
    assert pictures.sql("SELECT max(ocr_attempts) FROM images") == [(0,)]


def test_sigterm_gives_the_rows_of_threads_back_without_waiting_for_them(pictures: Pictures) -> None:
    pictures.add(16)
    release = threading.Event()
    began = []

    def hang(rows: Rows) -> Rows:
        began.append(len(rows))
        if sum(began) == 16:
            os.kill(os.getpid(), signal.SIGTERM)
        release.wait(60)
        return all_true(rows)

    assert krablet.work(pictures.ocr, hang, slots=2, idle="wait") == Settled()
    assert pictures.ocr.depth().claimable == 16
    release.set()


def test_what_slots_have_in_work_is_finished_when_the_worker_is_stopped(pictures: Pictures) -> None:
    pictures.add(64)
    started = threading.Event()

    async def slow(rows: Rows) -> Rows:
        started.set()
        await asyncio.sleep(0.3)
        return all_true(rows)

    settled = krablet.work(pictures.ocr, slow, slots=4, idle="wait", stop=started.is_set)
    assert settled.completed == 32
    assert pictures.ocr.depth().leased == 0


def test_an_exit_inside_a_slot_gives_all_rows_back_and_goes_on_up(pictures: Pictures) -> None:
    pictures.add(32)

    def leave(rows: Rows) -> Rows:
        raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        krablet.work(pictures.ocr, leave, slots=4)
    assert pictures.ocr.depth().claimable == 32


def test_slots_go_on_when_the_connection_is_cut(pictures: Pictures) -> None:
    pictures.add(200)
    cuts = []

    async def cut_twice(rows: Rows) -> Rows:
        await asyncio.sleep(0.01)
        if len(cuts) < 2:
            cuts.append(1)
            pictures.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        return all_true(rows)

    assert krablet.work(pictures.ocr, cut_twice, slots=5).completed == 200


def test_stages_that_feed_each_other_drain_together_on_shared_slots(pictures: Pictures) -> None:
    pictures.add(50)
    measure = pictures.table.stage("measure", ready="length IS NULL AND contains_text", writes=["length"], batch=3)

    async def length(rows: Rows) -> Rows:
        await asyncio.sleep(0.01)
        return [{"length": 1}] * len(rows)

    assert krablet.work([measure, pictures.ocr], {"measure": length, "ocr": all_true}, slots=3).completed == 100


def test_a_stage_with_slots_of_its_own_is_not_held_up_by_others(pictures: Pictures) -> None:
    pictures.add(6)
    measure = pictures.table.stage("measure", ready="length IS NULL", writes=["length"], batch=1)
    measured = threading.Event()

    async def fetch(rows: Rows) -> Rows:
        while not measured.is_set():
            await asyncio.sleep(0.01)
        return all_true(rows)

    def embed(rows: Rows) -> Rows:
        if rows[0]["image_name"] == "picture-00005":
            measured.set()
        return [{"length": 1}] * len(rows)

    settled = krablet.work(
        [pictures.ocr, measure], {"ocr": fetch, "measure": embed}, own_slots={"ocr": 2}, batches={"ocr": 3}
    )
    assert settled.completed == 12


def test_slots_keep_to_a_limit_of_the_stage(pictures: Pictures) -> None:
    pictures.add(60)
    pictures.ocr.limit(40)
    began = time.monotonic()
    assert krablet.work(pictures.ocr, all_true, slots=8).completed == 60
    assert time.monotonic() - began >= (60 - 40) / 40, "one second's worth may be saved up"


def test_slots_stand_still_while_their_stage_is_paused(pictures: Pictures) -> None:
    pictures.add(20)
    pictures.ocr.pause()
    assert krablet.work(pictures.ocr, all_true, slots=4) == Settled()
    pictures.ocr.resume()
    assert krablet.work(pictures.ocr, all_true, slots=4) == Settled(completed=20)


class Counting:
    """An actor that numbers the rows it has seen."""

    made, closed = 0, 0

    def __init__(self) -> None:
        Counting.made += 1
        self.seen = 0

    def __call__(self, rows: Rows) -> Rows:
        first, self.seen = self.seen, self.seen + len(rows)
        return [{"length": number} for number in range(first, self.seen)]

    def close(self) -> None:
        Counting.closed += 1


def test_an_actor_is_built_once_keeps_its_state_and_is_closed(pictures: Pictures) -> None:
    pictures.add(24)
    number = pictures.table.stage("number", ready="length IS NULL", writes=["length"], batch=8)
    Counting.made = Counting.closed = 0
    assert krablet.work(number, Counting) == Settled(completed=24)
    assert (Counting.made, Counting.closed) == (1, 1)
    assert pictures.sql("SELECT count(DISTINCT length), max(length) FROM images") == [(24, 23)]


def test_an_async_actor_lives_on_the_event_loop_from_its_constructor_to_its_close(pictures: Pictures) -> None:
    pictures.add(24)
    loops = []

    class Fetcher:
        def __init__(self) -> None:
            loops.append(asyncio.get_running_loop())

        async def __call__(self, rows: Rows) -> Rows:
            loops.append(asyncio.get_running_loop())
            return all_true(rows)

        async def close(self) -> None:
            loops.append(asyncio.get_running_loop())

    assert krablet.work(pictures.ocr, Fetcher, slots=2) == Settled(completed=24)
    assert len(loops) == 1 + 3 + 1
    assert len(set(loops)) == 1


def test_an_actor_that_cannot_be_built_is_reported_as_that_and_touches_no_row(pictures: Pictures) -> None:
    pictures.add(4)

    class NeedsWeights:
        def __init__(self) -> None:
            raise FileNotFoundError("weights.bin")

        def __call__(self, rows: Rows) -> Rows:
            return all_true(rows)

    for slots in (1, 4):
        with pytest.raises(
            QueueError, match=r"NeedsWeights of stage images.ocr cannot be built \(FileNotFoundError: w"
        ):
            krablet.work(pictures.ocr, NeedsWeights, slots=slots)
    assert pictures.sql("SELECT max(ocr_attempts), count(ocr_tried_at) FROM images") == [(0, 0)]
    with pytest.raises(QueueError, match="cannot be called: give it a method __call__"):
        krablet.work(pictures.ocr, dict)
    with pytest.raises(ConfigError, match="slots of ocr is 0: give 1 or more"):
        krablet.work(pictures.ocr, all_true, own_slots={"ocr": 0})
