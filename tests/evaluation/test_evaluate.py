"""Sets of pictures become the keys of metrics.json."""

import json

import numpy as np
import pytest

from pleinair.evaluation.evaluate import ACCURACIES, JudgedSet, accuracy_by_style, evaluate
from pleinair.model.judge import Judge, JudgeConfig, judge_pictures

JUDGE = Judge(
    JudgeConfig(
        style_names=("a", "b"),
        concept_names=tuple("abcdefghij"),
        widths=(8,),
        blocks=(0,),
        concept_features=8,
        style_features=4,
    )
)


def pictures(num: int, seed: int = 0) -> JudgedSet:
    rng = np.random.default_rng(seed)
    return JudgedSet(
        pictures=rng.integers(256, size=(num, 64, 64, 3), dtype=np.uint8),
        styles=rng.integers(2, size=num),
        concepts=rng.integers(10, size=num),
    )


SETS = {
    "train": pictures(12),
    "heldout": pictures(8, 1),
    "ceiling": pictures(9, 2),
    "reconstruction": pictures(9, 3),
    "floor": pictures(8, 4),
    "real": pictures(20, 5),
}


def test_all_sets_give_every_key_with_its_interval_and_count() -> None:
    metrics = evaluate(JUDGE, SETS)
    numbers = {f"{key}_{name}" for key in ACCURACIES for name in SETS if name != "real"}
    numbers |= {"frechet", "frechet_reconstruction", "frechet_floor", "diversity", "diversity_real"}
    ratios = {key for key in metrics if key.endswith("_of_ceiling")}
    assert set(metrics) - ratios == {key + end for key in numbers for end in ("", "_interval", "_n")}
    for key in numbers:
        low, high = metrics[f"{key}_interval"]
        assert low <= metrics[key] <= high
    assert (metrics["concept_top5_heldout_n"], metrics["frechet_n"], metrics["frechet_floor_n"]) == (8, 20, 8)
    assert json.loads(json.dumps(metrics)) == metrics


def test_numbers_of_sets_left_out_are_left_out() -> None:
    assert set(evaluate(JUDGE, {"ceiling": SETS["ceiling"]})) == {
        key + end
        for key in ("style_accuracy_ceiling", "concept_top1_ceiling", "concept_top5_ceiling")
        for end in ("", "_interval", "_n")
    }


def test_ratios_are_shares_of_the_ceiling() -> None:
    metrics = evaluate(JUDGE, SETS)
    assert metrics["style_accuracy_heldout_of_ceiling"] == (
        metrics["style_accuracy_heldout"] / metrics["style_accuracy_ceiling"]
    )


def test_pictures_judged_against_themselves_are_at_distance_zero() -> None:
    metrics = evaluate(JUDGE, {"heldout": SETS["real"], "real": SETS["real"]})
    assert metrics["frechet"] == pytest.approx(0, abs=1e-6)
    assert metrics["diversity"] == metrics["diversity_real"]


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(ValueError, match="unknown picture set 'validation'"):
        evaluate(JUDGE, {"validation": SETS["real"]})


def test_a_set_without_a_label_for_each_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="3 pictures with 3 styles and 2 concepts"):
        JudgedSet(pictures=np.zeros((3, 64, 64, 3), np.uint8), styles=np.zeros(3, int), concepts=np.zeros(2, int))


def test_accuracies_by_style_weigh_up_to_the_whole() -> None:
    one = SETS["real"]
    found = accuracy_by_style(judge_pictures(JUDGE, one.pictures), one, ("a", "b"))
    whole = evaluate(JUDGE, {"train": one})["concept_top5_train"]
    assert sum(part["concept_top5"].value * part["concept_top5"].num for part in found.values()) == pytest.approx(
        whole * 20
    )
