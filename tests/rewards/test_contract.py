"""What every reward owes, here and behind HTTP: one finite number per picture, the same twice, whatever is beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from pleinair.endpoints import Endpoint
from pleinair.model.preference import PreferenceHead, PreferenceHeadConfig
from pleinair.records.rewards import Reward, RewardValues
from pleinair.rewards.answers import check_answer, check_bounds
from pleinair.rewards.artefact import ArtefactReward, ArtefactTraining, fit_artefacts
from pleinair.rewards.diversity import DiversityReward
from pleinair.rewards.gold import Gold
from pleinair.rewards.identity import Bounded, bounds_of, identity_of, is_pointwise, parts_of
from pleinair.rewards.kept import KeptReward
from pleinair.rewards.preference import PreferenceReward, TowerFeatures
from pleinair.rewards.remote import RemoteConfig, RemoteReward
from pleinair.rewards.rubric import RubricConfig, RubricReward
from pleinair.rewards.server import serving
from pleinair.rewards.writing import WritingReward, true_render
from tests.rewards.shapes import context, random_shapes, untrained_judge
from tests.rewards.test_preference import MeanColour, tower
from tests.rewards.test_writing import reads_darkness

PROMPTS = ['a red disc that says "OPEN"', "two crosses, outline style", "a disc to the left of a bar"]
GROUPS = [0, 0, 1, 1, 1, 2, 2, 2]


def rubric() -> Reward:
    judge = untrained_judge()
    return RubricReward(judge.parser(), judge, RubricConfig(essential_above=0.3))


def holistic() -> Reward:
    judge = untrained_judge()
    return RubricReward(judge.parser(), judge, RubricConfig(form="holistic"), name="holistic")


def writing() -> Reward:
    return WritingReward(reads_darkness)


def artefact() -> Reward:
    few = ArtefactTraining(num_steps=4, batch_size=16)
    return ArtefactReward(fit_artefacts(random_shapes(40)[0], config=few)[0], gate_above=0.4)


def preference() -> Reward:
    features = TowerFeatures(tower(), MeanColour())
    head = PreferenceHead(PreferenceHeadConfig(features=13, features_by=features.name))
    torch.nn.init.normal_(head.linear.weight, generator=torch.Generator().manual_seed(0))
    return PreferenceReward(head, features)


def diversity() -> Reward:
    judge = untrained_judge()
    return DiversityReward(judge.features, identity=judge.identity, parts=judge.parts)


MAKES: dict[str, Callable[[], Reward]] = {
    make.__name__: cache(make) for make in (rubric, holistic, writing, artefact, preference, diversity)
}


BOUNDS = {**dict.fromkeys(MAKES, (0.0, 1.0)), "diversity": (0.0, 2.0), "preference": None}


@contextmanager
def here(make: Callable[[], Reward], place: Path) -> Iterator[Reward]:
    yield make()


@contextmanager
def served(make: Callable[[], Reward], place: Path) -> Iterator[Reward]:
    reward = make()
    with serving([reward]) as url:
        yield RemoteReward(RemoteConfig(endpoint=Endpoint(url=url, model=reward.name), batch_size=3))


@contextmanager
def kept(make: Callable[[], Reward], place: Path) -> Iterator[Reward]:
    remembering = KeptReward(make(), place)  # type: ignore[arg-type]
    yield remembering
    remembering.close()


def asked() -> tuple[list[str], np.ndarray]:  # type: ignore[type-arg]
    pictures = random_shapes(8, seed=3)[0]
    pictures[1] = true_render("OPEN", 64)
    return [PROMPTS[group] for group in GROUPS], pictures


def taken(answer: RewardValues, rows: list[int]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Everything said of some pictures, NaN where a value does not apply."""
    named = {}
    for name, told in answer.values.items():
        applies = answer.applies.get(name, np.ones(len(told), np.bool_))
        named[name] = np.where(applies, told, np.nan)[rows]
    return {name: told for name, told in named.items() if not np.isnan(told).all()} | {
        name: told[rows] for name, told in answer.gates.items()
    }


WAYS = [(make, way) for make in MAKES for way in (here, served, kept) if (make, way) != ("diversity", kept)]
"""A reward of the whole group is not remembered."""


@pytest.mark.parametrize(("name", "way"), WAYS, ids=lambda one: getattr(one, "__name__", one))
def test_a_reward_keeps_the_contract(name: str, way: Callable[..., Iterator[Reward]], tmp_path: Path) -> None:
    prompts, pictures = asked()
    before, whole = pictures.copy(), list(range(8))
    with way(MAKES[name], tmp_path) as reward:
        first, second = (reward.score(prompts, pictures, context(GROUPS)) for _ in range(2))
        check_answer(reward.name, first, prompts, context(GROUPS))
        assert bounds_of(reward) == BOUNDS[name]
        check_bounds(reward.name, bounds_of(reward), first, prompts, context(GROUPS))
        assert {told.dtype for told in first.values.values()} == {np.dtype(np.float32)}
        assert {told.dtype for told in (*first.gates.values(), *first.applies.values())} <= {np.dtype(np.bool_)}
        np.testing.assert_array_equal(pictures, before)
        np.testing.assert_equal(taken(second, whole), taken(first, whole))

        turned = whole[::-1]
        backwards = reward.score(
            [prompts[row] for row in turned], pictures[turned], context([GROUPS[row] for row in turned])
        )
        close(taken(backwards, whole), taken(first, turned))

        rows = [row for row in whole if GROUPS[row] == 1]
        alone = reward.score([prompts[row] for row in rows], pictures[rows], context([1] * len(rows)))
        close(taken(alone, list(range(len(rows)))), taken(first, rows))


def close(told: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    """The same but for the rounding of a batch of another size."""
    assert set(told) == set(expected)
    for name, values in told.items():
        np.testing.assert_allclose(values.astype(float), expected[name].astype(float), atol=2e-4, err_msg=name)


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_a_reward_tells_what_it_is_made_of(make: Callable[[], Reward]) -> None:
    reward = make()
    assert identity_of(reward)
    assert parts_of(reward)
    assert isinstance(reward, Bounded)
    assert is_pointwise(reward) == (reward.name != "diversity")
    assert Gold(reward).score(*asked(), context(GROUPS)).values.keys() == {
        f"gold.{name}" for name in reward.score(*asked(), context(GROUPS)).values
    }
