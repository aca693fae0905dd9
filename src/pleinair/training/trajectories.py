"""Where a model's own sampling goes: the states at which its steps begin, for stages that learn from what they visit.

    noise --step--> x_1 --step--> x_2 ...       `visited` gives noise, x_1 ... x_(S-1) of S steps; `at` picks one per row

A step is Euler's. With `eta` it goes on by that share of its length and fresh noise brings it back (`flow.renoise`), which
keeps the path's marginals as far as the solver does: with more steps, exactly.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from pleinair.flow import VelocityFunction
from pleinair.flow.renoise import renoise
from pleinair.training.random import RowRandom


@torch.no_grad()
def visited(
    velocity: VelocityFunction, noise: Tensor, schedule: Tensor, *, eta: float = 0.0, random: RowRandom | None = None
) -> Tensor:
    """(S, B, ...) states at the starts of the S steps of a schedule, `noise` first; `random` is needed where eta > 0."""
    x, states = noise.float(), [noise.float()]
    for t, t_next in itertools.pairwise(schedule[:-1].tolist()):
        lowest = max(t_next - eta * (t - t_next), 0.0)
        x = x + (lowest - t) * velocity(x, x.new_full((len(x),), t)).float()
        if eta:
            assert random is not None
            low_B, next_B = x.new_full((len(x),), lowest), x.new_full((len(x),), t_next)
            x = renoise(x, low_B, next_B, random.normal(*x.shape[1:]))
        states.append(x)
    return torch.stack(states)


def at(states_SB: Tensor, place_B: Tensor) -> Tensor:
    """(B, ...) of each row the state at its own place."""
    return states_SB[place_B, torch.arange(len(place_B), device=place_B.device)]
