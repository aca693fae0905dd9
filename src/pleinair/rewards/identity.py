"""What a reward may tell of itself, beyond the protocol: enough to remember its values, and to keep gold apart."""

from __future__ import annotations

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
