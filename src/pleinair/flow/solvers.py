"""From noise to data: integrate dx/dt = velocity(x, t) down a schedule. Any callable is a velocity.

The state is kept in float32 whatever the model computes in, as rounding it every step would add up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

VelocityFunction = Callable[[Tensor, Tensor], Tensor]
"""(x, timestep_B) -> dx/dt, the shape of x."""
StepCallback = Callable[[int, Tensor], None]
"""(steps done, x after the step): for progress and previews; raise from it to stop."""


def euler(velocity: VelocityFunction, noise: Tensor, schedule: Tensor, on_step: StepCallback | None = None) -> Tensor:
    """First order, one model call a step, as the released models are sampled: x += (t_next - t) velocity(x, t)."""
    x = noise.float()
    for step, (t, t_next) in enumerate(_intervals(schedule), start=1):
        x = x + (t_next - t) * _slope(velocity, x, t)
        if on_step is not None:
            on_step(step, x)
    return x


def heun(velocity: VelocityFunction, noise: Tensor, schedule: Tensor, on_step: StepCallback | None = None) -> Tensor:
    """Second order, two model calls a step: the mean of the slopes at both ends of the interval."""
    x = noise.float()
    for step, (t, t_next) in enumerate(_intervals(schedule), start=1):
        start_slope = _slope(velocity, x, t)
        end_slope = _slope(velocity, x + (t_next - t) * start_slope, t_next)
        x = x + (t_next - t) * 0.5 * (start_slope + end_slope)
        if on_step is not None:
            on_step(step, x)
    return x


def _intervals(schedule: Tensor) -> list[tuple[float, float]]:
    timesteps = schedule.double().tolist()
    if len(timesteps) < 2:
        raise ValueError(f"the schedule has {len(timesteps)} timesteps: give at least 2, from 1 (noise) to 0 (data)")
    return list(itertools.pairwise(timesteps))


def _slope(velocity: VelocityFunction, x: Tensor, t: float) -> Tensor:
    timestep_B = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
    return velocity(x, timestep_B).float()
