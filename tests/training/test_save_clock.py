"""How a run chooses when to save: from the cost it measured and the failures it had."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pleinair.checkpoint.interval import IntervalConfig, daly_interval
from pleinair.records.checkpoint import Refused, Saved
from pleinair.records.errors import ConfigError
from pleinair.records.run_events import FailureHistory
from pleinair.training.engine import EngineConfig, Run, StepRecord, read_records
from pleinair.training.save_clock import SaveClock
from tests.training.small_stages import run_line, settings


def saved(began: float, stall_seconds: float = 0.5, write_seconds: float = 4.0) -> Saved:
    times = {"stall_seconds": stall_seconds, "write_seconds": write_seconds, "began": began}
    return Saved(step=1, directory="d", num_bytes=1, **times)


def clock_after_saves(config: IntervalConfig, failures: FailureHistory, count: int) -> SaveClock:
    """Steps of a second; beside each write of 4 s, two steps of two."""
    clock, now = SaveClock(config, failures), 0.0
    for _ in range(count):
        for seconds in (1, 1, 1, 1, 1, 1, 2, 2):
            clock.step_done(now, now + seconds)
            now += seconds
        assert clock.save_ended(saved(now - 4)).slowed_seconds == 2.0
    return clock


def test_the_interval_is_dalys_for_the_measured_cost_and_the_runs_own_failures() -> None:
    failures = FailureHistory(num_failures=3, observed_seconds=13_600.0)
    first, second = (clock_after_saves(IntervalConfig(), failures, count) for count in (1, 2))
    assert first.interval_seconds == 30, "one save is no measure"
    assert second.interval_seconds == pytest.approx(daly_interval(25_000.0, 2.5) + 2.5, rel=1e-3)
    cheap = clock_after_saves(IntervalConfig(budget=0.1), failures, 2)
    assert cheap.interval_seconds == 30


def test_what_a_save_cost_is_reported_once_and_a_changed_interval_told_once() -> None:
    clock = clock_after_saves(IntervalConfig(), FailureHistory(), 2)
    report = clock.take_report()
    interval = report.pop("checkpoint/interval_seconds")
    names = ("stall_seconds", "slowed_seconds", "write_seconds")
    assert report == {f"checkpoint/{name}": value for name, value in zip(names, (0.5, 2.0, 4.0), strict=True)}
    assert clock.take_report() == {}
    told = "a checkpoint costs 2.50 s (0.50 s of waiting, 2.00 s in slower steps) and is written in 4.0 s"
    assert clock.news() == f"{told}: one every {interval:.0f} s"
    assert clock.news() is None


def test_a_checkpoint_that_is_long_in_writing_is_told_once_with_what_makes_it_shorter() -> None:
    clock = SaveClock(IntervalConfig(slow_write_seconds=3.5), FailureHistory())
    clock.save_ended(saved(0.0, write_seconds=3.5))
    assert clock.news() is None
    clock.save_ended(replace(saved(4.0, write_seconds=40.0), step=7, num_bytes=3 * 2**30))
    told = clock.news()
    assert told is not None
    assert told.startswith("the checkpoint of step 7 was durable after 40 s, more than 3.5 s")
    assert "wrote 3.0 GiB; a faster disk, or more ranks in parallel.mesh.shard, make it shorter" in told
    clock.save_ended(saved(50.0, write_seconds=41.0))
    assert "was durable after" not in (clock.news() or "")


def test_a_limit_for_writing_that_is_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"slow_write_seconds is 0: it must be positive"):
        IntervalConfig(slow_write_seconds=0)


def test_a_run_says_so_when_a_checkpoint_is_long_in_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = IntervalConfig(seconds=1e-6, by="time", slow_write_seconds=1e-9)
    monkeypatch.setattr(EngineConfig, "checkpoint_interval", limits)
    said = list[str]()
    run_line(tmp_path, 3, config=settings(asynchronous_checkpoints=False), on_message=said.append)
    assert len([line for line in said if "was durable after" in line]) == 1


def test_steps_of_another_resolution_are_no_measure() -> None:
    clock = SaveClock(IntervalConfig(), FailureHistory())
    for began in range(5):
        clock.step_done(began, began + 1)
    clock.forget_steps()
    for began in (5, 9, 13):
        clock.step_done(began, began + 4)
    assert clock.save_ended(saved(13.0)).slowed_seconds == 0.0


def test_a_checkpoint_is_due_an_interval_after_the_start_of_the_last() -> None:
    clock = SaveClock(IntervalConfig(seconds=0.05), FailureHistory())
    assert not clock.is_due()
    time.sleep(0.06)
    assert clock.is_due()
    clock.save_began()
    assert not clock.is_due()


class Saves:
    """Remembers how saves ended."""

    def __init__(self) -> None:
        self.ended: list[Saved | Refused] = []

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        return {}

    def save_ended(self, outcome: Saved | Refused) -> None:
        self.ended.append(outcome)


@pytest.mark.parametrize(("rule", "steps"), [("affordable", [1, 2, 12]), ("time", list(range(1, 13)))])
def test_a_run_whose_saves_cost_too_much_saves_less_often_and_says_so(
    tmp_path: Path, rule: str, steps: list[int]
) -> None:
    """Each save is waited for, so it costs far more than two percent of a microsecond; the last one is always made."""
    saves, said = Saves(), list[str]()
    config = settings(checkpoint_seconds=1e-6, checkpoint_by=rule, asynchronous_checkpoints=False)
    run_line(tmp_path, 12, hooks=[saves], config=config, on_message=said.append)
    assert [outcome.step for outcome in saves.ended] == steps
    assert any("a checkpoint costs" in line for line in said) == (rule == "affordable")
    reported = [
        record for record in read_records(tmp_path / "steps.jsonl") if "checkpoint/stall_seconds" in record.metrics
    ]
    told = [step + 1 for step in steps if step + 1 < 12]
    assert [record.step for record in reported] == told, "a step tells what the save two steps before it cost"
    stalls = {outcome.step + 1: outcome.stall_seconds for outcome in saves.ended}
    assert all(record.metrics["checkpoint/stall_seconds"] == stalls[record.step] for record in reported)


def test_a_budget_that_is_no_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint_budget is 1\.0: give a share between 0 and 1"):
        settings(checkpoint_budget=1.0)
