"""How the experiment on preference optimisation compares runs: by hand-made curves."""

from __future__ import annotations

import math

import pytest

from benchmarks.experiments.stpo import SIZES, SWEPT, WITHOUT, Arm, sweep
from benchmarks.experiments.stpo_page import Measured, chosen_levels, compare, compared_gain, verdicts

HEADLINE = ("DPO", "DPO+SFT", "STPO")


def run(
    arm: str,
    gold: list[float],
    drift: list[float],
    level: int = 0,
    seed: int = 0,
    worse: float = 0.0,
    swept: bool = False,
) -> Measured:
    curve = {
        "step": [10.0 * place for place in range(len(gold))],
        "gold": gold,
        "drift": drift,
        "winners_worse": [worse] * len(gold),
    }
    return Measured(arm=arm, level=level, seed=seed, swept=swept, seconds=1.0, stopped=False, curve=curve, pictures=[])


def test_a_measurement_at_a_gain_lies_between_two_points_where_it_is_first_reached() -> None:
    one = run("DPO", [-3.0, -2.0, -2.5, -1.0], [0.0, 0.2, 0.4, 0.6])
    assert one.gain == 2.0
    assert one.at(0.5, "drift") == pytest.approx(0.1)
    assert one.at(1.0, "drift") == pytest.approx(0.2)
    assert one.at(1.25, "drift") == pytest.approx(0.4 + 0.2 * 0.75 / 1.5)
    assert math.isnan(one.at(2.1, "drift"))
    assert math.isnan(one.at(0.0, "drift"))


def test_the_strength_that_drifts_least_at_a_gain_all_reach_is_chosen() -> None:
    runs = [
        run("DPO", [0.0, 2.0], [0.0, 1.0], level=0),
        run("DPO", [0.0, 2.0], [0.0, 0.4], level=1),
        run("DPO", [0.0, 0.1], [0.0, 0.001], level=2),
        run("DPO+SFT", [0.0, 1.0], [0.0, 0.2], level=0),
        run("STPO", [0.0, 1.0], [0.0, 0.1], level=2),
        run("MaPO", [0.0, 0.1], [0.0, 0.1], level=0),
        run("MaPO", [0.0, 0.2], [0.0, 0.9], level=1),
    ]
    assert chosen_levels(runs, HEADLINE) == {"DPO": 1, "DPO+SFT": 0, "STPO": 2, "MaPO": 1}


def both(ratios: list[float]) -> list[Measured]:
    runs = []
    for seed, ratio in enumerate(ratios):
        runs += [run("DPO", [0.0, 1.0], [0.0, 1.0], seed=seed), run("DPO+SFT", [0.0, 1.0], [0.0, 0.5], seed=seed)]
        runs.append(run("STPO", [0.0, 1.0], [0.0, ratio], seed=seed, worse=0.05))
    return runs


def test_a_ratio_is_of_means_over_seeds_and_its_interval_holds_it() -> None:
    levels = dict.fromkeys(HEADLINE, 0)
    found = compare(both([0.05, 0.07, 0.09]), "STPO", "DPO", levels, gain=0.8)
    assert found.value == pytest.approx(0.07)
    assert 0.05 <= found.interval[0] < 0.07 < found.interval[1] <= 0.09
    assert found.num_seeds == 3


def test_what_chose_the_strength_is_not_compared() -> None:
    levels = dict.fromkeys(HEADLINE, 0)
    choosing = [run(arm, [0.0, 0.1], [0.0, 9.0], seed=100, swept=True) for arm in HEADLINE]
    runs = [*both([0.05, 0.07]), *choosing]
    assert compared_gain(runs, HEADLINE, levels) == pytest.approx(0.8)
    assert compare(runs, "STPO", "DPO", levels, gain=0.05).num_seeds == 2


def test_a_seed_at_which_one_never_gets_there_is_left_out_and_none_at_all_is_said() -> None:
    levels = dict.fromkeys(HEADLINE, 0)
    runs = [
        *both([0.05, 0.09]),
        run("DPO", [0.0, 0.1], [0.0, 1.0], seed=7),
        run("STPO", [0.0, 1.0], [0.0, 9.0], seed=7),
    ]
    assert compare(runs, "STPO", "DPO", levels, gain=0.8).num_seeds == 2
    assert math.isnan(compare(runs, "STPO", "DPO", levels, gain=5.0).value)


def test_verdicts_say_what_was_to_be_reached_and_whether_it_was() -> None:
    levels = dict.fromkeys(HEADLINE, 0)
    runs = both([0.05, 0.07, 0.09])
    assert compared_gain(runs, HEADLINE, levels) == pytest.approx(0.8)
    told = verdicts(runs, HEADLINE, levels)
    assert "STPO drifts 0.07 times as far as DPO " in told[1]
    assert told[1].endswith("to reach: 0.1, reached.")
    assert told[2].endswith("to reach: 0.5, reached.")
    assert told[3].endswith("to reach: 10%, reached.")
    assert verdicts(both([0.4, 0.4]), HEADLINE, levels)[1].endswith("not reached.")
    worst = [*runs, run("DPO", [0.0, -1.0], [0.0, 1.0], seed=9)]
    assert verdicts(worst, HEADLINE, levels) == [
        "Not every run of the compared options raised the gold reward: nothing is equal to compare at."
    ]


def test_every_option_has_a_loss_and_a_run_of_its_own() -> None:
    arms = [*sweep(SIZES["full"]), *(Arm(name=name, level=0, seed=0) for name in WITHOUT)]
    assert len({arm.run for arm in arms}) == len(arms) == 3 * len(SWEPT) + len(WITHOUT)
    for arm in arms:
        assert arm.config.method in ("dpo", "dpo_sft", "dpop", "sdpo", "mapo", "stpo")
    assert {Arm(name=name, level=0, seed=0).config.method for name in SWEPT} == {
        "dpo", "dpo_sft", "dpop", "sdpo", "mapo", "stpo",
    }  # fmt: skip
