"""Intervals against tables and a naive computation, and the rules that turn them into verdicts."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from pleinair.ablation.findings import SwitchRuns, judge
from pleinair.ablation.page import Bench, SweptRates, write_bench
from pleinair.ablation.results import ArmCost, RunResult
from pleinair.ablation.verdicts import (
    Interval,
    interval_of,
    paired,
    performance_verdict,
    reproduction,
    simplicity_verdict,
    t_quantile,
    trend,
)

CELLS = [(32, "short"), (32, "long"), (64, "short"), (64, "long")]
NAMES = ("gated", "plain")


def around(mean: float, reach: float = 0.005) -> Interval:
    return Interval(mean=mean, low=mean - reach, high=mean + reach, num=3, detectable=0.01)


def verdict(*means: float, reach: float = 0.005) -> tuple[str, str]:
    found = performance_verdict(
        {cell: around(mean, reach) for cell, mean in zip(CELLS, means, strict=True)}, 0.01, NAMES
    )
    return found.overall, found.words


@pytest.mark.parametrize(
    ("probability", "degrees", "tabled"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 4, 2.77645),
        (0.975, 30, 2.04227),
        (0.8, 2, 1.06066),
        (0.5, 3, 0.0),
    ],
)
def test_quantiles_of_t_are_those_of_the_tables(probability: float, degrees: int, tabled: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(tabled, abs=1e-4)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-tabled, abs=1e-4)


def test_a_paired_interval_is_the_one_computed_by_hand() -> None:
    first, second = [1.0, 2.0, 4.0], [1.1, 2.1, 4.6]
    logs = [math.log(1.1), math.log(1.05), math.log(1.15)]
    mean = sum(logs) / 3
    error = math.sqrt(sum((one - mean) ** 2 for one in logs) / 2 / 3)
    found = paired(first, second)
    assert (found.mean, found.num) == (pytest.approx(mean), 3)
    assert (found.low, found.high) == pytest.approx((mean - 4.302653 * error, mean + 4.302653 * error), rel=1e-5)
    assert found.detectable == pytest.approx((4.302653 + 1.060660) * error, rel=1e-5)


def test_intervals_hold_the_truth_nineteen_times_in_twenty() -> None:
    draws = np.random.default_rng(0).normal(0.02, 0.01, (400, 3))
    held = [interval.low <= 0.02 <= interval.high for interval in map(interval_of, draws.tolist())]
    assert 0.92 <= np.mean(held) <= 0.98


def test_one_pair_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two pairs"):
        paired([1.0], [2.0])


def test_an_outcome_is_beyond_zero_or_inside_the_margin_or_open() -> None:
    assert around(0.02).outcome(0.01) == "first"
    assert around(-0.02).outcome(0.01) == "second"
    assert around(0.004).outcome(0.01) == "equal"
    assert around(0.007).outcome(0.01) == "first", "surely there, not surely small"
    assert around(0.02, 0.05).outcome(0.01) == "unclear"


def test_performance_is_settled_only_where_all_cells_agree() -> None:
    assert verdict(0.02, 0.03, 0.02, 0.04) == ("first", "gated better at both resolutions and both horizons")
    assert verdict(-0.02, -0.03, -0.02, -0.04)[0] == "second"
    assert verdict(0.0, 0.001, -0.001, 0.0)[0] == "equal"


def test_a_trend_that_reverses_with_the_horizon_or_the_resolution_is_told() -> None:
    assert verdict(0.03, -0.03, 0.03, -0.03) == (
        "mixed",
        "the trend does not hold: gated better at 32 px short, 64 px short; plain better at 32 px long, 64 px long",
    )
    overall, words = verdict(0.03, 0.03, 0.0, 0.0)
    assert overall == "mixed"
    assert words.endswith("no difference that matters at 64 px short, 64 px long")


def test_open_cells_leave_a_verdict_open_and_name_what_is_settled() -> None:
    cells = dict(zip(CELLS, [around(0.03), around(0.03), around(0.03), around(0.0, 0.1)], strict=True))
    found = performance_verdict(cells, 0.01, NAMES)
    assert found.overall == "unclear"
    assert found.words == "not settled: gated better at 32 px short, 32 px long, 64 px short; unclear at 64 px long"


def test_without_two_horizons_and_two_resolutions_there_is_no_verdict() -> None:
    for some in ([(32, "short"), (32, "long")], [(32, "short"), (64, "short")]):
        found = performance_verdict({cell: around(0.03) for cell in some}, 0.01)
        assert (found.overall, found.words) == ("missing", "no verdict: it needs two horizons and two resolutions")
    found = performance_verdict({**{cell: around(0.03) for cell in CELLS}, (64, "long"): None}, 0.01)
    assert found.words == "no verdict: missing: 64 px long"


def test_reproduction_compares_with_the_reports_outcome() -> None:
    settled, still_open = (performance_verdict({cell: around(0.03, r) for cell in CELLS}, 0.01) for r in (0.005, 0.1))
    assert [reproduction(settled, claim) for claim in ("first", "equal", None)] == [
        "reproduced",
        "not reproduced",
        "no claim",
    ]
    assert reproduction(still_open, "first") == "undecided"


def test_simplicity_is_the_stated_judgement_or_fewer_parameters_and_modules() -> None:
    small, large = (
        ArmCost(parameters=10, modules=3, flops_per_step=1.0),
        ArmCost(parameters=12, modules=4, flops_per_step=1.0),
    )
    assert (
        simplicity_verdict(small, large, None, "", NAMES).words
        == "gated better by size alone (+2 parameters, +1 modules)"
    )
    assert simplicity_verdict(large, small, None, "", NAMES).overall == "second"
    assert (
        simplicity_verdict(small, dataclasses.replace(small, modules=2, parameters=11), None, "", NAMES).overall
        == "mixed"
    )
    assert simplicity_verdict(small, large, "second", "one thing less", NAMES).overall == "second"


def test_a_trend_is_the_change_of_the_difference_seed_by_seed() -> None:
    cells = {(32, "short"): [0.0, 0.1], (32, "long"): [0.2, 0.3], (64, "short"): [0.1, 0.2], (64, "long"): [0.3, 0.5]}
    for place, changes in ((1, [0.2, 0.25]), (0, [0.1, 0.15])):
        found, by_hand = trend(cells, place), interval_of(changes)
        assert found is not None
        assert (found.mean, found.low, found.high) == pytest.approx((by_hand.mean, by_hand.low, by_hand.high))
    assert trend({(32, "short"): [0.0, 0.1]}, 1) is None


def result(resolution: int, seed: int, short: float, long: float, **changes: object) -> RunResult:
    plain = RunResult(
        arm="a",
        resolution=resolution,
        seed=seed,
        steps={"short": 1, "long": 2},
        validation={"short": {"loss": short}, "long": {"loss": long}},
        gradient_ratio=2.0 + 0.01 * seed,
        num_steps=100,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def switch_runs(first: list[RunResult], second: list[RunResult], **changes: object) -> SwitchRuns:
    runs = SwitchRuns(
        name="gate",
        names=NAMES,
        settings=("", ""),
        words="",
        claims={"performance": "first"},
        results=(first, second),
        costs={},
    )
    return dataclasses.replace(runs, **changes)  # type: ignore[arg-type]


def sides(ratio: float) -> tuple[list[RunResult], list[RunResult]]:
    pairs = [(resolution, seed) for resolution in (32, 64) for seed in range(3)]
    noise = {pair: 1 + 0.1 * number for number, pair in enumerate(pairs)}
    first = [result(*pair, 0.5 * noise[pair], 0.4 * noise[pair]) for pair in pairs]
    wobble = [1.001, 0.999, 1.0]
    second = [
        result(*pair, 0.5 * noise[pair] * ratio * wobble[pair[1]], 0.4 * noise[pair] * ratio * wobble[pair[1]])
        for pair in pairs
    ]
    return first, second


def test_seeds_are_paired_so_that_what_they_share_does_not_count() -> None:
    first, second = sides(1.05)
    found = judge(switch_runs(first, second[::-1]), CELLS, 0.01)
    assert found.verdicts["performance"].overall == "first"
    assert found.reproduced["performance"] == "reproduced"
    assert found.cells[32, "short"].high - found.cells[32, "short"].low < 0.01  # type: ignore[union-attr]


def test_seeds_that_only_one_side_has_are_left_out() -> None:
    first, second = sides(1.05)
    found = judge(switch_runs(first, [one for one in second if one.seed != 1]), CELLS, 0.01)
    assert [row[0] for row in found.values[64, "long"]] == [0, 2]


def test_a_side_whose_trainings_diverge_is_less_stable() -> None:
    first, second = sides(1.0)
    second[4] = dataclasses.replace(second[4], diverged="the loss is nan", validation={})
    found = judge(switch_runs(first, second), CELLS, 0.01)
    assert found.verdicts["stability"].words == "0 and 1 of 6 trainings diverged"
    assert found.verdicts["stability"].overall == "first"
    assert len(found.values[64, "long"]) == 2


def test_stability_is_the_spread_of_the_gradient_norm_beside_the_spikes() -> None:
    first, second = sides(1.0)
    second = [dataclasses.replace(one, gradient_ratio=one.gradient_ratio * 1.2, num_spikes=1) for one in second]
    found = judge(switch_runs(first, second), CELLS, 0.01).verdicts["stability"]
    assert found.overall == "first"
    assert (
        found.words
        == "gated better: spread of the gradient norm +20.0% (+20.0 to +20.0); spikes: 0 in 600 steps and 6 in 600 steps"
    )


def test_averages_are_compared_within_the_same_trainings() -> None:
    first, _ = sides(1.0)
    averages = {"last": 0.6, "decayed": 0.5, "pma": 0.52, "ema": 0.52}
    first = [dataclasses.replace(one, averages={"short": averages, "long": {**averages, "ema": 0.53}}) for one in first]
    found = judge(switch_runs(first, [], averages=("pma", "ema"), simpler="first"), CELLS, 0.01)
    assert found.verdicts["performance"].overall == "mixed"
    assert found.figures["PMA against the last weights, 32 px short"].startswith("-13.3%")
    assert found.verdicts["stability"].words == "the same trainings"


def test_findings_of_nothing_say_what_is_missing() -> None:
    found = judge(switch_runs([], []), CELLS, 0.01)
    assert {axis: one.overall for axis, one in found.verdicts.items()} == dict.fromkeys(found.verdicts, "missing")
    assert found.cells[32, "short"] is None


def cost(*seconds: float, peak: int = 100_000_000, average: tuple[float, ...] = ()) -> ArmCost:
    return ArmCost(
        parameters=1_000_000,
        modules=10,
        flops_per_step=1e9,
        cpu_seconds=seconds,
        average_seconds=average,
        peak_bytes=peak,
    )


BUSY = (0.1, 0.2, 0.4, 0.1)
"""Rounds of one machine, of which some met other work."""


def slower(ratio: float) -> tuple[float, ...]:
    return tuple(ratio * wobble * one for wobble, one in zip((1.001, 0.999, 1.0, 1.0), BUSY, strict=True))


def judged_costs(*pairs: tuple[ArmCost, ArmCost], **changes: object) -> tuple[str, str]:
    costs = dict(zip((32, 64), pairs, strict=True))
    found = judge(switch_runs(*sides(1.0), costs=costs, **changes), CELLS, 0.01).verdicts["efficiency"]
    return found.overall, found.words


def test_the_time_of_a_step_is_compared_in_pairs_of_rounds() -> None:
    pair = (cost(*BUSY), cost(*slower(1.05)))
    overall, words = judged_costs(pair, pair)
    assert overall == "first"
    half = "CPU time +5.0% (+4.9 to +5.1), FLOPs +0.0%, memory +0.0%"
    assert words == f"gated better at every resolution; 32 px: {half}; 64 px: {half}"


def test_a_step_that_is_cheaper_at_one_resolution_only_is_told_where() -> None:
    dearer, cheaper = (cost(*BUSY), cost(*slower(1.05))), (cost(*BUSY), cost(*slower(0.9)))
    overall, words = judged_costs(dearer, cheaper)
    assert overall == "mixed"
    assert words.startswith("the trend does not hold: gated better at 32 px; plain better at 64 px; 32 px: CPU time")


def test_memory_decides_where_the_times_are_equal_and_only_there() -> None:
    lean, large = cost(*BUSY), cost(*slower(1.0), peak=110_000_000)
    assert judged_costs((lean, large), (lean, large))[0] == "first"
    assert judged_costs((large, lean), (large, lean))[0] == "second"
    assert judged_costs((lean, cost(*slower(1.0), peak=101_000_000)), (lean, cost(*slower(1.0))))[0] == "equal"
    quick = cost(*slower(0.9), peak=110_000_000)
    assert judged_costs((lean, quick), (lean, quick))[0] == "second"


def test_whole_trainings_are_told_in_pairs_of_seeds_where_they_were_timed() -> None:
    pair = (cost(*BUSY), cost(*slower(1.0)))
    first, second = sides(1.0)
    timed = [
        [dataclasses.replace(one, cpu_seconds={"short": 1.0, "long": ratio * (1 + one.seed)}) for one in side]
        for ratio, side in ((4.0, first), (5.0, second))
    ]
    told = judge(switch_runs(*timed, costs={32: pair}), CELLS, 0.01).verdicts["efficiency"].words
    assert told.endswith("; whole trainings, 6 pairs: CPU time +25.0% (+25.0 to +25.0)")
    untimed = [dataclasses.replace(one, cpu_seconds={}) if one.seed else one for one in timed[1]]
    told = judge(switch_runs(timed[0], untimed[1:], costs={32: pair}), CELLS, 0.01).verdicts["efficiency"].words
    assert "whole" not in told


def test_a_moving_average_costs_its_memory_and_the_time_to_move_it() -> None:
    plain = cost(*BUSY, average=(0.01, 0.02, 0.04, 0.01))
    kept = plain.with_average()
    assert kept.cpu_seconds == pytest.approx([1.1 * one for one in BUSY])
    assert kept.peak_bytes == 104_000_000
    changes = {"averages": ("pma", "ema"), "names": ("PMA", "EMA")}
    overall, words = judged_costs((plain, kept), (plain, kept), **changes)
    assert overall == "first"
    assert words.startswith("PMA better at every resolution; 32 px: CPU time +10.0% (+10.0 to +10.0), FLOPs")
    unmeasured = judge(switch_runs(*sides(1.0), **changes), CELLS, 0.01).verdicts["efficiency"]
    assert unmeasured.words.startswith("by construction, not measured")


def bench(runs: SwitchRuns, num_done: int) -> Bench:
    rates = SweptRates(
        switch="optimiser", side="Muon", losses={"0.001": 0.5, "0.003": math.inf, "0.01": None}, chosen=None
    )
    return Bench(
        title="What each choice is worth",
        command="pleinair ablate ablations",
        findings=[judge(runs, CELLS, 0.01)],
        rates=[rates],
        num_done=num_done,
        num_planned=12,
        num_seeds=3,
        margin=0.01,
        settings={"model": "small"},
    )


def test_the_page_shows_verdicts_intervals_and_whether_the_report_found_the_same(tmp_path: Path) -> None:
    page = write_bench(
        tmp_path, bench(switch_runs(*sides(1.05), settings=("", "transformer.gate=False")), 12)
    ).read_text()
    assert page.count("<circle") == 4, "one interval for each resolution and horizon"
    assert "<b>gated</b><br><small>reproduced</small>" in page
    assert "+5.0% (+4.7 to +5.3)" in page
    assert "gated or plain (the recipe as it is against transformer.gate=False)." in page
    assert "<b>1 of 1</b>" in page
    assert "all are there" in page
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    cell = numbers["switches"][0]["cells"][3]
    assert (cell["resolution"], cell["horizon"], len(cell["errors"])) == (64, "long", 3)
    assert cell["difference"]["mean"] == pytest.approx(math.log(1.05), abs=1e-4)


def test_the_page_shows_what_a_step_costs_in_time_and_memory(tmp_path: Path) -> None:
    pair = (cost(*BUSY), cost(*slower(1.05), peak=110_000_000))
    page = write_bench(tmp_path, bench(switch_runs(*sides(1.05), costs={32: pair, 64: pair}), 12)).read_text()
    assert page.count("+5.0% (+4.9 to +5.1)") == 4, "in the verdict and in the table, at two resolutions"
    for value in ("200.0", "210.0", "100.0", "110.0", "gated, CPU ms", "plain, MB"):
        assert page.count(value) >= 1, value
    (told, _) = json.loads((tmp_path / "numbers.json").read_text())["switches"][0]["costs"]
    assert told["cpu_seconds"][0] == list(BUSY)
    assert told["cpu_difference"]["num"] == 4


def test_the_page_of_an_unfinished_bench_says_what_is_missing(tmp_path: Path) -> None:
    first, second = sides(1.05)
    page = write_bench(
        tmp_path, bench(switch_runs(first, [one for one in second if one.resolution == 32]), 9)
    ).read_text()
    assert "<b>9 of 12</b>" in page
    assert "3 are missing" in page
    assert "no verdict: missing: 64 px short, 64 px long" in page
    assert page.count("not trained") == 2
    assert page.count("<circle") == 2
