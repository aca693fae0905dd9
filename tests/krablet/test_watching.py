"""Seeing and steering stages that work: pause, limit, errors, throughput, workers, metrics."""

from __future__ import annotations

import argparse
import re
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing

import pytest

from pleinair import krablet
from pleinair.cli.krablet import register
from pleinair.krablet import ErrorGroup, Settled, StageControl
from pleinair.krablet.watching import gauges as gauges_module
from pleinair.krablet.watching.gauges import Watcher
from pleinair.krablet.watching.prometheus import metrics_text, serve_metrics
from pleinair.krablet.watching.shard_status import shard_statuses
from pleinair.records.errors import QueueError
from tests.krablet.conftest import Pictures, on_one_shard_and_on_three

YES = {"contains_text": True}


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="pleinair")
    register(parser.add_subparsers(required=True))
    args = parser.parse_args(arguments)
    return int(args.run(args))


@on_one_shard_and_on_three
def test_a_paused_stage_gives_no_rows_until_it_goes_on(pictures: Pictures) -> None:
    pictures.add_together(4)
    held = pictures.ocr.claim(2)
    pictures.ocr.pause()
    assert pictures.ocr.control() == StageControl(paused=True, rows_per_second=None)
    assert pictures.ocr.claim() is None
    assert pictures.ocr.complete(held, [YES, YES]) == Settled(completed=2), "rows in work are finished"
    pictures.ocr.resume()
    assert len(pictures.ocr.claim()) == 2


def test_declaring_a_stage_again_leaves_it_paused(pictures: Pictures) -> None:
    pictures.add(1)
    pictures.ocr.pause()
    pictures.table.stage("ocr", ready="contains_text IS NULL", writes=["contains_text"])
    assert pictures.ocr.claim() is None


