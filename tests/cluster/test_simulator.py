"""The simulator against closed forms and against what others published (sources: docs/runs.md)."""

import math
from dataclasses import replace

import pytest

from benchmarks.training.goodput import BAD_FABRIC, QUICK_REPAIR, SLOW_REPAIR
from pleinair.cluster.intervals import (
    best_interval,
    daly_interval,
    exact_goodput,
    linear_mean_between,
    meta_ettr,
    young_interval,
)
from pleinair.cluster.simulator import (
    RepairTimes,
    SimulatedRun,
    mean_goodput,
    no_failure_probability,
    simulate,
)

LLAMA_SECONDS = 54 * 86_400 / 466
"""Mean time between the 466 interruptions of Llama 3's 54 days."""


def plain(repair_seconds: float, **settings: float) -> SimulatedRun:
    """A run with blocking checkpoints, as the closed forms assume."""
    repair = RepairTimes(detect=0.0, decide=0.0, start=0.0, load=0.0, warm_up=repair_seconds)
    return SimulatedRun(write_seconds=0.0, slowdown_seconds=0.0, repair=repair, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("stall", "repair", "published"), [(60, 300, 0.868), (20, 300, 0.910), (5, 600, 0.912)])
def test_events_closed_forms_and_llamas_scale_agree(stall: float, repair: float, published: float) -> None:
    interval = best_interval(stall, repair, LLAMA_SECONDS)
    exact = exact_goodput(interval, stall, repair, LLAMA_SECONDS)
    run = plain(
        repair, num_gpus=16_384, per_1000_node_days=466 / 54 / 2.048, interval_seconds=interval, stall_seconds=stall
    )
    assert exact == pytest.approx(published, abs=5e-4)
    assert mean_goodput(run) == pytest.approx(exact, rel=0.005)
    assert meta_ettr(interval, stall, repair, LLAMA_SECONDS) == pytest.approx(exact, rel=0.008)


