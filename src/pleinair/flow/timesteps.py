"""Where along the path to train and to step: shifted logit-normal timesteps and the shifted schedule.

Shifting by mu moves t towards noise: logit(t') = logit(t) + mu, or t' = e^mu / (e^mu + 1/t - 1). Larger pictures carry
more redundant tokens, so the same signal is destroyed only at more noise (Esser et al. 2024, section 5.3.2); the
released schedule lets mu grow linearly with the number of image tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHIFT_ANCHORS = ((256, 0.5), (6400, 1.15))
"""(image tokens, mu) of the released models: a 256 px and a 1280 px square."""


def shift_mu(num_image_tokens: int) -> float:
    """mu of the released schedule for a number of image tokens; linear and not clamped outside its anchors."""
    (low_tokens, low_mu), (high_tokens, high_mu) = SHIFT_ANCHORS
    return low_mu + (high_mu - low_mu) * (num_image_tokens - low_tokens) / (high_tokens - low_tokens)


def shift_timesteps(timesteps: Tensor, mu: float) -> Tensor:
    """t' = e^mu / (e^mu + 1/t - 1), written so that 0 stays 0 and 1 stays 1."""
    alpha = math.exp(mu)
    return alpha * timesteps / (alpha * timesteps + (1.0 - timesteps))


def sample_timesteps(
    num_timesteps: int, *, mu: float = 0.0, sigma: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Training timesteps (num_timesteps,) float32 in (0, 1): sigmoid of a normal with mean `mu` and deviation `sigma`.

    Shifting a logit-normal with mean m by mu gives the one with mean m + mu, so the shift is the mean. Drawn on the
    generator's device, or on the CPU.
    """
    device = None if generator is None else generator.device
    return torch.sigmoid(mu + sigma * torch.randn(num_timesteps, generator=generator, device=device))


def timestep_schedule(num_steps: int, mu: float) -> Tensor:
    """Timesteps (num_steps + 1,) float64 from exactly 1 to exactly 0: a linear grid shifted by mu.

    `mu` is `shift_mu(image tokens)` for the released Raw model and 1.15 for Turbo. Raises ValueError below one step.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}: give at least 1")
    return shift_timesteps(torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64), mu)
