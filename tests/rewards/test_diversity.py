"""Diversity: unlike the others of one's group, and of no other group."""

from __future__ import annotations

import numpy as np
import pytest

from pleinair.records.errors import RewardError
from pleinair.records.rewards import Pictures
from pleinair.rewards.combine import MixConfig, RewardMix
from pleinair.rewards.diversity import DiversityReward
from tests.rewards.shapes import context, shape, untrained_judge
from tests.rewards.small_rewards import Told, noise


def test_it_is_one_minus_the_mean_cosine_with_each_other_of_the_group() -> None:
    features, groups = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32), [0, 1, 0, 1, 1, 0, 0]
    answer = DiversityReward(lambda _: features).score([""] * 7, np.zeros((7, 4, 4, 3), np.uint8), context(groups))
    expected = []
    for i in range(7):
        cosines = [
            features[i] @ features[j] / np.linalg.norm(features[i]) / np.linalg.norm(features[j])
            for j in range(7)
            if j != i and groups[j] == groups[i]
        ]
        expected.append(1 - np.mean(cosines))
    np.testing.assert_allclose(answer.values["diversity"], expected, atol=1e-6)


def test_copies_have_none_and_the_one_that_differs_has_most() -> None:
    pictures = np.stack([shape("disc"), shape("disc"), shape("disc"), shape("cross", style="outline")])
    values = DiversityReward(untrained_judge().features).score([""] * 4, pictures, context([0] * 4)).values["diversity"]
    assert values.argmax() == 3
    copies = DiversityReward(untrained_judge().features).score([""] * 3, pictures[:3], context([0] * 3))
    np.testing.assert_allclose(copies.values["diversity"], 0, atol=1e-5)


def test_a_picture_alone_in_its_group_is_compared_with_nothing() -> None:
    pictures = np.stack([shape("disc"), shape("bar"), shape("cross")])
    answer = DiversityReward(untrained_judge().features).score([""] * 3, pictures, context([0, 1, 0]))
    assert answer.applies["diversity"].tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ([True, True, False, True], [0, 0, 1, 0]),
        ([True, True, True, True], [1 / 3, 1 / 3, 1, 1 / 3]),
        ([True, False, False, False], [1 / 3, 1 / 3, 1, 1 / 3]),
    ],
)
def test_a_broken_neighbour_makes_no_sound_picture_diverse(gate: list[bool], expected: list[float]) -> None:
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    rewards = [Told("sound", [1.0] * 4, gate=gate), DiversityReward(lambda _: features)]
    said = RewardMix(rewards, MixConfig(weights={"diversity": 1.0})).assess([""] * 4, noise(4), context([0] * 4))
    np.testing.assert_allclose(said.values["diversity"], expected, atol=1e-6)


@pytest.mark.parametrize("broken", [np.zeros(3), np.full((3, 2), np.nan), np.zeros((2, 2))])
def test_features_that_are_no_vectors_are_said_to_be_none(broken: Pictures) -> None:
    with pytest.raises(RewardError, match="one finite vector per picture"):
        DiversityReward(lambda _: broken).score([""] * 3, np.zeros((3, 4, 4, 3), np.uint8), context([0] * 3))
