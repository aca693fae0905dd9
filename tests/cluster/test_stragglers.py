"""Slow ranks are named soon, healthy ones hardly ever."""

import time

import numpy as np
import numpy.typing as npt
import pytest

from pleinair.cluster.stragglers import StragglerConfig, Stragglers
from pleinair.records.run_events import Step, Straggler


def flagged(seconds_SR: npt.NDArray[np.float64]) -> list[Straggler]:
    """What is flagged in a sequence of steps x ranks."""
    stragglers = Stragglers(StragglerConfig(), seconds_SR.shape[1])
    return [
        straggler
        for step, of_step in enumerate(seconds_SR, 1)
        for rank, seconds in enumerate(of_step)
        for straggler in stragglers.hear(Step(rank=rank, step=step, compute_seconds=float(seconds)))
    ]


def jittery(steps: int, ranks: int, sigma: float, seed: int) -> npt.NDArray[np.float64]:
    """Compute times as machines have them: log-normal, correlated from step to step, one step in fifty slow."""
    random = np.random.default_rng(seed)
    noise_SR = np.zeros((steps, ranks))
    for step in range(steps):
        noise_SR[step] = 0.3 * noise_SR[step - 1] + np.sqrt(0.91) * random.normal(0.0, sigma, ranks)
    spikes_SR = np.where(random.random((steps, ranks)) < 0.02, random.uniform(2.0, 10.0, (steps, ranks)), 1.0)
    return np.exp(noise_SR) * spikes_SR


def measured(steps: int, ranks: int) -> npt.NDArray[np.float64]:
    """Times of one small piece of work on this machine, now, dealt to the ranks in turn."""
    matrix, times = np.random.default_rng(0).normal(size=(96, 96)), []
    for _ in range(steps * ranks):
        began = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - began)
    return np.array(times).reshape(steps, ranks)


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("sigma", [0.03, 0.1])
def test_at_most_one_false_alarm_in_a_thousand_healthy_steps(ranks: int, sigma: float) -> None:
    alarms = [len(flagged(jittery(1000, ranks, sigma, seed))) for seed in range(5)]
    assert sum(alarms) <= 5, f"alarms in 5 times 1000 steps: {alarms}"


def test_at_most_one_false_alarm_in_a_thousand_steps_of_measured_jitter() -> None:
    assert len(flagged(measured(1000, 4))) <= 1


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("sigma", [0.03, 0.06])
def test_a_rank_that_becomes_slower_by_a_third_is_flagged_within_twenty_steps(ranks: int, sigma: float) -> None:
    met = []
    for seed in range(10):
        seconds_SR = jittery(220, ranks, sigma, seed)
        seconds_SR[200:, 1] *= 1.3
        met.append([one.rank for one in flagged(seconds_SR) if one.step in range(201, 221)] == [1])
    assert sum(met) >= 9, f"one of two ranks may have bad luck with its neighbour's slow steps: {met}"


def test_measured_work_that_takes_half_as_long_again_is_flagged_within_twenty_steps() -> None:
    seconds_SR = measured(60, 2)
    seconds_SR[40:, 0] *= 1.5
    assert (0, True) in [(one.rank, 41 <= one.step <= 60) for one in flagged(seconds_SR)]


def test_a_straggler_that_recovers_may_be_flagged_again() -> None:
    seconds_SR = jittery(150, 4, 0.03, 0)
    seconds_SR[20:60, 2] *= 1.5
    seconds_SR[100:, 2] *= 1.5
    assert [one.rank for one in flagged(seconds_SR)] == [2, 2]


def test_a_step_that_some_rank_never_told_of_is_forgotten_after_a_while() -> None:
    stragglers, found = Stragglers(StragglerConfig(), 2), list[Straggler]()
    for rank, seconds in ((0, 1.0), (1, 2.0)):
        for step in range(1, 101):
            found += stragglers.hear(Step(rank=rank, step=step, compute_seconds=seconds))
    assert [one.rank for one in found] == [1]
    assert found[0].step > 36, "of rank 0's hundred steps the last 64 are remembered"


def test_ranks_that_tell_no_compute_time_and_single_ranks_are_never_flagged() -> None:
    stragglers = Stragglers(StragglerConfig(), 1)
    assert [stragglers.hear(Step(rank=0, step=step, compute_seconds=1.0)) for step in range(40)] == [[]] * 40
    assert Stragglers(StragglerConfig(), 2).hear(Step(rank=0, step=1)) == []
