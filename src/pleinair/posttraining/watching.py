"""What watches rewards while a link trains: alarms told once, and gold rewards of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

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


Said = tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]
"""(N,) a number of each picture, and of which pictures it says something."""


def reward_values(
    rewards: Sequence[Reward | Gold], prompts: Sequence[str], pictures: Pictures, group_size: int = 1
) -> dict[str, Said]:
    """Every named value, and every gate as 0 or 1 under `passes NAME`; pictures of a prompt stand together."""
    groups = tuple(place // group_size for place in range(len(prompts)))
    context = RewardContext(seeds=tuple(range(len(prompts))), groups=groups)
    said: dict[str, Said] = {}
    everywhere = np.ones(len(prompts), np.bool_)
    for reward in rewards:
        answer = reward.score(prompts, pictures, context)
        for name, values in answer.values.items():
            said[name] = (values, answer.applies.get(name, everywhere))
        for name, passes in answer.gates.items():
            said[f"passes {name}"] = (passes.astype(np.float32), everywhere)
    return said


def gold_means(gold: Sequence[Gold], prompts: Sequence[str], pictures: Pictures) -> dict[str, float]:
    """Of rewards that nobody climbs: the mean of every value over the pictures it says something of."""
    said = reward_values(gold, prompts, pictures)
    return {name: float(values[says].mean()) for name, (values, says) in said.items() if says.any()}
