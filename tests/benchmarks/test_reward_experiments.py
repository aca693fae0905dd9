"""What the experiments on rewards make of their measurements: by hand-made rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.experiments import guidance, hacking, prompt_pool, rubric
from benchmarks.experiments.climbing import unlikeness
from benchmarks.experiments.ground import MEMBERS, Fitted, asked, mix_of
from benchmarks.experiments.paired import word
from pleinair.model.artefacts import ArtefactConfig, ArtefactNet
from pleinair.model.judge import Judge, JudgeConfig
from pleinair.packing.pictures import CuratedPicture
from pleinair.records.errors import ConfigError
from pleinair.records.rewards import RewardContext
from pleinair.rewards.artefact import Classifier
from pleinair.rewards.picture_judge import PictureJudge


def curve(arm: str, seed: int, **points: list[float]) -> dict[str, Any]:
    rows = zip(*points.values(), strict=True)
    return {"arm": arm, "seed": seed, "points": [dict(zip(points, row, strict=True)) for row in rows]}


def test_a_rubric_that_meets_more_on_every_seed_reaches_and_one_that_loses_diversity_does_not() -> None:
    rows = []
    for seed, more in enumerate((0.10, 0.12, 0.11)):
        rows.append(curve(rubric.RUBRIC, seed, satisfied=[0.4, 0.5 + more], unlikeness=[0.30, 0.243 + seed / 1000]))
        rows.append(curve(rubric.ONE, seed, satisfied=[0.4, 0.5], unlikeness=[0.30, 0.27]))
    rows.append(curve(rubric.NO_GATE, 0, satisfied=[0.4, 0.7], unlikeness=[0.30, 0.27]))
    more, diversity = rubric.verdicts(rows)
    assert "+0.110" in more
    assert "without the gate 0.700" in more
    assert more.endswith("more, reached.")
    assert "has 90%" in diversity
    assert diversity.endswith("95%, not reached.")


def test_recognised_pictures_are_as_unlike_whatever_their_number() -> None:
    ones = np.eye(3)
    assert unlikeness(ones) == unlikeness(ones[:2]) == pytest.approx(1)
    assert unlikeness(np.ones((4, 3))) == pytest.approx(0)
    assert unlikeness(ones[:1]) is None


@pytest.mark.parametrize(
    ("mean", "half", "said"),
    [
        (0.61, 0.1, "reached"),
        (0.6, 0.11, "undecided"),
        (0.4, 0.09, "not reached"),
        (0.9, float("nan"), "undecided"),
    ],
)
def test_a_verdict_is_what_the_interval_says(mean: float, half: float, said: str) -> None:
    assert word(mean, half, 0.5) == said


def test_the_interval_of_a_ratio_holds_it_and_narrows_with_the_noise() -> None:
    uniform = np.array([0.10, 0.11, 0.09, 0.10, 0.10])
    low, high = prompt_pool.ratio_interval(1.5 * uniform, uniform)
    assert low == high == pytest.approx(1.5, abs=0.01)
    noisy = 1.5 * uniform + np.array([0.01, -0.01, 0.01, -0.01, 0.0])
    low, high = prompt_pool.ratio_interval(noisy, uniform)
    assert 1.2 < low < 1.4 < 1.6 < high < 1.8


def test_gold_falls_from_where_the_other_seeds_are_best() -> None:
    rows = [
        curve("arm", 0, gold_rubric=[0.5, 0.7, 0.6], reward_rubric=[0.5, 0.7, 0.9]),
        curve("arm", 1, gold_rubric=[0.5, 0.8, 0.9], reward_rubric=[0.5, 0.7, 0.9]),
    ]
    assert hacking.fallen(rows, "arm") == pytest.approx([0.0, -0.1])
    assert not hacking.diverges(rows, "arm")
    falling = [curve("arm", seed, gold_rubric=[0.5, 0.7, last], reward_rubric=[0.5, 0.7, 0.9])
               for seed, last in enumerate((0.60, 0.59, 0.61))]  # fmt: skip
    assert hacking.fallen(falling, "arm") == pytest.approx([0.10, 0.11, 0.09])
    assert hacking.diverges(falling, "arm")


def test_noise_alone_is_no_fall() -> None:
    rng = np.random.default_rng(0)
    falls = [
        np.mean(hacking.fallen([curve("arm", seed, gold_rubric=rng.normal(0.5, 0.1, 8)) for seed in range(5)], "arm"))
        for _ in range(200)
    ]
    assert abs(np.mean(falls)) < 4 * np.std(falls) / 200**0.5


def test_gold_that_falls_with_the_climbed_judge_is_no_hacking() -> None:
    rows = [curve("arm", seed, gold_rubric=[0.5, 0.4], reward_rubric=[0.5, 0.3]) for seed in range(3)]
    assert not hacking.diverges(rows, "arm")


def test_the_arms_are_set_against_each_other_seed_by_seed() -> None:
    rows = []
    for seed in range(3):
        rows.append(curve(hacking.WITHOUT, seed, gold_rubric=[0.7, 0.5], gold_artefacts=[0.1, 0.4 + seed / 100]))
        rows.append(curve(hacking.WITH, seed, gold_rubric=[0.7, 0.7], gold_artefacts=[0.1, 0.1 + seed / 100]))
    told = hacking.between_arms(rows)
    assert "falls +0.200" in told
    assert "ends +0.300" in told
    assert told.count("more, reached") == 2


def ways(model: str, seed: int, plain: float, guided: float) -> dict[str, Any]:
    def of(value: float) -> dict[str, Any]:
        return {**dict.fromkeys(guidance.HEADLINE, value), "by_prompt": dict.fromkeys(guidance.HEADLINE, [value] * 5)}

    return {"model": model, "seed": seed, "plain": of(plain), "guided": of(guided)}


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        (0.56, "plain pictures close 60% \u00b1 0% of it; to reach: 50%, reached"),
        (0.52, "close 20% \u00b1 0% of it; to reach: 50%, not reached"),
    ],
)
def test_a_gap_closes_by_what_plain_pictures_gain_of_it_and_not_by_what_guided_ones_lose(
    plain: float, said: str
) -> None:
    rows = [ways("base", 0, 0.5, 0.6), *(ways("climbed", seed, plain, 0.4) for seed in range(2))]
    assert said in guidance.verdicts(rows)[0]
    assert "so there is no gap" in guidance.verdicts([ways("base", 0, 0.6, 0.6), *rows[1:]])[0]


def test_a_gap_is_not_closed_for_sure_where_a_few_prompts_close_it() -> None:
    uneven = [0.5, 0.5, 0.5, 0.5, 0.8]
    climbed = [ways("climbed", seed, 0.56, 0.6) for seed in range(2)]
    for row in climbed:
        row["plain"]["by_prompt"] = dict.fromkeys(guidance.HEADLINE, uneven)
    assert "undecided over seeds and prompts" in guidance.verdicts([ways("base", 0, 0.5, 0.6), *climbed])[0]


def member(seed: int) -> Fitted:
    torch.manual_seed(seed)
    config = JudgeConfig(style_names=("noto",), concept_names=("fox",), widths=(8, 8, 8), blocks=(0, 0, 0), seed=seed)
    artefacts = ArtefactNet(ArtefactConfig(faults=("blur",), widths=(8, 8, 8), blocks=(0, 0, 0)))
    return Fitted(PictureJudge(Judge(config).eval()), Classifier(artefacts), {})


def test_gold_is_told_of_every_picture_and_moves_no_advantage() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    context = RewardContext(seeds=(0, 1, 2, 3), groups=(0, 0, 1, 1))
    said = [
        mix_of({"reward": member(1), "gold": member(gold)}, {"rubric": 1.0, "artefact": 0.5}, None).assess(
            ["a fox, noto style"] * 4, pictures, context
        )
        for gold in (2, 3)
    ]
    assert {"gold.rubric", "gold.artefact"} < set(said[0].values)
    assert not np.array_equal(said[0].values["gold.artefact"], said[1].values["gold.artefact"])
    np.testing.assert_array_equal(said[0].advantages, said[1].advantages)
    assert said[0].advantages.any()


def test_gold_built_on_what_is_climbed_is_refused() -> None:
    with pytest.raises(ConfigError, match="would be optimised"):
        mix_of({"reward": member(1), "gold": member(1)}, {"rubric": 1.0}, None)


def test_no_member_is_of_the_seed_of_the_judge_that_measures_nor_of_anothers() -> None:
    seeds = [one.seed for one in MEMBERS.values()]
    assert JudgeConfig(style_names=("a",), concept_names=("b",)).seed not in seeds
    assert len({(one.widths, one.blocks) for one in MEMBERS.values()}) == len(set(seeds)) == len(MEMBERS)


def picture(caption: str, held_out: bool = False) -> CuratedPicture:
    return CuratedPicture(caption, "noto", "fox", "fox", held_out, ("", "", caption), {})


def test_prompts_are_those_that_say_thing_and_style_each_once() -> None:
    pictures = [
        picture("a fox, noto style"),
        picture("a fox in noto style"),
        picture("a fox"),
        picture("a fox, noto style"),
    ]
    assert asked(pictures, member(1).judge) == [
        ("a fox, noto style", "noto", "fox"),
        ("a fox in noto style", "noto", "fox"),
    ]
