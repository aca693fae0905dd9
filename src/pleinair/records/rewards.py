"""What rewards say of pictures, as it crosses from rewards, here or behind a server, to the training that learns from it.

    prompts, pictures, context --Reward.score--> values and gates --combined within groups--> Assessment --> an update

A value is better the higher it is. A gate is a requirement: where one is False, no value makes up for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float32]
"""(N,), one for each picture."""
Gates = npt.NDArray[np.bool_]
"""(N,), True where the requirement is met."""
Pictures = npt.NDArray[np.uint8]
"""(N, H, W, 3)."""


@dataclass(frozen=True, kw_only=True)
class RewardContext:
    """What is known of pictures beside their prompts."""

    seeds: tuple[int, ...]
    """One for each picture."""
    groups: tuple[int, ...]
    """One for each picture; those of equal number were drawn from one prompt and are compared with each other."""
    checkpoint: str = ""
    """Identity of the weights that drew them; empty where no model did."""
    passes: tuple[bool, ...] = ()
    """One for each picture: whether it meets the gates of all rewards asked before; empty where there are none yet."""


@dataclass(frozen=True, kw_only=True)
class RewardValues:
    """The answer of one reward: one or more named values of every picture, and gates if it has any."""

    values: Mapping[str, Values]
    """Finite; larger is better."""
    gates: Mapping[str, Gates] = field(default_factory=dict)
    """True where a requirement is met."""
    applies: Mapping[str, Gates] = field(default_factory=dict)
    """By the name of a value: False for pictures of which it says nothing, whatever number stands there (the writing of a
    prompt that asks for none). A value that is not named applies to all. Pictures of one group agree."""


class Reward(Protocol):
    """One source of rewards, in this process or behind a server."""

    name: str
    """Unique among those used together; the names of its values and gates are it, or begin with it and a dot."""

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        """Values of N pictures, each drawn from the prompt beside it. Raises RewardError when there are none to give."""
        ...


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What all rewards together say of N pictures, in the form that an update needs."""

    advantages: Values
    """(N,): how much better than its group each picture is; zero where a group has nothing to tell."""
    reward: Values
    """(N,): weighted sum of the values, at its floor where a gate failed: for logs and for choosing prompts."""
    values: Mapping[str, Values]
    """What was said, by name."""
    gates: Mapping[str, Gates] = field(default_factory=dict)
    """What was required, by name."""
    applies: Mapping[str, Gates] = field(default_factory=dict)
    """As in `RewardValues`."""


class Assessor(Protocol):
    """Rewards put together: what a rollout is shown to."""

    def assess(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> Assessment:
        """An assessment of N pictures. Raises RewardError when a reward gives no usable answer."""
        ...
