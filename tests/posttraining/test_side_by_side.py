from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pleinair.evaluation.exploration.measured import Comparison
from pleinair.evaluation.metrics import frechet_distance, vendi_score
from pleinair.model.judge import JudgeScores
from pleinair.posttraining.page import NO_CHANGE, Story, changes, changes_table
from pleinair.posttraining.side_by_side import Changes, Measured, compare_frechet, compare_rows, diversity_of


def row(units: Mapping[str, Mapping[str, float]]) -> Measured:
    values = {name: float(np.mean(list(of.values()))) for name, of in units.items()}
    told = {name: dict(of) for name, of in units.items()}
    return Measured(name="x", stamp="", num_pictures=80, num_steps=4, guidance=0.0, values=values, units=told)


def prompts(values: np.ndarray) -> dict[str, float]:
    return {f"prompt {place}": float(value) for place, value in enumerate(values)}


def test_a_change_is_paired_by_prompt_so_that_a_small_steady_gain_among_unlike_prompts_is_seen() -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(0, 1, 40)
    steady, unsteady = before + 0.02 + rng.normal(0, 0.02, 40), before[::-1] + 0.02
    found = compare_rows(
        row({"steady": prompts(before), "unsteady": prompts(before), "gone": prompts(before)}),
        row({"steady": prompts(steady), "unsteady": prompts(unsteady), "new": prompts(before)}),
    )
    assert found.keys() == {"steady", "unsteady"}
    assert [found[name].sign for name in ("steady", "unsteady")] == [1, 0]
    assert found["steady"].difference == pytest.approx(float((steady - before).mean()))


def test_one_prompt_alone_is_compared_by_nothing() -> None:
    assert compare_rows(row({"named": {"a": 0.0}}), row({"named": {"a": 1.0}})) == {}


def test_a_frechet_distance_changes_only_where_pictures_do() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 3)).astype(np.float32)
    near = rng.normal(size=(30, 4, 3)).astype(np.float32)
    far, other = near + 1.5, rng.normal(size=(30, 4, 3)).astype(np.float32)
    worse = compare_frechet(near, far, real)
    assert worse.sign == 1
    assert worse.interval[0] < worse.difference < worse.interval[1]
    assert worse.difference == pytest.approx(
        frechet_distance(far.reshape(-1, 3), real) - frechet_distance(near.reshape(-1, 3), real)
    )
    assert compare_frechet(near, other, real).sign == 0


def test_a_small_steady_change_of_a_frechet_distance_is_seen_because_the_same_prompts_are_drawn_again() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(200, 3)).astype(np.float32)
    prompts_P13 = rng.normal(size=(30, 1, 3)).astype(np.float32)
    before = 1.0 + prompts_P13 + 0.1 * rng.normal(size=(30, 4, 3)).astype(np.float32)
    assert compare_frechet(before, before + 0.04, real).sign == 1


def test_pictures_that_miss_the_thing_count_for_no_diversity_but_the_one_without_a_gate() -> None:
    rng, names = np.random.default_rng(0), tuple("abcdefgh")
    embedding = rng.normal(size=(8, 16)).astype(np.float32)
    logits = np.tile(np.arange(8.0, dtype=np.float32), (8, 1))  # h is likeliest, and a to c are no guess
    logits[1, 0] = 3.5  # of the second picture of the first prompt it is the fifth guess
    scores = JudgeScores(style_logits=np.zeros((8, 1), np.float32), concept_logits=logits, embedding=embedding)
    asked = [("an a", "s", "a")] * 4 + [("a pelican", "s", "pelican")] * 4
    found = diversity_of(scores, asked, names, 4)
    assert found["diversity"] == {"an a": 0.25}, (
        "one picture, of which a quarter passed; of pelicans nothing can be said"
    )
    assert found["diversity_ungated"] == {
        "an a": pytest.approx(vendi_score(embedding[:4])), "a pelican": pytest.approx(vendi_score(embedding[4:])),
    }  # fmt: skip


def change(difference: float, low: float, high: float) -> Comparison:
    return Comparison(difference=difference, interval=(low, high), num_units=9, detectable=0.1)


def story(name: str, since_last: Changes, since_base: Changes) -> Story:
    return Story(
        name=name, checkpoint=Path(name), rows=[], pictures={}, done=None, since_last=since_last, since_base=since_base
    )


def test_the_page_says_gained_and_lost_only_where_the_interval_leaves_zero() -> None:
    climbed = {
        "concept_named": change(0.03, 0.01, 0.05), "diversity": change(-0.2, -0.3, -0.1), "style_named": change(0.1, -0.1, 0.3),
        "frechet": change(0.02, 0.01, 0.03), "gold.rubric": change(0.01, 0.002, 0.02), "saturation": change(0.2, 0.1, 0.3),
        "rubric": change(0.5, 0.4, 0.6), "gold.rubric.style": change(0.01, 0.002, 0.02),
    }  # fmt: skip
    nothing = {"concept_named": change(0.001, -0.01, 0.01)}
    sentences = changes([story("base", {}, {}), story("rl", climbed, climbed), story("tdm", nothing, climbed)])
    told = (
        "gained thing named +0.030 (+0.010 to +0.050), gold.rubric +0.010 (+0.002 to +0.020); "
        "lost different pictures of the thing -0.200 (-0.300 to -0.100), Frechet distance +0.020 (+0.010 to +0.030); "
        f"{NO_CHANGE} in style named."
    )
    assert sentences == [
        f"rl against base: {told}",
        f"tdm against rl: {NO_CHANGE} in thing named.",
        f"tdm against base: {told}",
    ]
    assert changes([story("base", {}, {}), story("rl", climbed, climbed)]) == sentences[:1], "one link is told of once"


def test_the_table_of_changes_is_bold_where_the_interval_leaves_zero() -> None:
    found = {"saturation": change(0.2, 0.1, 0.3), "rubric": change(0.5, -0.4, 0.6)}
    text = changes_table([story("base", {}, {}), story("rl", found, found)])
    assert "<b>+0.200 (+0.100 to +0.300)</b>" in text
    assert "<span>+0.500 (-0.400 to +0.600)</span>" in text
