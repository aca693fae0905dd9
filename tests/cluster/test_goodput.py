"""What a run's time went into, from its events."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pleinair.cluster.goodput import REPAIR_PARTS, as_text, measure_goodput
from pleinair.records.run_events import (
    CheckpointSaved,
    Crash,
    Decided,
    Entered,
    Event,
    Finished,
    Hang,
    Loaded,
    RankFailed,
    Rendezvous,
    Restarted,
    Started,
    Step,
    Straggler,
)

START = 1_796_000_000.0
"""Unix time: doubles are coarse there."""


def a_run_with_one_crash() -> list[Event]:
    return [
        Started(at=START, attempt=1, world_size=2),
        Rendezvous(at=START + 4, rank=0),
        Loaded(at=START + 6, rank=0, step=0),
        Step(at=START + 9, rank=0, step=1),  # warm-up 3
        Step(at=START + 11, rank=0, step=3, num_steps=2),  # productive 2
        Step(at=START + 12, rank=1, step=4),  # another rank: not counted again
        CheckpointSaved(at=START + 13, rank=0, step=4, stall_seconds=1.0, write_seconds=2.0),
        Step(at=START + 15, rank=0, step=6, num_steps=3),  # 2 s with (3, 4] kept and (4, 6] lost; 1 s of it stall
        Crash(at=START + 20, rank=1, exit_code=-9, cause="was ended by SIGKILL", step=6),  # detect 5
        Decided(at=START + 21, action="restart", reason="again"),
        Restarted(at=START + 23, attempt=2),  # decide 3
        Rendezvous(at=START + 27, rank=0),  # start 4
        Loaded(at=START + 29, rank=0, step=4),  # load 2
        Step(at=START + 30, rank=0, step=5),  # warm-up 1
        Step(at=START + 32, rank=0, step=7, num_steps=2),
        Entered(at=START + 32, rank=0, phase="evaluation"),
        Entered(at=START + 36, rank=0, phase="ending"),
        Finished(at=START + 37, outcome="done"),
    ]


def test_every_second_of_a_run_with_a_crash_is_where_it_belongs() -> None:
    goodput = measure_goodput(a_run_with_one_crash())
    spent = {bucket: round(seconds, 6) for bucket, seconds in goodput.seconds.items() if seconds}
    assert spent == {
        "start": 8.0,
        "load": 4.0,
        "warm-up": 4.0,
        "productive": 5.0,
        "checkpoint": 1.0,
        "lost": 2.0,
        "detect": 5.0,
        "decide": 3.0,
        "evaluation": 4.0,
        "end": 1.0,
    }
    assert (goodput.wall_seconds, goodput.steps, goodput.lost_steps) == (37.0, 7, 2)
    assert goodput.share == pytest.approx(5 / 37)


def test_a_repair_is_told_by_its_parts() -> None:
    (repair,) = measure_goodput(a_run_with_one_crash()).repairs
    assert {part: round(repair.part(part), 6) for part in REPAIR_PARTS} == {
        "detect": 5.0,
        "decide": 3.0,
        "start": 4.0,
        "load": 2.0,
        "warm-up": 1.0,
        "recompute": 2.0,
    }
    assert (repair.lost_steps, repair.seconds) == (2, 17.0)


def test_mean_times_are_over_failures_and_without_one_a_run_never_fails() -> None:
    goodput = measure_goodput(a_run_with_one_crash())
    assert (goodput.mtbf_seconds, goodput.mttr_seconds(), goodput.mttr_seconds("start")) == (37.0, 17.0, 4.0)
    calm = measure_goodput([*a_run_with_one_crash()[:6], Finished(at=START + 14, outcome="done")])
    assert (calm.mtbf_seconds, calm.mttr_seconds(), calm.repairs) == (math.inf, 0.0, ())


def test_time_between_two_launches_is_down_and_not_held_against_the_machines() -> None:
    again = [
        Started(at=START + 137, attempt=3, world_size=2),
        Rendezvous(at=START + 138, rank=0),
        Finished(at=START + 140, outcome="interrupted"),
    ]
    goodput = measure_goodput([*a_run_with_one_crash(), *again])
    assert (goodput.seconds["down"], goodput.mtbf_seconds) == (100.0, 40.0)


def test_time_after_a_launcher_was_killed_is_down() -> None:
    killed = a_run_with_one_crash()[:5]
    again = Started(at=START + 111, attempt=2, world_size=2)
    assert measure_goodput([*killed, again]).seconds["down"] == 100.0


def test_a_stall_is_counted_once_and_may_last_longer_than_a_stretch() -> None:
    events = [
        Step(at=START, rank=0, step=1),
        CheckpointSaved(at=START + 1, rank=0, step=1, stall_seconds=3.0),
        Step(at=START + 2, rank=0, step=2),
        Step(at=START + 6, rank=0, step=3),
        Step(at=START + 9, rank=0, step=4),
    ]
    goodput = measure_goodput(events)
    assert (goodput.seconds["checkpoint"], goodput.seconds["productive"]) == (3.0, 6.0)


def test_a_run_without_events_is_refused() -> None:
    with pytest.raises(ValueError, match="the run has no events"):
        measure_goodput([])


def test_a_few_lines_say_it() -> None:
    said = as_text(measure_goodput(a_run_with_one_crash()))
    assert said.startswith("goodput 13.5% of 37.0 s, step 7: start 8.0 s, productive 5.0 s")
    assert "1 failures, 2 steps lost; MTBF 37.0 s, MTTR 17.0 s (detect 5.0 s, decide 3.0 s" in said


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Any events in any order, with the clocks of three machines that disagree."""
    makers = [
        lambda at, rank, step: Started(at=at, attempt=step, world_size=3),
        lambda at, rank, step: Restarted(at=at, attempt=step),
        lambda at, rank, step: Rendezvous(at=at, rank=rank),
        lambda at, rank, step: Loaded(at=at, rank=rank, step=step),
        lambda at, rank, step: Step(at=at, rank=rank, step=step, num_steps=1 + step % 3),
        lambda at, rank, step: Step(at=at, rank=rank, step=step),
        lambda at, rank, step: CheckpointSaved(at=at, rank=rank, step=step, stall_seconds=at % 7.0),
        lambda at, rank, step: Entered(at=at, rank=rank, phase="evaluation"),
        lambda at, rank, step: Entered(at=at, rank=rank, phase="checkpoint"),
        lambda at, rank, step: RankFailed(at=at, rank=rank, error="E"),
        lambda at, rank, step: Crash(at=at, rank=rank, exit_code=1, cause="ended"),
        lambda at, rank, step: Hang(at=at, rank=rank, missing=(rank,), silent_seconds=1.0, phase="training"),
        lambda at, rank, step: Straggler(at=at, rank=rank, slowdown=1.5, step=step),
        lambda at, rank, step: Decided(at=at, action="restart", reason=""),
        lambda at, rank, step: Finished(at=at, outcome="done"),
    ]
    gaps = draw(st.lists(st.floats(-2.0, 1e5), min_size=1, max_size=40))
    times = itertools.accumulate(gaps, initial=START)
    return [draw(st.sampled_from(makers))(at, draw(st.integers(0, 2)), draw(st.integers(0, 50))) for at in times]


@settings(max_examples=300)
@given(logs())
def test_buckets_sum_to_the_wall_clock_and_none_is_negative(events: list[Event]) -> None:
    goodput = measure_goodput(events)
    assert math.fsum(goodput.seconds.values()) == pytest.approx(goodput.wall_seconds, abs=1e-9, rel=1e-12)
    assert min(goodput.seconds.values()) >= 0.0
    assert goodput.lost_steps >= 0
    assert all(repair.part(part) >= 0.0 for repair in goodput.repairs for part in REPAIR_PARTS)
