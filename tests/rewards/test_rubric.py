"""The rubric as a reward: what is wrong with a picture lowers it, by its weight; what is essential closes the gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pleinair.cli.places import shipped
from pleinair.model.judge import load_judge, save_judge
from pleinair.records.errors import CheckpointError, ConfigError, RewardError
from pleinair.records.rewards import Pictures
from pleinair.rewards.picture_judge import (
    PictureJudge,
    chance_of_count,
    load_picture_judge,
    save_picture_judge,
)
from pleinair.rewards.pieces import pieces_of, regions
from pleinair.rewards.requirements import Requirement, Rubric, required
from pleinair.rewards.rubric import Probabilities, RubricConfig, RubricReward, all_hold, weighted_mean
from tests.rewards.shapes import COLOURS, SMALL, THINGS, context, picture_judge, random_shapes, shape, trained_judge


def scored(prompt: str, pictures: Sequence[Pictures], **settings: object) -> tuple[list[float], list[bool]]:
    """Rubric and gate of several pictures of one prompt."""
    judge = picture_judge()
    reward = RubricReward(judge.parser(), judge, RubricConfig(**settings))  # type: ignore[arg-type]
    answer = reward.score([prompt] * len(pictures), np.stack(pictures), context([0] * len(pictures)))
    return answer.values["rubric"].tolist(), answer.gates["rubric.essential"].tolist()


def test_a_wrong_thing_style_or_colour_each_lowers_the_rubric() -> None:
    right = shape("disc", colour=COLOURS["red"])
    wrong = [
        shape("cross", colour=COLOURS["red"]),
        shape("disc", colour=COLOURS["red"], style="outline"),
        shape("disc", colour=COLOURS["blue"]),
    ]
    values, gates = scored("a red disc, filled style", [right, *wrong])
    assert min(values[:1]) > 0.9
    assert max(values[1:]) < values[0] - 0.15
    assert gates == [True, False, True, True]


def test_a_picture_with_two_faults_is_worth_less_than_with_either() -> None:
    one, other = shape("disc", colour=COLOURS["blue"]), shape("disc", colour=COLOURS["red"], style="outline")
    both = shape("disc", colour=COLOURS["blue"], style="outline")
    values, _ = scored("a red disc, filled style", [one, other, both])
    assert values[2] < min(values[:2])


def row_of_things(thing: str, count: int) -> Pictures:
    picture = None
    for number in range(count):
        picture = shape(thing, at=(32, 12 + 20 * number), size=SMALL, onto=picture)
    assert picture is not None
    return picture


def test_the_right_number_of_things_is_worth_more_than_one_fewer_or_more() -> None:
    values, _ = scored("two discs", [row_of_things("disc", count) for count in (1, 2, 3)], essential_above=0.01)
    assert values[1] > values[0] + 0.2
    assert values[1] > values[2] + 0.2


def test_things_that_lie_as_asked_are_worth_more_than_the_other_way_round() -> None:
    def beside(left: str, right: str) -> Pictures:
        return shape(right, at=(32, 50), size=SMALL, onto=shape(left, at=(32, 14), size=SMALL))

    pictures = [beside("disc", "cross"), beside("cross", "disc")]
    to_the_left, _ = scored("a disc to the left of a cross", pictures, essential_above=0.01)
    to_the_right, _ = scored("a disc to the right of a cross", pictures, essential_above=0.01)
    assert to_the_left[0] > to_the_left[1] + 0.15
    assert to_the_right[1] > to_the_right[0] + 0.15


def test_the_order_of_requirements_changes_nothing() -> None:
    judge, picture = picture_judge(), shape("disc")[None]
    (rubric,) = judge.parser()(["two red discs, outline style"])
    given = judge.answer(picture, [rubric])[0]
    turned = judge.answer(picture, [tuple(reversed(rubric))])[0]
    np.testing.assert_array_equal(given, turned[::-1])


def test_the_rubric_is_the_weighted_mean_of_what_was_answered() -> None:
    rubric = (required("object", "it shows a"), required("style", "in b style"), required("other", "c"))
    found = np.array([0.9, 0.4, np.nan], np.float32)
    assert weighted_mean(rubric, found) == pytest.approx((3 * 0.9 + 2 * 0.4) / (3 + 2))
    assert all_hold(found) == pytest.approx(0.9 * 0.4)


def test_one_holistic_score_is_the_chance_that_all_holds_and_has_no_gate() -> None:
    judge, pictures = picture_judge(), np.stack([shape("disc"), shape("disc", style="outline")])
    prompts, groups = ["a disc, filled style"] * 2, context([0, 0])
    plain = RubricReward(judge.parser(), judge).score(prompts, pictures, groups)
    whole = RubricReward(judge.parser(), judge, RubricConfig(form="holistic")).score(prompts, pictures, groups)
    assert not whole.gates
    np.testing.assert_allclose(
        whole.values["rubric"], plain.values["rubric.object"] * plain.values["rubric.style"], rtol=1e-5
    )


def test_values_by_kind_apply_to_the_prompts_that_ask_for_the_kind() -> None:
    judge = picture_judge()
    answer = RubricReward(judge.parser(), judge).score(
        ["a disc", "a disc, filled style"], np.stack([shape("disc")] * 2), context([0, 1])
    )
    assert answer.applies["rubric.style"].tolist() == [False, True]
    assert answer.applies["rubric.object"].tolist() == [True, True]


def test_a_prompt_of_which_nothing_can_be_checked_is_listed_and_refused() -> None:
    judge = picture_judge()
    reward = RubricReward(judge.parser(), judge)
    assert reward.unanswerable(["a disc", "a dragon", "a dragon, filled style"]) == ["a dragon"]
    with pytest.raises(RewardError, match="nothing that 'a dragon' requires can be checked"):
        reward.score(["a dragon"], shape("disc")[None], context([0]))


class Answers:
    """A judge that says what it is told."""

    identity, parts = "says what it is told", frozenset({"nothing"})

    def __init__(self, told: list[list[float]]) -> None:
        self.told = told

    def knows(self, requirement: Requirement) -> bool:
        return True

    def answer(self, pictures: Pictures, rubrics: Sequence[Rubric]) -> list[Probabilities]:
        return [np.array(one, np.float32) for one in self.told]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([[0.5]], "answered for 1 of 2 pictures"),
        ([[0.5], [0.5, 0.5]], "to the 1 requirements of 'a disc'"),
        ([[0.5], [1.5]], "must give a probability"),
        ([[0.5], [float("nan")]], "must give a probability"),
    ],
)
def test_a_judge_whose_answers_are_none_is_said_to_be_broken(told: list[list[float]], why: str) -> None:
    reward = RubricReward(lambda prompts: [(required("object", "it shows disc"),)] * len(prompts), Answers(told))
    with pytest.raises(RewardError, match=why):
        reward.score(["a disc"] * 2, np.stack([shape("disc")] * 2), context([0, 0]))


def test_a_calibrated_judge_is_right_about_as_often_as_it_says() -> None:
    judge, (pictures, _, things) = picture_judge(), random_shapes(240, seed=11)
    claimed = np.random.default_rng(0).integers(3, size=len(things))
    rubrics = [(required("object", "it shows it", subject=THINGS[one]),) for one in claimed]
    given = np.concatenate(judge.answer(pictures, rubrics))
    true = claimed == things
    assert given[true].mean() > 0.85
    assert given[~true].mean() < 0.15


def test_a_saved_judge_answers_as_before_and_one_of_evaluation_is_no_judge_of_rewards(tmp_path: Path) -> None:
    judge = picture_judge()
    save_picture_judge(judge, tmp_path / "judge.safetensors")
    again = load_picture_judge(tmp_path / "judge.safetensors")
    rubrics = judge.parser()(["two red discs, outline style"])
    before, after = (one.answer(shape("disc")[None], rubrics)[0] for one in (judge, again))
    np.testing.assert_allclose(before, after, atol=0.05)
    save_judge(trained_judge(), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a picture_judge"):
        load_picture_judge(tmp_path / "other.safetensors")


def test_judges_of_other_seeds_are_other_parts_and_calibration_is_none() -> None:
    judge = picture_judge()
    assert judge.parts == PictureJudge(trained_judge()).parts
    assert judge.identity != PictureJudge(trained_judge()).identity
    assert not judge.parts & PictureJudge(load_judge(shipped("judge"))).parts


def test_the_shipped_names_can_be_asked_for() -> None:
    judge = PictureJudge(load_judge(shipped("judge")))
    (rubric,) = judge.parser()(["two red apples to the left of a key, noto style"])
    assert [judge.knows(one) for one in rubric] == [True] * len(rubric)
    assert [one.kind for one in rubric] == ["object", "count", "colour", "object", "relation", "style"]


@pytest.mark.parametrize("wanted", range(4))
def test_the_chance_of_a_number_is_that_of_all_ways_to_get_it(wanted: int) -> None:
    chances = [0.9, 0.5, 0.2]
    ways = np.array(np.meshgrid(*[[0, 1]] * 3)).reshape(3, -1).T
    expected = sum(
        np.prod([p if there else 1 - p for p, there in zip(chances, way, strict=True)])
        for way in ways
        if way.sum() == wanted
    )
    assert chance_of_count(chances, wanted) == pytest.approx(float(expected))


def flooded(mask: Pictures) -> int:
    """Regions that touch by edge or corner, counted by filling."""
    left, count = {tuple(place) for place in np.argwhere(mask).tolist()}, 0
    while left:
        count, edge = count + 1, [left.pop()]
        while edge:
            y, x = edge.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
    return count


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_regions_are_those_that_filling_finds(share: float) -> None:
    mask = np.random.default_rng(3).random((24, 31)) < share
    labels, count = regions(mask)
    assert count == flooded(mask) == len(np.unique(labels[mask]))
    assert ((labels > 0) == mask).all()


def test_pieces_are_found_on_any_ground_and_crumbs_are_none() -> None:
    on_blue = np.where(row_of_things("disc", 3) == 255, np.uint8(0), row_of_things("disc", 3))
    on_blue[2, 2] = 255
    pieces = pieces_of(on_blue)
    assert len(pieces) == 3
    assert sorted(round(piece.right * 64) for piece in pieces) == [12, 32, 52]


def test_settings_that_make_no_gate_are_refused() -> None:
    with pytest.raises(ConfigError, match="essential_above is 1"):
        RubricConfig(essential_above=1.0)
