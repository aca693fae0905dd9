"""What watches rewards while a link trains: alarms told once, and gold rewards of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pleinair.records.rewards import Pictures, Reward, RewardContext
from pleinair.rewards.combine import RewardMix
from pleinair.rewards.gold import Gold
from pleinair.training.engine import Run
from pleinair.training.records import StepRecord


class SaysAlarms:
    """The hook: tells each alarm of a mix when it first goes off, and logs how many are on."""

    def __init__(self, mix: RewardMix, say: Callable[[str], None]) -> None:
        self.mix, self.say = mix, say
        self._told: set[tuple[str, str]] = set()

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Alarms stop nothing: climbed values are meant to rise."""
        alarms = self.mix.alarms()
        for alarm in alarms:
            if (alarm.value, alarm.kind) not in self._told:
                self._told.add((alarm.value, alarm.kind))
                self.say(f"step {record.step}: alarm: {alarm}")
        return {"rewards/alarms": float(len(alarms))}


def reward_means(
    rewards: Sequence[Reward | Gold], prompts: Sequence[str], pictures: Pictures, group_size: int = 1
) -> dict[str, float]:
    """Mean of every named value over the pictures it says something of; those of a prompt stand together."""
    groups = tuple(place // group_size for place in range(len(prompts)))
    context = RewardContext(seeds=tuple(range(len(prompts))), groups=groups)
    means = {}
    for reward in rewards:
        answer = reward.score(prompts, pictures, context)
        for name, values in answer.values.items():
            says = answer.applies.get(name, np.ones(len(values), np.bool_))
            if says.any():
                means[name] = float(values[says].mean())
        for name, passes in answer.gates.items():
            means[f"passes {name}"] = float(passes.mean())
    return means


def gold_means(gold: Sequence[Gold], prompts: Sequence[str], pictures: Pictures) -> dict[str, float]:
    """Of rewards that nobody climbs."""
    return reward_means(gold, prompts, pictures)
