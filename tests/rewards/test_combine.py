"""Rewards put together: gates first, each value in its group, and nothing learnt from an answer that is none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pleinair.records.errors import ConfigError, RewardError
from pleinair.records.rewards import Assessment, Pictures, Reward, RewardContext, RewardValues
from pleinair.rewards.combine import MixConfig, RewardMix
from pleinair.rewards.gold import Gold
from pleinair.rewards.statistics import StatisticsConfig
from tests.rewards.shapes import context
from tests.rewards.small_rewards import Told, noise

GROUPS = [0, 0, 0, 0, 1, 1, 1, 1]


def assessed(rewards: Sequence[Reward], groups: Sequence[int] = GROUPS, **config: Any) -> Assessment:
    weights = config.pop("weights", {reward.name: 1.0 for reward in rewards})
    mix = RewardMix(rewards, MixConfig(weights=weights, **config))
    return mix.assess([""] * len(groups), noise(len(groups)), context(groups))


def test_gdpo_is_each_value_normalised_in_its_group_then_the_sum_in_the_batch() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(2, 8)).astype(np.float32), (1.0, 0.3)
    given = assessed(
        [Told("a", values[0].tolist()), Told("b", (100 * values[1]).tolist())], weights={"a": 1.0, "b": 0.3}
    )
    total = np.zeros(8)
    for weight, of_reward in zip(weights, (values[0], 100 * values[1]), strict=True):
        for rows in (slice(0, 4), slice(4, 8)):
            total[rows] += weight * (of_reward[rows] - of_reward[rows].mean()) / of_reward[rows].std()
    np.testing.assert_allclose(given.advantages, total / total.std(), rtol=1e-4)


def test_grpo_is_the_weighted_sum_normalised_in_its_group() -> None:
    values = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    given = assessed([Told("a", values[0].tolist()), Told("b", values[1].tolist())], normalisation="grpo")
    total = values.sum(axis=0).astype(np.float64).reshape(2, 4)
    expected = (total - total.mean(axis=1, keepdims=True)) / total.std(axis=1, keepdims=True)
    np.testing.assert_allclose(given.advantages, expected.ravel(), rtol=1e-4)


def test_a_value_of_a_hundredfold_scale_drowns_the_other_in_grpo_and_not_in_gdpo() -> None:
    small, large = [0, 1, 0, 1, 0, 1, 0, 1], [0, 0, 100, 100, 0, 0, 100, 100]
    rewards = [Told("small", small), Told("large", large)]
    by_sum, by_each = (assessed(rewards, normalisation=one).advantages for one in ("grpo", "gdpo"))
    assert by_sum[1] - by_sum[0] < 0.05
    assert by_each[1] - by_each[0] == pytest.approx(float(by_each[2] - by_each[0]), rel=1e-4)


numbers = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=100)
@given(
    values=st.lists(st.tuples(numbers, numbers, st.booleans()), min_size=8, max_size=8),
    weights=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
    normalisation=st.sampled_from(["gdpo", "grpo"]),
    margin=st.floats(0, 2),
)
def test_no_values_and_no_weights_lift_a_picture_that_fails_a_gate_above_one_that_passes(
    values: list[tuple[float, float, bool]], weights: tuple[float, float], normalisation: str, margin: float
) -> None:
    first, second, passes = zip(*values, strict=True)
    given = assessed(
        [Told("a", first, gate=passes), Told("b", second)],
        weights=dict(zip(("a", "b"), weights, strict=True)),
        normalisation=normalisation,
        gate_margin=margin,
        clip=float("inf"),
    )
    for rows in (range(4), range(4, 8)):
        failed = [given.advantages[row] for row in rows if not passes[row]]
        passed = [given.advantages[row] for row in rows if passes[row]]
        assert max(failed, default=-np.inf) <= min(passed, default=np.inf) + 1e-5
        assert max(failed, default=0.0) <= 1e-5


def test_a_picture_that_fails_a_gate_cannot_be_bought_out_by_a_value_however_high() -> None:
    bribed = Told("a", [9e5, 1, 2, 3, 1, 2, 3, 4], gate=[False, *[True] * 7])
    given = assessed([bribed])
    assert given.advantages[0] == given.advantages[:4].min()
    assert given.reward[0] < 1
    assert given.values["a"][0] == 9e5


def test_a_gate_teaches_even_where_all_values_agree() -> None:
    given = assessed([Told("a", [1.0] * 8, gate=[False, True, True, True] * 2)])
    assert given.advantages[0] < 0 < given.advantages[1]


def test_pictures_that_fail_are_alike_whatever_they_earned() -> None:
    given = assessed([Told("a", [5, 9, 1, 2, 3, 4, 5, 6], gate=[False, False, True, True, *[True] * 4])])
    assert given.advantages[0] == given.advantages[1]


def test_a_group_in_which_all_fail_or_all_agree_has_nothing_to_tell() -> None:
    failing = Told("a", [1, 2, 3, 4, 1, 2, 3, 4], gate=[False] * 4 + [True] * 4)
    np.testing.assert_array_equal(assessed([failing]).advantages[:4], 0)
    agreeing = Told("a", [0.1] * 4 + [1, 2, 3, 4])
    np.testing.assert_array_equal(assessed([agreeing]).advantages[:4], 0)


def test_a_group_that_agrees_but_for_noise_is_not_blown_up_to_one_that_does_not() -> None:
    nearly = [0.5 + 1e-4 * number for number in range(4)]
    given = assessed([Told("a", [*nearly, 0, 1, 2, 3])])
    assert np.abs(given.advantages[:4]).max() < 0.01 * np.abs(given.advantages[4:]).max()
    alone = assessed([Told("a", [*nearly, 0, 1, 2, 3])], std_floor=0.0)
    assert np.abs(alone.advantages[:4]).max() == pytest.approx(float(np.abs(alone.advantages[4:]).max()), rel=1e-3)


def test_a_batch_in_which_no_group_has_much_to_tell_is_not_blown_up_either() -> None:
    mix = RewardMix([told := Told("a", [0, 1, 2, 3] * 2)], MixConfig(weights={"a": 1.0}))
    mix.assess([""] * 8, noise(8), context(GROUPS))
    told.values["a"] = np.array([1 + 1e-4 * number for number in range(4)] * 2, np.float32)
    assert np.abs(mix.assess([""] * 8, noise(8), context(GROUPS)).advantages).max() < 0.02


def test_a_value_that_does_not_apply_to_a_group_leaves_the_others_in_charge() -> None:
    plain = assessed([Told("a", [1, 2, 3, 4, 4, 3, 2, 1])])
    silent = Told("b", [7, -7, 7, -7, 1, 2, 3, 4], applies=[False] * 4 + [True] * 4)
    given = assessed([Told("a", [1, 2, 3, 4, 4, 3, 2, 1]), silent])
    np.testing.assert_allclose(
        given.advantages[:4] / given.advantages[0], plain.advantages[:4] / plain.advantages[0], rtol=1e-5
    )
    np.testing.assert_allclose(given.reward, [2, 4, 6, 8, 5, 5, 5, 5])


def test_values_without_a_weight_are_shown_and_not_climbed() -> None:
    told = Told("a", {"a": [1, 2, 3, 4] * 2, "a.detail": [9, 0, 0, 0] * 2})
    given = assessed([told])
    plain = assessed([Told("a", [1, 2, 3, 4] * 2)])
    np.testing.assert_array_equal(given.advantages, plain.advantages)
    assert given.values["a.detail"][0] == 9


def test_advantages_are_clipped() -> None:
    assert assessed([Told("a", [0] * 7 + [1.0])], groups=[0] * 8, clip=1.5).advantages.max() == 1.5


def test_gold_is_scored_and_logged_and_never_climbed() -> None:
    gold = Gold(Told("true taste", [4, 3, 2, 1] * 2, gate=[False] * 8))
    mix = RewardMix([Told("a", [1, 2, 3, 4] * 2)], MixConfig(weights={"a": 1.0}), gold=[gold])
    given = mix.assess([""] * 8, noise(8), context(GROUPS))
    np.testing.assert_array_equal(given.values["gold.true taste"], [4, 3, 2, 1] * 2)
    np.testing.assert_array_equal(given.advantages, assessed([Told("a", [1, 2, 3, 4] * 2)]).advantages)
    assert not given.gates
    assert mix.statistics()["gold.true taste"].count == 8


def test_a_mix_with_a_gold_reward_in_it_is_refused() -> None:
    told, gold = Told("a", [1.0]), Gold(Told("b", [1.0]))
    with pytest.raises(ConfigError, match=r"'gold\.b' is held out"):
        RewardMix([told, gold], MixConfig(weights={"a": 1.0}))  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"'gold\.b' is held out"):
        RewardMix([told], MixConfig(weights={"a": 1.0, "gold.b": 0.1}), gold=[gold])
    with pytest.raises(ConfigError, match="built on the same, itself"):
        RewardMix([told], MixConfig(weights={"a": 1.0}), gold=[Gold(told)])
    with pytest.raises(ConfigError, match="built on the same, with judge-of-seed-1"):
        RewardMix(
            [Told("a", [1.0], parts=frozenset({"judge-of-seed-1"}))],
            MixConfig(weights={"a": 1.0}),
            gold=[Gold(Told("b", [1.0], parts=frozenset({"judge-of-seed-1", "other"})))],
        )


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"weights": {}}, "weights is empty"),
        ({"weights": {"a": -1.0}}, "the weight of 'a' is -1"),
        ({"weights": {"a": float("nan")}}, "the weight of 'a' is nan"),
        ({"weights": {"b": 1.0}}, "'b', which no reward gives: there are a"),
        ({"weights": {"a": 1.0}, "normalisation": "sum"}, "normalisation is 'sum'"),
        ({"weights": {"a": 1.0}, "std_floor": -1}, "std_floor is -1"),
        ({"weights": {"a": 1.0}, "clip": 0}, "clip is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_value(config: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        RewardMix([Told("a", [1.0])], MixConfig(**config))


def test_two_rewards_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two rewards are called 'a'"):
        RewardMix([Told("a", [1.0]), Told("a", [1.0])], MixConfig(weights={"a": 1.0}))


SOUND = [0.1, 0.2, 0.3, 0.4] * 2


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (Told("a", [*SOUND[:7], float("nan")]), r"a is nan for 1 of 8 pictures, first for 'p7', seed 7"),
        (Told("a", [float("inf"), *SOUND[1:]]), "a is inf for 1 of 8 pictures"),
        (Told("a", SOUND[:5]), r"a has shape \(5,\) for 8 pictures"),
        (Told("a", {"b": SOUND}), "gave 'b': the names of its values and gates must begin with 'a'"),
        (Told("a", {}), "a gave no value at all"),
        (Told("a", {"a.detail": SOUND}), "no reward gave 'a', which has a weight"),
        (Told("a", [*SOUND[:7], 1e6]), r"a is 1e\+06 for 1 of 8 pictures, over 30 standard deviations"),
        (Told("a", [*SOUND[:7], -1e6]), r"a is -1e\+06 for 1 of 8"),
    ],
)
def test_an_answer_that_is_none_stops_with_a_sentence_and_leaves_the_mix_as_it_was(broken: Told, why: str) -> None:
    prompts = [f"p{number}" for number in range(8)]
    config = MixConfig(weights={"a": 1.0}, statistics=StatisticsConfig(window=8))
    mix, untouched = (RewardMix([Told("a", SOUND)], config) for _ in range(2))
    for one in (mix, untouched):
        one.assess(prompts, noise(8), context(GROUPS))
    sound, mix.rewards = mix.rewards, (broken,)
    with pytest.raises(RewardError, match=why):
        mix.assess(prompts, noise(8), context(GROUPS))
    mix.rewards = sound
    assert mix.state() == untouched.state()
    again, never = (one.assess(prompts, noise(8), context(GROUPS)) for one in (mix, untouched))
    np.testing.assert_array_equal(again.advantages, never.advantages)


class Batches(Told):
    """Another batch each time, of 4 groups of 8."""

    def __init__(self, batches: Sequence[Sequence[float]], bounds: tuple[float, float] | None = None) -> None:
        super().__init__("a", batches[0])
        self.left, self.bounds = list(batches), bounds

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        self.values["a"] = np.array(self.left.pop(0), np.float32)
        return super().score(prompts, pictures, context)


def assess_all(reward: Batches, statistics: StatisticsConfig | None = None) -> int:
    """How many batches were accepted."""
    mix = RewardMix([reward], MixConfig(weights={"a": 1.0}, statistics=statistics or StatisticsConfig()))
    done = 0
    while reward.left:
        mix.assess([""] * 32, noise(32), context([row // 8 for row in range(32)]))
        done += 1
    return done


def honest(count: int) -> list[list[float]]:
    return np.random.default_rng(0).normal(0.5, 0.2, (count, 32)).clip(0, 1).tolist()


DECEIVED = np.random.default_rng(1).normal(0.99, 0.01, (40, 32)).clip(0, 1).tolist()


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_a_reward_that_is_deceived_inside_its_bounds_stops_the_run_at_the_first_batch(bounds: Any) -> None:
    reward = Batches([*honest(10), *DECEIVED], bounds)
    with pytest.raises(
        RewardError,
        match=r"a is 0\.9\d* on average in this batch and was 0\.\d* in .* errors at once, .* raise statistics\.leap",
    ):
        assess_all(reward)
    assert len(reward.left) == 39
    never = StatisticsConfig(leap=float("inf"))
    assert assess_all(Batches([*honest(10), *DECEIVED], bounds), never) == 50


@pytest.mark.parametrize("before", [honest(1), [[0.5] * 32] * 7, [[0.0] * 32] * 7])
@pytest.mark.parametrize("wrong", [1e6, -1e6])
def test_a_value_out_of_all_proportion_is_refused_early_and_after_constant_batches(
    before: list[list[float]], wrong: float
) -> None:
    spoilt = [wrong, *honest(1)[0][1:]]
    with pytest.raises(RewardError, match=r"a is -?1e\+06 for 1 of 32 pictures, over 30 standard deviations"):
        assess_all(Batches([*before, spoilt]))
    never = StatisticsConfig(outlier=float("inf"))
    assert assess_all(Batches([*before, spoilt]), never) == len(before) + 1


def test_a_value_outside_the_bounds_its_reward_tells_of_is_refused_in_the_first_batch() -> None:
    wrong = [*honest(1)[0][:31], 1.2]
    with pytest.raises(
        RewardError,
        match=r"a is 1\.2 for 1 of 32 pictures, first for '', seed 31, and a says .* lie in 0 to 1: .* mend it",
    ):
        assess_all(Batches([wrong], (0.0, 1.0)))
    assert assess_all(Batches([wrong])) == 1
    silent = Batches([wrong], (0.0, 1.0))
    silent.applies = {"a": np.arange(32) < 24}
    assert assess_all(silent) == 1, "where a value does not apply, any number may stand"


def test_gold_outside_its_bounds_is_refused_too() -> None:
    gold, told = Batches([[2.0] * 32], (0.0, 1.0)), Told("b", honest(1)[0])
    mix = RewardMix([told], MixConfig(weights={"b": 1.0}), gold=[Gold(gold)])
    with pytest.raises(RewardError, match=r"gold\.a is 2 for 32 of 32"):
        mix.assess([""] * 32, noise(32), context([row // 8 for row in range(32)]))


def test_limits_may_change_in_a_run_and_weights_may_not() -> None:
    def identity(**changes: Any) -> str:
        return RewardMix([Told("a", [1.0])], MixConfig(**{"weights": {"a": 1.0}, **changes})).identity

    assert identity() == identity(statistics=StatisticsConfig(leap=float("inf"))) != identity(clip=1.0)


def test_a_reward_that_is_one_number_batch_after_batch_is_taken_for_broken() -> None:
    config = MixConfig(weights={"a": 1.0}, statistics=StatisticsConfig(constant_batches=3))
    mix = RewardMix([Told("a", [0.5] * 8)], config)
    for _ in range(2):
        np.testing.assert_array_equal(mix.assess([""] * 8, noise(8), context(GROUPS)).advantages, 0)
    with pytest.raises(RewardError, match=r"a was 0\.5 for every picture of 3 batches"):
        mix.assess([""] * 8, noise(8), context(GROUPS))


def test_a_mix_that_goes_on_from_its_state_assesses_as_one_that_never_stopped() -> None:
    def batch(number: int) -> list[float]:
        return np.random.default_rng(number).normal(size=8).tolist()

    undisturbed = RewardMix([told := Told("a", batch(0))], MixConfig(weights={"a": 1.0}))
    undisturbed.assess([""] * 8, noise(8), context(GROUPS))
    resumed = RewardMix([told], MixConfig(weights={"a": 1.0}))
    resumed.load_state(json.loads(json.dumps(undisturbed.state())))
    told.values["a"] = np.array(batch(1), np.float32)
    first, second = (mix.assess([""] * 8, noise(8), context(GROUPS)) for mix in (undisturbed, resumed))
    np.testing.assert_array_equal(first.advantages, second.advantages)
    assert undisturbed.state() == resumed.state()
    with pytest.raises(ConfigError, match="no state of a value's statistics"):
        resumed.load_state({"a": {"something": 1}})


def test_mixes_of_other_weights_rewards_or_gold_are_others() -> None:
    def identity(weight: float = 1.0, reward: str = "one", gold: str = "two") -> str:
        told, held = Told("a", [1.0]), Told("b", [1.0])
        told.identity, held.identity = reward, gold
        return RewardMix([told], MixConfig(weights={"a": weight}), gold=[Gold(held)]).identity

    assert identity() == identity()
    assert len({identity(), identity(weight=2.0), identity(reward="three"), identity(gold="three")}) == 4


def test_pictures_that_are_none_are_refused() -> None:
    mix = RewardMix([Told("a", [1.0])], MixConfig(weights={"a": 1.0}))
    with pytest.raises(ValueError, match="2 pictures of 1 prompts"):
        mix.assess([""], noise(2), context([0]))
    with pytest.raises(ValueError, match="float32"):
        mix.assess([""], noise(1).astype(np.float32), context([0]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="passes tells of 2 pictures and there are 1: give all or none"):
        mix.assess([""], noise(1), replace(context([0]), passes=(True, True)))
