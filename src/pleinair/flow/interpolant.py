"""The straight path between data and noise, and its velocity (rectified flow; Liu et al. 2022, Lipman et al. 2022).

x_t = (1 - t) x0 + t noise          dx_t / dt = noise - x0          t = 1 is noise, t = 0 is data
"""

from __future__ import annotations

from torch import Tensor


def interpolate(x0: Tensor, noise: Tensor, timestep_B: Tensor) -> Tensor:
    """x_t of a batch, one timestep per sample."""
    t = timestep_B.reshape(-1, *[1] * (x0.ndim - 1)).to(x0.dtype)
    return (1.0 - t) * x0 + t * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """What the model learns to predict: noise - x0, the same at every t."""
    return noise - x0
