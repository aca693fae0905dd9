"""Where a model's own sampling goes: the states at which its steps begin, for stages that learn from what they visit.

    noise --step--> x_1 --step--> x_2 ...       `visited` gives noise, x_1 ... x_(S-1) of S steps; `at` picks one per row

A step is Euler's; with `eta` it exchanges a part of the noise it points to for fresh noise and keeps the noise level
(coefficient-preserving sampling, Wang and Yu 2025): x' = (1 - t') clean + t' (cos(pi eta / 2) noise + sin(pi eta / 2) fresh).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from pleinair.flow import VelocityFunction
from pleinair.flow.renoise import split
from pleinair.training.random import RowRandom


@torch.no_grad()
def visited(
    velocity: VelocityFunction, noise: Tensor, schedule: Tensor, *, eta: float = 0.0, random: RowRandom | None = None
) -> Tensor:
    """(S, B, ...) states at the starts of the S steps of a schedule, `noise` first; `random` is needed where eta > 0."""
    x, states = noise.float(), [noise.float()]
    for t, t_next in itertools.pairwise(schedule[:-1].tolist()):
        timestep_B = torch.full((len(x),), t, device=x.device)
        clean, pointed = split(x, velocity(x, timestep_B).float(), timestep_B)
        if eta:
            assert random is not None
            fresh = random.normal(*x.shape[1:])
            pointed = math.cos(math.pi * eta / 2) * pointed + math.sin(math.pi * eta / 2) * fresh
        x = (1 - t_next) * clean + t_next * pointed
        states.append(x)
    # Autocast keeps weights that it casts, and these were cast without gradients: a later pass would train nothing.
    torch.clear_autocast_cache()
    return torch.stack(states)


def at(states_SB: Tensor, place_B: Tensor) -> Tensor:
    """(B, ...) of each row the state at its own place."""
    return states_SB[place_B, torch.arange(len(place_B), device=place_B.device)]
