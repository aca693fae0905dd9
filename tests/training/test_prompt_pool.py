from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pleinair.records.errors import ConfigError
from pleinair.training.rollouts.pool import PoolConfig, Posterior, PromptPool
from pleinair.training.rollouts.stored import GroupRewards, group_rewards

PROMPTS = tuple(f"p{place}" for place in range(8))


def group(prompt: str, *rewards: float) -> GroupRewards:
    return group_rewards((prompt,), np.array(rewards, np.float32))[0]


def known(pool: PromptPool, *iterations: tuple[GroupRewards, ...]) -> Posterior:
    posterior = pool.nothing_known()
    for iteration, groups in enumerate(iterations):
        posterior = pool.fold(posterior, iteration, groups)
    return posterior


def pool(prompts: tuple[str, ...] = PROMPTS, **changes: Any) -> PromptPool:
    return PromptPool(prompts, PoolConfig(**changes))


def test_before_any_rollout_all_prompts_weigh_the_same() -> None:
    assert pool().weights(pool().nothing_known()).tolist() == [1 / 8] * 8


def test_a_prompt_whose_pictures_all_earn_the_same_loses_weight_and_the_more_the_longer() -> None:
    subject, mixed, flat = pool(keep=1.0), group("p0", 0.0, 1.0, 0.0, 1.0), group("p1", 1.0, 1.0, 1.0, 1.0)
    once, often = (subject.weights(known(subject, *[(mixed, flat)] * times)) for times in (1, 5))
    assert once[0] > once[2] > once[1], "what was never seen lies between"
    assert often[1] / often[0] < 0.7 * once[1] / once[0]


def test_the_posterior_is_the_evidence_and_a_prior_of_the_mean_over_all_prompts() -> None:
    subject = pool(keep=1.0, prior_pictures=2.0)
    posterior = known(subject, (group("p0", 0.0, 1.0), group("p1", 1.0, 1.0)), (group("p0", 1.0, 3.0),))
    overall_mean, overall_variance = (0 + 1 + 1 + 1 + 1 + 3) / 6, (0.5 + 0 + 2) / 3
    assert subject.means(posterior)[:3] == pytest.approx(
        [(2 * overall_mean + 5) / 6, (2 * overall_mean + 2) / 4, overall_mean]
    )
    assert subject.variances(posterior)[:3] == pytest.approx(
        [(2 * overall_variance + 2.5) / 4, 2 * overall_variance / 3, overall_variance]
    )


@pytest.mark.parametrize("reward", [0.01, 0.99])
def test_saturated_and_hopeless_prompts_lose_the_weight_that_their_deviation_would_give(reward: float) -> None:
    subject = pool(keep=1.0, reward_range=(0.0, 1.0))
    groups = (group("p0", 0.3, 0.32, 0.3, 0.32), group("p1", *(reward + sign * 0.01 for sign in (-1, 1, -1, 1))))
    weights = subject.weights(known(subject, *[groups] * 20))
    assert weights[1] < 0.3 * weights[0]
    assert pool(keep=1.0).weights(known(subject, *[groups] * 20))[1] == pytest.approx(
        pool(keep=1.0).weights(known(subject, *[groups] * 20))[0], rel=0.01
    )


def test_evidence_fades_so_that_a_prompt_comes_back_to_the_others() -> None:
    subject = pool(keep=0.9)
    mixed, flat = group("p0", 0.0, 1.0, 0.0, 1.0), group("p1", 1.0, 1.0, 1.0, 1.0)
    fresh = subject.weights(known(subject, (mixed, flat)))
    later = subject.weights(known(subject, (mixed, flat), *[(mixed,)] * 40))
    assert fresh[1] < 0.6 * fresh[2]
    assert later[1] > 0.9 * later[2]


