"""A reward that is held out: scored and logged beside the others, never climbed, so that it shows when they are hacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pleinair.records.errors import ConfigError
from pleinair.records.rewards import Pictures, Reward, RewardContext, RewardValues
from pleinair.rewards.identity import Bounds, bounds_of, parts_of

GOLD = "gold."


@dataclass(frozen=True)
class Gold:
    """Any reward, its values under `gold.NAME`; a mix takes it as gold only."""

    reward: Reward

    @property
    def name(self) -> str:
        """The reward's, marked."""
        return f"{GOLD}{self.reward.name}"

    @property
    def bounds(self) -> Bounds | None:
        """The reward's."""
        return bounds_of(self.reward)

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        """The reward's values; its gates are none of anybody's."""
        answer = self.reward.score(prompts, pictures, context)
        return RewardValues(
            values={f"{GOLD}{name}": values for name, values in answer.values.items()},
            applies={f"{GOLD}{name}": applies for name, applies in answer.applies.items()},
        )


def refuse_gold(rewards: Sequence[Reward], weighted: Sequence[str], gold: Sequence[Gold]) -> None:
    """Raise ConfigError where something held out would be optimised, itself or by a part it shares."""
    for name in [*(reward.name for reward in rewards), *weighted]:
        if name.startswith(GOLD):
            raise ConfigError(f"{name!r} is held out and cannot be in the mix: give it as gold, without a weight")
    for held in gold:
        for reward in rewards:
            if reward is held.reward or (shared := parts_of(reward) & parts_of(held.reward)):
                said = "itself" if reward is held.reward else f"with {min(shared):.60}"
                raise ConfigError(
                    f"{held.name} would be optimised: {reward.name!r} in the mix is built on the same, {said}; hold out a "
                    "reward with a network of its own, trained from another seed"
                )
