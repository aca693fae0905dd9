"""Classifier-free guidance in K2's convention, where 0 is off."""

from __future__ import annotations

from torch import Tensor


def guide(cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
    """cond + g (cond - uncond). g = 0 is off and gives cond; other tools write the same with a scale of g + 1."""
    return cond + guidance * (cond - uncond)
