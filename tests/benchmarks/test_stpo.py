"""How the experiment on preference optimisation compares runs: by hand-made curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.experiments.stpo import FULL
from benchmarks.experiments.stpo_arms import ANCHORS, HEADLINE, MARGINS, ONCE, SHUFFLED, WITHOUT, Arm, extras, sweep
from benchmarks.experiments.stpo_measures import NOISE_SEED, NUM_NOISES, TIMESTEPS, pair_errors
from benchmarks.experiments.stpo_page import Measured, chosen_levels, drift_verdict, isotonic, report, rising, verdicts
from benchmarks.experiments.stpo_training import Snapshots, snapshot
from pleinair.packs.loader import LatentBatch
from pleinair.packs.pairs import PairBatch
from pleinair.training.random import RowRandom
from tests.training.small_stages import Latents, Line, pretrain_stage, run_line

LEVELS = dict.fromkeys(HEADLINE, 0)


def run(arm: str, gold: Sequence[float], drift: Sequence[float], **changes: Any) -> Measured:
    curve = {
        "step": [10.0 * place for place in range(len(gold))],
        "gold": list(gold),
        "drift": list(drift),
        "winners_worse": [changes.pop("worse", 0.0)] * len(gold),
        "winner_rise": [changes.pop("winner_rise", 0.0)] * len(gold),
        "loser_rise": [changes.pop("loser_rise", 0.0)] * len(gold),
    }
    told = {"level": 0, "strength": "", "seed": 0, "swept": False, "seconds": 1.0, "stopped": False, "pictures": []}
    return Measured(arm=arm, curve=curve, **{**told, **changes})


def test_a_rising_curve_is_kept_and_a_falling_one_is_pooled() -> None:
    assert isotonic(np.array([0.0, 1.0, 3.0])).tolist() == [0.0, 1.0, 3.0]
    assert isotonic(np.array([0.0, 3.0, 1.0, 5.0, 4.0, 3.0])).tolist() == [0.0, 2.0, 2.0, 4.0, 4.0, 4.0]


def test_a_curve_rises_to_its_top_whatever_comes_after() -> None:
    assert rising([0.0, 1.0, 3.0]).tolist() == [0.0, 1.0, 3.0]
    assert rising([0.0, 2.0, 1.0, 4.0, 0.0, -3.0]).tolist() == [0.0, 1.5, 1.5, 4.0]
    assert rising([1.0, 1.0, 1.0]).tolist() == [1.0, 1.0, 1.0]


def test_a_measurement_at_a_gain_lies_between_two_points_where_it_is_first_reached() -> None:
    one = run("DPO", [-3.0, -2.0, -2.5, -1.0], [0.0, 0.2, 0.4, 0.6])
    assert one.gain == 2.0
    assert one.at(0.375, "drift") == pytest.approx(0.1)
    assert one.at(0.75, "drift") == pytest.approx(0.2)
    assert one.at(1.375, "drift") == pytest.approx(0.5)
    assert math.isnan(one.at(2.1, "drift"))
    assert math.isnan(one.at(0.0, "drift"))


def test_the_level_that_drifts_least_at_the_target_is_chosen_and_else_that_of_the_largest_gain() -> None:
    runs = [
        run("DPO", [0.0, 2.0], [0.0, 1.0], level=0),
        run("DPO", [0.0, 2.0], [0.0, 0.4], level=1),
        run("DPO", [0.0, 0.1], [0.0, 0.001], level=2),
        run("MaPO", [0.0, 0.1], [0.0, 0.1], level=0),
        run("MaPO", [0.0, 0.2], [0.0, 0.9], level=1),
    ]
    assert chosen_levels(runs, target=0.5) == {"DPO": 1, "MaPO": 1}


def both(ratios: Sequence[float], **changes: Any) -> list[Measured]:
    runs = []
    for seed, ratio in enumerate(ratios):
        runs += [
            run("DPO", [0.0, 1.0], [0.0, 1.0], seed=seed, winner_rise=0.2 + seed / 100, loser_rise=0.3 + seed / 100),
            run("DPO+SFT", [0.0, 1.0], [0.0, 0.5], seed=seed),
            run("STPO", [0.0, 1.0], [0.0, ratio], seed=seed, winner_rise=seed / 1000 - 0.1, **changes),
        ]
    return runs


def test_a_ratio_is_the_geometric_mean_over_seeds_with_an_interval_of_students_t() -> None:
    told = drift_verdict(both([0.05, 0.08, 0.05]), "DPO", LEVELS, 0.8)
    logs = np.log([0.05, 0.08, 0.05])
    half = 4.30 * logs.std(ddof=1) / math.sqrt(3)
    low, high = np.exp(logs.mean() - half), np.exp(logs.mean() + half)
    assert f"is {np.exp(logs.mean()):.2f} (95% {low:.2f} to {high:.2f}, 3 seeds)" in told
    assert told.endswith("to reach: 0.1, undecided.")


def test_what_chose_the_level_is_not_compared() -> None:
    choosing = [run(arm, [0.0, 1.0], [0.0, 9.0], seed=100, swept=True) for arm in HEADLINE]
    assert ", 2 seeds)" in drift_verdict([*both([0.05, 0.05]), *choosing], "DPO", LEVELS, 0.8)


def test_an_option_that_one_seed_in_five_does_not_bring_there_is_compared_on_the_others() -> None:
    runs = both([0.05, 0.06, 0.05, 0.06, 0.05])
    runs[0] = run("DPO", [0.0, 0.1], [0.0, 3.0])
    told = drift_verdict(runs, "DPO", LEVELS, 0.8)
    assert ", 4 seeds)" in told
    assert told.endswith("reached.")


def test_an_option_that_two_seeds_in_five_do_not_bring_there_is_not_compared() -> None:
    runs = both([0.05] * 5)
    runs[0], runs[3] = (run("DPO", [0.0, 0.1], [0.0, drift], seed=s) for s, drift in ((0, 3.0), (1, 2.0)))
    told = drift_verdict(runs, "DPO", LEVELS, 0.8)
    assert "DPO reaches the target on 3 of 5 seeds, and drifts >= 2 without reaching it" in told
    assert told.endswith("to reach: 0.1, undecided.")
    own = [*both([0.05])[:2], run("STPO", [0.0, 0.1], [0.0, 0.01])]
    assert drift_verdict(own, "DPO", LEVELS, 0.8).endswith("to reach: 0.1, not reached.")


def test_verdicts_say_what_was_to_be_reached_and_whether_it_was() -> None:
    control = run(SHUFFLED, [0.0, 0.07], [0.0, 0.1])
    told = verdicts([*both([0.05, 0.051, 0.052], worse=0.05), control], LEVELS, 0.8)
    assert told[0].startswith("Compared where the gold reward is 0.8 above the base's")
    assert "gains 0.07 at most" in told[0]
    assert [one.split(", ")[-1] for one in told[1:5]] == ["reached."] * 4
    assert told[3].startswith("Held-out winners that got worse under STPO there: 5.0%")
    assert "winners has risen by +0.2100" in told[4]
    assert told[5].endswith("to reach: the winners' does not rise, reached.")
    worse = verdicts(both([0.4, 0.41, 0.4], worse=0.3), LEVELS, 0.8)
    assert [one.split(", ")[-1] for one in worse[1:4]] == ["not reached."] * 3


def test_without_a_target_nothing_is_compared() -> None:
    told = verdicts(both([0.05, 0.06]), LEVELS, -0.1)
    assert told[0].endswith("there is no target to compare at. Undecided.")
    assert len(told) == 3


def test_the_page_shows_every_option_and_tells_the_verdicts() -> None:
    names = ("rise", "high_frequency", "margin_accuracy")
    runs = []
    for one in [*both([0.05, 0.05]), run("MaPO", [0.0, 0.1], [0.0, 0.2], swept=True)]:
        curve = {**one.curve, **{name: [0.0, 0.5] for name in names}}
        runs.append(replace(one, curve=curve, pictures=np.zeros((1, 4, 4, 3), int).tolist()))
    base = {"base, plain": np.zeros((1, 4, 4, 3), np.uint8)}
    html = report("About.", runs, LEVELS, 0.8, base, ["a fox"], "all right", "a commit")
    for said in ("to reach: 0.1, reached.", "2 of 2", "0 of 1", "MaPO", "a fox", "choosing", "drift on held-out rows"):
        assert said in html
    assert "The order of the pairs: all right." in html
    assert "a commit" in html


def test_every_option_has_a_loss_and_a_run_of_its_own() -> None:
    arms = [*sweep(100, FULL.levels), *extras(1, 100)]
    assert len({arm.run for arm in arms}) == len(arms) == 3 * len(HEADLINE) + len(ONCE) + len(WITHOUT) + 1
    methods = {arm.name: arm.config.method for arm in arms}
    assert [methods[name] for name in (*HEADLINE, *ONCE)] == ["dpo", "dpo_sft", "stpo", "dpop", "sdpo", "mapo"]
    own = [arm.config for arm in arms if arm.name == "STPO"]
    assert [(one.beta, one.anchor_weight) for one in own] == [(MARGINS[1], anchor) for anchor in ANCHORS]
    assert Arm(name="STPO without anchor", level=2, seed=0).config.anchor_weight == 0.0


def test_errors_of_pairs_are_means_over_timesteps_and_noises_that_both_sides_share() -> None:
    stage, rows = pretrain_stage(), Latents(rows=4).batch(0)
    text = (rows.text_features_BTLD, rows.text_mask_BT)
    pairs = PairBatch(rows.keys, rows.latents_BCHW, rows.latents_BCHW, *text, torch.zeros(4, dtype=torch.bool))
    winner_B, loser_B = pair_errors(stage, pairs)
    assert torch.equal(winner_B, loser_B)
    expected_B = torch.zeros(4)
    for noise in range(NUM_NOISES):
        for timestep in TIMESTEPS:
            side = LatentBatch(rows.keys, rows.latents_BCHW, *text)
            random = RowRandom(NOISE_SEED, noise, range(4))
            expected_B += stage.velocity_errors(side, torch.full((4,), timestep), random).detach() / 10
    torch.testing.assert_close(winner_B, expected_B)


def test_weights_are_kept_every_few_steps_and_at_the_last(tmp_path: Path) -> None:
    stage = Line()
    run_line(tmp_path, steps=5, stage=stage, hooks=[Snapshots(tmp_path, 2)])
    kept = sorted(path.name for path in tmp_path.glob("weights-*"))
    assert kept == [snapshot(tmp_path, step).name for step in (2, 4, 5)]
    assert torch.equal(load_file(snapshot(tmp_path, 5))["weight"], stage.model.state_dict()["weight"])
    assert not torch.equal(load_file(snapshot(tmp_path, 2))["weight"], stage.model.state_dict()["weight"])
