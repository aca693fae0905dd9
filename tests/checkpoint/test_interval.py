"""The interval between checkpoints, against brute force: a scan of the exact formula, and a simulated run."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pleinair.checkpoint.interval import (
    CheckpointCost,
    IntervalConfig,
    Slowdown,
    StepTime,
    daly_interval,
    goodput,
    measured_cost,
    next_interval,
    seconds_between_failures,
    slowdown,
    young_interval,
)
from pleinair.records.checkpoint import Saved


def scanned_best(mean: float, cost: CheckpointCost, restart: float) -> tuple[float, float]:
    """The best of 4000 intervals and its goodput."""
    intervals = [mean * 10 ** (-5 + 6 * step / 4000) for step in range(4000)]
    return max((goodput(interval, cost, mean, restart), interval) for interval in intervals)[::-1]


def simulated_goodput(interval: float, cost: CheckpointCost, mean: float, restart: float, num_failures: int) -> float:
    """A run of steps, background writes and failures, moment by moment; a checkpoint counts once it is durable."""
    draw = random.Random(7)
    clock, kept = 0.0, 0
    for _ in range(num_failures):
        alive = draw.expovariate(1 / mean)
        while alive < restart:  # failures during the restart begin it anew
            clock += alive
            alive = draw.expovariate(1 / mean)
        clock += alive
        period = interval + cost.seconds
        background = max(0.0, cost.write_seconds - cost.stall_seconds)
        kept += max(0, math.floor((alive - restart - background) / period))
    return kept * interval / clock


@settings(max_examples=60)
@given(st.floats(60, 1e6), st.floats(1e-4, 0.3), st.floats(0, 0.5))
def test_dalys_interval_keeps_as_much_as_the_best_of_all(mean: float, share: float, restart: float) -> None:
    cost = CheckpointCost(stall_seconds=mean * share)
    best, most = scanned_best(mean, cost, mean * restart)
    chosen = daly_interval(mean, cost.seconds)
    assert goodput(chosen, cost, mean, mean * restart) >= 0.998 * most
    assert chosen == pytest.approx(best, rel=0.1)


def test_youngs_interval_is_dalys_for_cheap_checkpoints() -> None:
    assert young_interval(10_000, 0.5) == pytest.approx(100)
    assert daly_interval(10_000, 0.5) == pytest.approx(100, rel=0.01)


def test_checkpoints_dearer_than_failures_allow_are_made_once_per_failure() -> None:
    assert daly_interval(10, 25) == 10


@pytest.mark.parametrize("interval", [20.0, 100.0, 700.0])
@pytest.mark.parametrize(
    "cost",
    [
        CheckpointCost(stall_seconds=8, write_seconds=8),
        CheckpointCost(stall_seconds=1, slowed_seconds=3, write_seconds=18),
    ],
)
def test_the_formula_is_what_a_simulated_run_keeps(interval: float, cost: CheckpointCost) -> None:
    simulated = simulated_goodput(interval, cost, mean=600, restart=45, num_failures=40_000)
    assert goodput(interval, cost, 600, 45) == pytest.approx(simulated, rel=0.02)


def test_llama_3s_published_scale_needs_twenty_seconds_and_five_minutes_for_nine_tenths() -> None:
    """16,384 H100: one interruption in 10,012 s (466 in 54 days)."""

    def most(stall: float, restart: float) -> float:
        return scanned_best(10_012, CheckpointCost(stall_seconds=stall), restart)[1]

    assert most(20, 300) == pytest.approx(0.910, abs=0.002)
    assert most(60, 300) == pytest.approx(0.868, abs=0.002)


def test_it_is_thirty_seconds_where_two_percent_pay_for_it_and_dalys_where_they_do_not() -> None:
    cheap, dear = (
        CheckpointCost(stall_seconds=0.1, slowed_seconds=0.5),
        CheckpointCost(stall_seconds=1, slowed_seconds=3),
    )
    assert next_interval(IntervalConfig(), None) == 30
    assert next_interval(IntervalConfig(), cheap) == 30
    assert next_interval(IntervalConfig(), dear) == pytest.approx(daly_interval(86_400, 4) + 4)
    rough = next_interval(IntervalConfig(), dear, num_failures=23, observed_seconds=86_400)
    assert rough == pytest.approx(daly_interval(7200, 4) + 4)
    assert next_interval(IntervalConfig(budget=0.2), dear) == 30
    assert next_interval(IntervalConfig(by="time"), dear) == 30


def test_the_cost_is_the_median_of_all_saves_but_the_first() -> None:
    saves = [replace(saved(10.0 * n, 2.0 + n), stall_seconds=9.0 - n, slowed_seconds=float(n)) for n in range(4)]
    assert measured_cost([]) is None
    assert measured_cost(saves[:1]) is None
    assert measured_cost(saves) == CheckpointCost(stall_seconds=7.0, slowed_seconds=2.0, write_seconds=4.0)
    assert measured_cost([saves[0], replace(saves[1], slowed_seconds=None)]) == CheckpointCost(
        stall_seconds=8.0, slowed_seconds=0.0, write_seconds=3.0
    )


def test_no_checkpoint_is_due_before_the_last_one_is_written() -> None:
    slow = CheckpointCost(stall_seconds=0.01, write_seconds=95)
    assert next_interval(IntervalConfig(), slow) == 95
    assert next_interval(IntervalConfig(by="failures", seconds=1), slow, num_failures=10**6) == 95


def test_by_failures_it_shrinks_as_the_run_fails_more() -> None:
    config, cost = IntervalConfig(by="failures", seconds=1), CheckpointCost(stall_seconds=2)
    calm = next_interval(config, cost, num_failures=0, observed_seconds=86_400)
    rough = next_interval(config, cost, num_failures=23, observed_seconds=86_400)
    assert rough == pytest.approx(daly_interval(7200, 2) + 2)
    assert calm == pytest.approx(daly_interval(172_800, 2) + 2)
    assert next_interval(IntervalConfig(by="failures", longest_seconds=300), cost) == 300


def test_a_failure_in_the_first_minute_does_not_set_the_rate_alone() -> None:
    assert seconds_between_failures(1, 60, 86_400) == pytest.approx(43_230)
    assert seconds_between_failures(0, 0, 86_400) == 86_400


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"budget": 1.0}, {"longest_seconds": -1.0}])
def test_a_setting_out_of_range_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IntervalConfig(**wrong)  # type: ignore[arg-type]


def saved(began: float, write_seconds: float) -> Saved:
    return Saved(step=1, directory="d", num_bytes=1, stall_seconds=0, write_seconds=write_seconds, began=began)


def test_steps_beside_a_write_are_compared_with_the_others() -> None:
    ends = [1, 2, 3, 5, 7, 9.5, 10.5, 11.5]  # the steps from 3 to 9.5 run beside a write from 3 to 9
    steps = [StepTime(began=began, ended=ended) for began, ended in zip([0, *ends], ends, strict=False)]
    found = slowdown(steps, [saved(3, 6)])
    assert found == Slowdown(ratio=2.0, seconds=3.5, num_slowed=3, num_others=5)


def test_a_step_that_a_write_only_touches_is_no_slowed_one() -> None:
    steps = [StepTime(began=step, ended=step + 1) for step in range(5)]
    found = slowdown(steps, [saved(0.7, 2.2)])
    assert found is not None
    assert (found.num_slowed, found.num_others) == (2, 3), "those from 1 to 3, not 0.3 s of the first"


def test_without_steps_on_both_sides_nothing_is_said() -> None:
    steps = [StepTime(began=0, ended=1)]
    assert slowdown(steps, []) is None
    assert slowdown(steps, [saved(0, 2)]) is None
