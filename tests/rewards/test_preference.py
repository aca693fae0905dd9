"""What is preferred, learnt from pairs: Bradley-Terry, measured on prompts that were not learnt from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pleinair.model.image_encoder import Picture
from pleinair.model.preference import PreferenceHead, PreferenceHeadConfig, bradley_terry_loss
from pleinair.model.two_tower import TwoTower, TwoTowerConfig
from pleinair.records.errors import ConfigError, RewardError
from pleinair.rewards.preference import (
    Features,
    PreferenceReward,
    PreferenceSource,
    PreferenceTraining,
    TowerFeatures,
    fit_preference,
    load_preference,
    save_preference,
    split_by_prompt,
)
from tests.rewards.shapes import context
from tests.rewards.small_rewards import noise


def taste(num: int = 600, width: int = 8, seed: int = 0) -> tuple[Features, Features, list[str]]:
    """Pairs whose winner is drawn by a hidden score: P(first) = sigmoid(2 (s_1 - s_2)), s the first feature less the second."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, num, width)).astype(np.float32)
    margin = 2 * ((first - second) @ np.array([1, -1] + [0] * (width - 2), np.float32))
    wins = rng.random(num) < 1 / (1 + np.exp(-margin))
    winners, losers = np.where(wins[:, None], first, second), np.where(wins[:, None], second, first)
    return winners, losers, [f"prompt {row // 6}" for row in range(num)]


def test_the_loss_is_bradley_and_terrys() -> None:
    winners, losers = [0.3, -1.2, 4.0], [0.1, 2.0, -3.0]
    expected = 0.0
    for winner, loser in zip(winners, losers, strict=True):
        expected -= math.log(math.exp(winner) / (math.exp(winner) + math.exp(loser))) / 3
    given = bradley_terry_loss(torch.tensor(winners), torch.tensor(losers))
    assert float(given) == pytest.approx(expected, rel=1e-6)


def test_the_loss_pulls_a_winner_up_by_how_unlikely_it_was_to_win() -> None:
    winner = torch.tensor([0.5, -1.0], requires_grad=True)
    bradley_terry_loss(winner, torch.zeros(2)).backward()  # type: ignore[no-untyped-call]
    assert winner.grad is not None
    expected = [-(1 - 1 / (1 + math.exp(-score))) / 2 for score in (0.5, -1.0)]
    assert winner.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_taste_is_found_and_told_how_surely() -> None:
    winners, losers, prompts = taste()
    head, report = fit_preference(winners, losers, prompts, "made up")
    # The hidden score itself is right in 85 of 100 such pairs.
    assert report.accuracy > 0.78
    assert report.calibration_error < 0.08
    weights = (head.linear.weight[0] / head.std_F).detach().numpy()
    assert abs(weights[0] - 2) < 0.7
    assert abs(weights[1] + 2) < 0.7
    assert np.abs(weights[2:]).max() < 0.5


def test_of_labels_by_chance_nothing_is_learnt() -> None:
    winners, losers, prompts = taste()
    swap = np.random.default_rng(1).random(len(winners)) < 0.5
    winners, losers = np.where(swap[:, None], losers, winners), np.where(swap[:, None], winners, losers)
    _, report = fit_preference(winners, losers, prompts, "made up")
    assert abs(report.accuracy - 0.5) < 0.12
    assert report.calibration_error < 0.15


def test_a_taste_that_is_no_line_needs_the_mlp() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 900, 2)).astype(np.float32)
    wins = np.abs(first[:, 0]) < np.abs(second[:, 0])
    pair = np.where(wins[:, None], first, second), np.where(wins[:, None], second, first)
    prompts = [str(row // 3) for row in range(900)]
    straight = fit_preference(*pair, prompts, "made up")[1]
    bent = fit_preference(*pair, prompts, "made up", PreferenceTraining(hidden=16, penalty=0.0))[1]
    assert straight.accuracy < 0.6
    assert bent.accuracy > 0.85


def test_pairs_of_a_prompt_stay_together() -> None:
    prompts = [f"prompt {row % 40}" for row in range(200)]
    parts = split_by_prompt(prompts, PreferenceTraining())
    by_prompt = {prompt: {int(parts[row]) for row in range(200) if prompts[row] == prompt} for prompt in prompts}
    assert {len(found) for found in by_prompt.values()} == {1}
    assert [int((parts == part).sum()) for part in (0, 1, 2)] == [140, 20, 40]
    with pytest.raises(ConfigError, match="pairs of 2 prompts"):
        split_by_prompt(["a", "b"], PreferenceTraining())


class MeanColour:
    """An encoder of pictures: the mean of each channel, in each quarter."""

    name, width = "mean-colour", 12

    def embed(self, pictures: Sequence[Picture]) -> Any:
        half = pictures[0].shape[0] // 2
        quarters = (slice(0, half), slice(half, None))
        rows = [[one[y, x].mean(axis=(0, 1)) for y in quarters for x in quarters] for one in pictures]
        return np.array(rows, np.float32).reshape(len(pictures), -1) / 255


def tower() -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(TwoTowerConfig(encoder_name="mean-colour", embedding_width=12, features=6, hidden=8, buckets=64))


def test_a_reward_scores_pictures_of_prompts_and_is_kept_in_a_file(tmp_path: Path) -> None:
    features = TowerFeatures(tower(), MeanColour())
    bright, dark = (noise(60) // 2 + 120).astype(np.uint8), (noise(60, seed=1) // 2).astype(np.uint8)
    prompts = [f"a fox {row // 2}" for row in range(60)]
    head, report = fit_preference(features(prompts, bright), features(prompts, dark), prompts, features.name)
    save_preference(head, report, tmp_path / "preference.safetensors")
    saved = load_preference(tmp_path / "preference.safetensors")
    again = saved.head
    assert (saved.report, saved.source) == (report, PreferenceSource())
    reward = PreferenceReward(again, features)
    told = [reward.score(prompts, pictures, context(range(60))).values["preference"] for pictures in (bright, dark)]
    assert (told[0] > told[1]).mean() > 0.95
    with pytest.raises(ConfigError, match="the head was fitted on 'tower"):
        PreferenceReward(again, lambda prompts, pictures: np.zeros((len(prompts), 13), np.float32))


def test_features_of_another_width_are_said_to_be_wrong() -> None:
    reward = PreferenceReward(
        PreferenceHead(PreferenceHeadConfig(features=3)),
        lambda prompts, pictures: np.zeros((len(prompts), 2), np.float32),
    )
    with pytest.raises(RewardError, match=r"features have shape \(1, 2\), the head takes 3"):
        reward.score(["a"], noise(1), context([0]))