@settings(max_examples=50)
@given(st.integers(0, 1000), st.integers(0, 50), st.integers(1, 8))
def test_a_choice_is_of_distinct_prompts_and_a_function_of_seed_and_iteration(
    seed: int, iteration: int, count: int
) -> None:
    subject = pool()
    posterior = known(subject, (group("p0", 0.0, 1.0), group("p1", 1.0, 1.0)))
    chosen = subject.choose(posterior, iteration, count, seed)
    assert len(set(chosen)) == count
    assert chosen == pool().choose(posterior, iteration, count, seed)


def test_prompts_are_chosen_by_their_weights() -> None:
    subject = pool(probe_share=0.0)
    posterior = known(subject, *[(group("p0", 0.0, 3.0), group("p1", 1.0, 1.0))] * 3)
    counts = Counter(subject.choose(posterior, iteration, 1, 0)[0] for iteration in range(4000))
    for prompt, weight in zip(PROMPTS, subject.weights(posterior), strict=True):
        assert counts[prompt] / 4000 == pytest.approx(weight, abs=0.025)


def test_a_tenth_of_the_groups_goes_to_prompts_unseen_for_longest_whatever_their_weight() -> None:
    subject = pool(reward_range=(0.0, 1.0), probe_share=0.1)
    hopeless = tuple(group(prompt, *[0.0] * 200) for prompt in PROMPTS[1:])
    posterior = known(subject, hopeless, *[(group("p0", 0.2, 0.8),)] * 10)
    chosen = [subject.choose(posterior, iteration, 1, 0)[0] for iteration in range(2000)]
    probes = [prompt for prompt in chosen if prompt != "p0"]
    assert len(probes) / 2000 == pytest.approx(0.1, abs=0.03)
    assert set(probes) == set(PROMPTS[1:])


class SaturatedHalf:
    """Prompts whose chance of a reward of 1 is learned: half are nearly certain from the start.

    A group moves its prompt's logit by the mean of A times the score, as a policy gradient does.
    """

    def __init__(self, num_prompts: int = 32, group_size: int = 8) -> None:
        self.logits = np.where(np.arange(num_prompts) % 2, 6.0, -1.0)
        self.group_size = group_size

    def roll_out(self, place: int, random: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
        chance = 1 / (1 + np.exp(-self.logits[place]))
        rewards = (random.random(self.group_size) < chance).astype(np.float32)
        self.logits[place] += 2.0 * ((rewards - rewards.mean()) * (rewards - chance)).mean()
        return rewards

    def mean_reward(self) -> float:
        return float((1 / (1 + np.exp(-self.logits))).mean())


def gain(seed: int, config: PoolConfig, num_iterations: int = 30, num_groups: int = 4) -> float:
    world = SaturatedHalf()
    subject = PromptPool([f"p{place}" for place in range(len(world.logits))], config)
    posterior, before, random = subject.nothing_known(), world.mean_reward(), np.random.default_rng(seed)
    for iteration in range(num_iterations):
        chosen = subject.choose(posterior, iteration, num_groups, seed)
        groups = [group(prompt, *world.roll_out(int(prompt[1:]), random)) for prompt in chosen]
        posterior = subject.fold(posterior, iteration, groups)
    return world.mean_reward() - before


def test_with_half_the_prompts_saturated_the_same_rollouts_gain_more_than_uniform_ones() -> None:
    ratios = []
    for seed in range(8):
        ratios.append(gain(seed, PoolConfig()) / gain(seed, PoolConfig(by="uniform")))
    assert np.mean(ratios) > 1.2, ratios


def test_a_pool_that_cannot_serve_is_refused() -> None:
    with pytest.raises(ConfigError, match="the pool has 2 prompts, 1 distinct"):
        PromptPool(["fox", "fox"])
    with pytest.raises(ConfigError, match="9 groups and 8 prompts"):
        pool().choose(pool().nothing_known(), 0, 9, 0)
    with pytest.raises(ConfigError, match="probe_share is 2"):
        pool(probe_share=2)
    with pytest.raises(ConfigError, match=r"reward_range is \(1, 0\): give the lowest first"):
        pool(reward_range=(1, 0))
