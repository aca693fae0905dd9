"""What a reward may tell of itself, beyond the protocol: enough to remember and check its values, and to keep gold apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from pleinair.records.rewards import Reward


@runtime_checkable
class Identified(Reward, Protocol):
    """A reward that tells what it is made of; all of ours do."""

    @property
    def identity(self) -> str:
        """What decides its values: two rewards of one identity give one picture the same. Empty: it cannot say."""
        ...

    @property
    def parts(self) -> frozenset[str]:
        """The networks and readers behind it, as digests or names: a gold reward shares none with what is optimised."""
        ...

    @property
    def pointwise(self) -> bool:
        """Whether a value depends on its own prompt and picture alone, so that it may be remembered for them."""
        ...


def identity_of(reward: Reward) -> str:
    """Empty for a reward that does not tell."""
    return reward.identity if isinstance(reward, Identified) else ""


def parts_of(reward: Reward) -> frozenset[str]:
    """Empty for a reward that does not tell."""
    return reward.parts - {""} if isinstance(reward, Identified) else frozenset()


def is_pointwise(reward: Reward) -> bool:
    """False for a reward that does not tell."""
    return isinstance(reward, Identified) and bool(reward.identity) and reward.pointwise


Bounds = tuple[float, float]
"""Least and largest value."""


@runtime_checkable
class Bounded(Reward, Protocol):
    """A reward that tells where its values lie; all of ours do."""

    @property
    def bounds(self) -> Bounds | None:
        """Of all its values; None: they may be any finite number."""
        ...


def bounds_of(reward: Reward) -> Bounds | None:
    """None for a reward that does not tell."""
    return reward.bounds if isinstance(reward, Bounded) else None


@runtime_checkable
class Selective(Reward, Protocol):
    """A reward that has no value for some prompts, and tells of which; a rubric, here or served."""

    def unanswerable(self, prompts: Sequence[str]) -> list[str]:
        """The prompts of which it can say nothing whatever the picture: they would stop a rollout."""
        ...


def unanswerable_by(reward: Reward, prompts: Sequence[str]) -> list[str]:
    """None for a reward that does not tell."""
    return reward.unanswerable(prompts) if isinstance(reward, Selective) else []