@on_one_shard_and_on_three
def test_a_limited_stage_never_goes_faster_over_all_its_workers(pictures: Pictures) -> None:
    pictures.add(60)
    pictures.ocr.limit(40)
    began = time.monotonic()
    workers = [
        threading.Thread(target=krablet.work, args=(stage, lambda rows: [YES] * len(rows)))
        for stage in (pictures.ocr, pictures.database.declared_stages()[0])
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert pictures.table.count("contains_text") == 60
    assert time.monotonic() - began >= (60 - 40) / 40, "one second's worth may be saved up"
    pictures.ocr.limit(None)
    assert pictures.ocr.control().rows_per_second is None


@pytest.mark.parametrize("rate", [0, -3])
def test_a_limit_that_is_no_rate_is_refused(pictures: Pictures, rate: float) -> None:
    with pytest.raises(QueueError, match="give a positive number, None, or pause the stage"):
        pictures.ocr.limit(rate)


@on_one_shard_and_on_three
def test_errors_are_grouped_by_exception_with_the_most_tried_row_as_sample(pictures: Pictures) -> None:
    names = pictures.add(12)
    for claim in iter(pictures.ocr.claim, None):
        pictures.ocr.fail(claim, [KeyError("c") if key == names[2] else ValueError(key) for key in claim.keys])
    pictures.sql("UPDATE images SET ocr_attempts = 7 WHERE image_name = %s", names[1])
    assert pictures.ocr.errors() == [
        ErrorGroup("ValueError", 11, 1, 7, names[1], f"ValueError: {names[1]}"),
        ErrorGroup("KeyError", 1, 1, 1, names[2], "KeyError: 'c'"),
    ]


def test_workers_say_what_they_did_and_throughput_is_plain_sql(pictures: Pictures) -> None:
    pictures.add(30)
    krablet.work(pictures.ocr, lambda rows: [ValueError("bad"), *[YES] * (len(rows) - 1)], batches={"ocr": 10})
    assert pictures.sql("SELECT sum(completed)::int, sum(failed)::int FROM pleinair.work_log") == [(27, 3)]
    assert pictures.sql("SELECT pleinair.throughput('images', 'ocr')") == [(27 / 300,)]
    assert pictures.sql("SELECT count(*) FROM pleinair.workers") == [(0,)], "it has said goodbye"


def test_a_live_worker_is_seen_with_its_stages(pictures: Pictures) -> None:
    done = threading.Event()
    worker = threading.Thread(
        target=krablet.work, args=(pictures.ocr, lambda rows: []), kwargs={"idle": "wait", "stop": done.is_set}
    )
    worker.start()
    with closing(Watcher(pictures.database)) as watcher:
        deadline = time.monotonic() + 30
        while not watcher.look().workers and time.monotonic() < deadline:
            time.sleep(0.05)
        [seen] = watcher.look().workers
    done.set()
    worker.join()
    assert seen.stages == ("images.ocr",)


def test_a_look_counts_every_pending_row_by_state(pictures: Pictures) -> None:
    pictures.add(10)
    pictures.ocr.fail(pictures.ocr.claim(2), ValueError("bad"))
    pictures.ocr.claim(3)
    pictures.expire_leases()
    pictures.ocr.claim(4)
    with closing(Watcher(pictures.database)) as watcher:
        [gauge] = watcher.look().gauges
    assert (gauge.claimable, gauge.leased, gauge.waiting, gauge.expired) == (1, 4, 2, 3)
    assert gauge.depth == 10
    assert not gauge.estimated


def test_counts_are_kept_while_counting_again_would_cost_too_much(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauges_module, "COUNTING_SHARE", 1e-9)
    pictures.add(3)
    with closing(Watcher(pictures.database)) as watcher:
        assert watcher.look().depth("images.ocr") == 3
        pictures.add(3, start=3)
        assert watcher.look().depth("images.ocr") == 3


def test_a_count_that_takes_too_long_gives_way_to_the_planners_estimate(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures.add(500)
    with pictures.database.connection() as connection:
        connection.execute("VACUUM ANALYZE images")
    monkeypatch.setattr(gauges_module, "LONGEST_COUNT_SECONDS", 0.05)
    with pictures.database.connection() as other, other.transaction(), closing(Watcher(pictures.database)) as watcher:
        other.execute("LOCK TABLE images IN ACCESS EXCLUSIVE MODE")
        [gauge] = watcher.look().gauges
    assert gauge.estimated
    assert gauge.depth == 500


def test_metrics_are_served_in_the_text_format(pictures: Pictures) -> None:
    pictures.add(3)
    pictures.ocr.complete(pictures.ocr.claim(1), [YES])
    with closing(Watcher(pictures.database)) as watcher:

        def text() -> str:
            return metrics_text(watcher.look(), shard_statuses(pictures.database.shards, lambda shard: shard.where))

        server = serve_metrics("127.0.0.1", 0, text)
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}"
            with urllib.request.urlopen(f"{address}/metrics") as answer:
                body = answer.read().decode()
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                urllib.request.urlopen(f"{address}/etc/passwd")
            refused.value.close()
        finally:
            server.shutdown()
            server.server_close()
    assert 'pleinair_stage_depth_rows{table="images",stage="ocr",shard="0",state="claimable"} 2\n' in body
    assert 'pleinair_shard_up{shard="0"} 1\n' in body
    assert 'pleinair_shard_slots{shard="0"} 1024\n' in body
    for line in body.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) pleinair_\w+ .+|pleinair_\w+(\{[^}]*\})? -?[0-9.e+]+", line), line


def test_the_commands_pause_limit_and_show(pictures: Pictures, capsys: pytest.CaptureFixture[str]) -> None:
    pictures.add(3)
    pictures.ocr.fail(pictures.ocr.claim(1), ValueError("no such file"))
    at = ["--dsn", pictures.database.dsn]
    assert command("krablet", "stage", "pause", "images.ocr", *at) == 0
    assert command("krablet", "stage", "limit", "images.ocr", "50", *at) == 0
    assert command("krablet", "errors", *at) == 0
    assert "ValueError: no such file" in capsys.readouterr().out
    assert command("krablet", "top", "--once", *at) == 0
    shown = capsys.readouterr().out
    assert re.search(r"images\.ocr +2 +0 +1 +0 +0 .* paused", shown)
    assert command("krablet", "stage", "resume", "images.ocr", *at) == 0
    assert pictures.ocr.claim() is not None
    with pytest.raises(QueueError, match="no stage 'images.nothing' is declared: name one of images.ocr"):
        command("krablet", "stage", "pause", "images.nothing", *at)