@pytest.mark.parametrize("checkpoint_seconds", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("mean_between", [2_000.0, 10_012.0, 100_000.0])
def test_the_best_interval_is_within_a_tenth_of_youngs_and_dalys(
    checkpoint_seconds: float, mean_between: float
) -> None:
    """Found here by trying many, simply."""
    young = young_interval(mean_between, checkpoint_seconds)
    tried = [young * 1.01**power for power in range(-150, 151)]
    best = max(tried, key=lambda t: exact_goodput(t, checkpoint_seconds, 300.0, mean_between))
    assert best_interval(checkpoint_seconds, 300.0, mean_between) == pytest.approx(best, rel=0.01)
    assert daly_interval(mean_between, checkpoint_seconds) == pytest.approx(best, rel=0.1)
    assert young == pytest.approx(best, rel=0.15 if young < 20 * checkpoint_seconds else 0.1)


def test_llama_3_is_met_out_of_sample_between_the_rates_of_metas_two_clusters() -> None:
    """RSC-1's rate alone gives half as many again as there were: the miss is known and told."""
    counted = {rate: 54 * 86_400 / linear_mean_between(16_384, rate) for rate in (2.34, (2.34 + 6.50) / 2.0, 6.50)}
    low, middle, high = counted.values()
    assert low < 419 < 466 < high
    assert middle == pytest.approx(466, rel=0.35)
    assert middle == pytest.approx(419, rel=0.35)
    assert high / 466 == pytest.approx(1.54, abs=0.01)


def test_llama_3_trains_at_least_88_percent_with_quick_checkpoints_at_the_rate_of_rsc_1() -> None:
    run = SimulatedRun(num_gpus=16_384, per_1000_node_days=6.5)
    assert mean_goodput(run) >= 0.88


def test_meta_projected_1_8_hours_at_16384_gpus_and_0_23_at_131072() -> None:
    assert linear_mean_between(16_384, 6.5) / 3600 == pytest.approx(1.80, abs=0.01)
    assert linear_mean_between(131_072, 6.5) / 3600 == pytest.approx(0.23, abs=0.01)


def test_small_jobs_die_of_other_causes_than_the_linear_model_knows() -> None:
    """Measured: 7.9 h at 1024 GPUs. The model is 3.6 times too hopeful there."""
    assert linear_mean_between(1024, 6.5) / 3600 / 7.9 == pytest.approx(3.65, abs=0.01)


def test_byterobust_left_570_seconds_for_each_failure() -> None:
    assert 0.03 * linear_mean_between(9_600, 3.79) == pytest.approx(570, abs=5)


def test_lablups_sessions_bound_their_rate_and_their_retries_lie_between_the_two_repairs() -> None:
    """224 sessions on 63 nodes in 73 days: what ended them is not known, so the bound is all that can be met."""
    most = 224 / 73 / 63 * 1000
    assert most == pytest.approx(48.7, abs=0.05)
    assert most > 6.5
    assert QUICK_REPAIR.seconds < 11 * 60 < SLOW_REPAIR.seconds


def test_three_lemons_of_lablups_63_nodes_take_the_half_of_all_failures_that_they_were_excluded_for() -> None:
    """Avoided after their first failure, they leave half of the rate."""
    run = SimulatedRun(num_gpus=504, lemon_share=3 / 63, lemon_failures=0.5, avoid_after=1, days=73_000.0)
    done = simulate(run)
    of_all = run.days * 86_400 * run.node_rate
    assert (run.num_nodes, run.num_lemons, done.avoided_nodes) == (63, 3, 3)
    assert done.failures == pytest.approx(of_all * 0.5 * 63 / 60, rel=0.02)
    assert simulate(replace(run, avoid_after=None)).failures == pytest.approx(of_all, rel=0.02)


@pytest.mark.parametrize(("settings", "gpus"), [({}, 2_462), (BAD_FABRIC, 944)])
def test_minders_two_faults_a_day_are_met_at_these_sizes_as_it_names_none(
    settings: dict[str, float], gpus: int
) -> None:
    run = SimulatedRun(num_gpus=gpus, **settings)  # type: ignore[arg-type]
    assert run.mean_between_failures / 3600 == pytest.approx(12.0, rel=0.01)


def test_a_fabric_that_fails_with_the_square_of_its_size_explains_a_large_run_that_never_lasts_a_day() -> None:
    krea = {n: SimulatedRun(num_gpus=n, per_1000_node_days=3.79, fabric_per_day=1.818) for n in (128, 1024, 2048)}
    assert no_failure_probability(krea[128], 24.0) > 0.9
    assert no_failure_probability(krea[1024], 24.0) == pytest.approx(0.1, abs=0.005)
    assert no_failure_probability(krea[2048], 24.0) < 0.001
    assert no_failure_probability(SimulatedRun(num_gpus=2048, per_1000_node_days=3.79), 24.0) == pytest.approx(
        0.38, abs=0.01
    )


@pytest.mark.parametrize("gpus", [128, 4096, 16_384])
@pytest.mark.parametrize("lemons", [0.0, 3 / 63])
def test_buckets_sum_to_the_wall_clock(gpus: int, lemons: float) -> None:
    done = simulate(SimulatedRun(num_gpus=gpus, lemon_share=lemons, avoid_after=2, days=30.0), seed=gpus)
    assert math.fsum(done.seconds.values()) == pytest.approx(done.wall_seconds, rel=1e-12, abs=1e-9)
    assert min(done.seconds.values()) >= 0.0


def test_goodput_falls_with_failures_with_stalls_and_with_slow_repairs() -> None:
    base = {"num_gpus": 8192, "per_1000_node_days": 4.0, "interval_seconds": 600.0, "stall_seconds": 5.0}
    worse = {"per_1000_node_days": (4.0, 8.0, 16.0), "stall_seconds": (5.0, 20.0, 60.0)}
    for name, values in worse.items():
        shares = [mean_goodput(plain(300.0, **{**base, name: value})) for value in values]
        assert shares == sorted(shares, reverse=True), name
        assert len(set(shares)) == len(shares)
    shares = [mean_goodput(plain(repair, **base)) for repair in (60.0, 300.0, 900.0)]
    assert shares == sorted(shares, reverse=True)


def test_a_checkpoint_counts_only_once_it_is_durable() -> None:
    """With the same stall, a slower write loses more of the work."""
    quick, slow = (
        SimulatedRun(num_gpus=16_384, interval_seconds=400.0, write_seconds=seconds, slowdown_seconds=0.0)
        for seconds in (1.0, 300.0)
    )
    lost = [sum(simulate(run, seed).seconds["lost"] for seed in range(8)) for run in (quick, slow)]
    failures = sum(simulate(quick, seed).failures for seed in range(8))
    assert (lost[1] - lost[0]) / failures == pytest.approx(300.0, rel=0.15)


def test_avoiding_lemons_pays() -> None:
    lemons = {"num_gpus": 4096, "per_1000_node_days": 20.0, "lemon_share": 3 / 63}
    kept, avoided = (SimulatedRun(**lemons, avoid_after=after) for after in (None, 2))  # type: ignore[arg-type]
    assert simulate(avoided).avoided_nodes > 10
    assert simulate(kept).avoided_nodes == 0
    assert simulate(avoided).failures < 0.75 * simulate(kept).failures
    assert mean_goodput(avoided) > mean_goodput(kept)


def test_checkpoints_that_would_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="a checkpoint must be durable before the next one begins"):
        SimulatedRun(num_gpus=8, interval_seconds=10.0, write_seconds=30.0)
