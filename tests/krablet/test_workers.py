"""The worker loop in this process: halving, stages in turn, heartbeats, SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from pleinair import krablet
from pleinair.krablet import Settled
from pleinair.krablet.workers.functions import outcomes_of
from pleinair.records.errors import QueueError
from tests.krablet.conftest import Pictures


def all_true(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{"contains_text": True}] * len(rows)


def test_work_does_every_row_and_exits_when_none_is_left(pictures: Pictures) -> None:
    pictures.add(100)
    assert krablet.work(pictures.ocr, all_true) == Settled(completed=100)
    assert set(pictures.results().values()) == {True}


def test_a_batch_that_raises_is_halved_until_the_failing_row_is_alone(pictures: Pictures) -> None:
    names = pictures.add(8)
    sizes: list[int] = []

    def refuse_one(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        sizes.append(len(rows))
        if any(row["image_name"] == names[5] for row in rows):
            raise ValueError("cannot read it")
        return all_true(rows)

    assert krablet.work(pictures.ocr, refuse_one) == Settled(completed=7, failed=1)
    assert sizes == [8, 4, 4, 2, 1, 1, 2]
    [stuck] = pictures.ocr.stuck(attempts=1)
    assert (stuck.key, stuck.attempts, stuck.error) == (names[5], 1, "ValueError: cannot read it")


def test_an_exception_in_place_of_a_result_fails_that_row_alone(pictures: Pictures) -> None:
    pictures.add(4)
    settled = krablet.work(pictures.ocr, lambda rows: [KeyError("no"), *all_true(rows[1:])])
    assert settled == Settled(completed=3, failed=1)


def test_a_function_that_returns_too_few_results_is_told_so() -> None:
    rows: list[dict[str, object]] = [{"image_name": "a"}, {"image_name": "b"}]
    [first, second] = outcomes_of(lambda given: [], rows)
    assert isinstance(first, QueueError)
    assert "returned 0 results for 1 rows" in str(second)


def test_two_stages_of_one_worker_drain_together_though_one_feeds_the_other(pictures: Pictures) -> None:
    pictures.add(50)
    measure = pictures.table.stage("measure", ready="length IS NULL AND contains_text", writes=["length"], batch=3)
    functions = {"measure": lambda rows: [{"length": 1}] * len(rows), "images.ocr": all_true}
    assert krablet.work([measure, pictures.ocr], functions) == Settled(completed=100)


def test_a_batch_size_can_be_overridden_per_worker(pictures: Pictures) -> None:
    pictures.add(20)
    sizes: list[int] = []
    krablet.work(pictures.ocr, lambda rows: sizes.append(len(rows)) or all_true(rows), batches={"ocr": 20})
    assert sizes == [20]


def test_a_waiting_worker_finds_rows_added_later_and_ends_when_told(pictures: Pictures) -> None:
    done = threading.Event()
    worker = threading.Thread(
        target=krablet.work, args=(pictures.ocr, all_true), kwargs={"idle": "wait", "stop": done.is_set}
    )
    worker.start()
    pictures.add(5)
    deadline = time.monotonic() + 10
    while pictures.table.count("contains_text") < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    done.set()
    worker.join(10)
    assert not worker.is_alive()
    assert set(pictures.results().values()) == {True}


def test_the_heartbeat_keeps_a_row_longer_than_its_lease(pictures: Pictures) -> None:
    short = pictures.table.stage(
        "ocr", ready="contains_text IS NULL", writes=["contains_text"], lease_seconds=0.6, batch=1
    )
    pictures.add(1)
    rivals: list[object] = []

    def slow(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        pictures.end_delays()
        time.sleep(1.5)
        rivals.append(short.claim())
        return all_true(rows)

    assert krablet.work(short, slow) == Settled(completed=1)
    assert rivals == [None]


def test_sigterm_gives_the_rows_in_work_back_at_once(pictures: Pictures) -> None:
    pictures.add(16)
    calls: list[int] = []

    def terminated_in_the_second_batch(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        calls.append(len(rows))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        return all_true(rows)

    before = signal.getsignal(signal.SIGTERM)
    assert krablet.work(pictures.ocr, terminated_in_the_second_batch, idle="wait") == Settled(completed=8)
    assert signal.getsignal(signal.SIGTERM) == before
    depth = pictures.ocr.depth()
    assert (depth.claimable, depth.leased, depth.waiting) == (8, 0, 0)


def test_ctrl_c_gives_the_rows_in_work_back_and_goes_on_up(pictures: Pictures) -> None:
    pictures.add(8)

    def interrupted(rows: list[dict[str, object]]) -> list[dict[str, object]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        krablet.work(pictures.ocr, interrupted)
    assert pictures.ocr.depth().claimable == 8


def test_a_stage_without_a_function_is_refused(pictures: Pictures) -> None:
    with pytest.raises(QueueError, match="stage images.ocr has no function: give functions\\['ocr'\\]"):
        krablet.work(pictures.ocr, {"embed": all_true})
    with pytest.raises(QueueError, match="idle is 'sleep'"):
        krablet.work(pictures.ocr, all_true, idle="sleep")
