"""A point of a path as data and noise, and a point moved on to more noise: what matching distributions needs of a flow.

    clean, noise = split(x, velocity, t)            x = (1 - t) clean + t noise,  velocity = noise - clean
    x' = renoise(x, t, t', fresh)                   x' = (1 - t') / (1 - t) x + deviation(t, t') fresh,  t <= t' < 1

If x has the law of the path at t, x' has that at t'. From t = 0 this is `interpolate`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def split(x: Tensor, velocity: Tensor, timestep_B: Tensor) -> tuple[Tensor, Tensor]:
    """The data and the noise that a velocity points to: x - t v and x + (1 - t) v."""
    t = per_row(timestep_B, x)
    return x - t * velocity, x + (1 - t) * velocity


def added_deviation(from_B: Tensor, to_B: Tensor) -> Tensor:
    """(B,) deviation of the fresh noise between two timesteps: sqrt(t'^2 - (t (1 - t') / (1 - t))^2)."""
    kept_B = from_B * (1 - to_B) / (1 - from_B)
    return (to_B.square() - kept_B.square()).clamp_min(0).sqrt()


def renoise(x: Tensor, from_B: Tensor, to_B: Tensor, fresh: Tensor) -> Tensor:
    """x at `from_B` moved to the later timesteps `to_B` by standard normal noise, both below 1."""
    shrink = per_row((1 - to_B) / (1 - from_B), x)
    return shrink * x + per_row(added_deviation(from_B, to_B), x) * fresh


def mixed_noise(noise: Tensor, from_B: Tensor, to_B: Tensor, fresh: Tensor) -> Tensor:
    """All the noise in a renoised point, old and fresh, in units of its timestep: (x' - (1 - t') clean) / t'."""
    old = per_row(from_B * (1 - to_B) / (1 - from_B), noise) * noise
    return (old + per_row(added_deviation(from_B, to_B), noise) * fresh) / per_row(to_B, noise)


def per_row(values_B: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ...), to multiply a batch with."""
    return values_B.to(torch.float32).reshape(-1, *[1] * (like.ndim - 1))
