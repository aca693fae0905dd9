"""Stochastic steps along the flow, whose probability is known: what policy gradients are taken of.

    x' = mean + deviation noise,      mean = of_state x + of_velocity v(x, t)

    kind     deviation                           where it comes from
    flow     eta sqrt(t / (1 - t)) sqrt(t - t')  Flow-GRPO (Liu et al. 2025): the reverse SDE with the flow's marginals
    dance    eta sqrt(t - t')                    DanceGRPO (Xue et al. 2025): the same, one level at every t
    cps      t' sin(pi eta / 2)                  Flow-CPS (Wang and Yu 2025): keeps the coefficients of data and noise

All are the Euler step of the flow at eta = 0. The first two have the flow's marginals as the steps get small, and leave
the noise of the last steps in the picture. CPS adds no more noise than t' asks for, so its pictures are clean, but it is
no discretised SDE: its noise does not shrink with the step, and with many steps at a high eta it narrows what is drawn
(docs/rl.md has the numbers). Everything is float32: the ratio of two nearly equal probabilities is taken of it.

B batch, S states, W steps of the window (S = W + 1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pleinair.flow.solvers import VelocityFunction

Sde = Literal["flow", "dance", "cps"]
Draw = Callable[[int], Tensor]
"""Standard normal noise in the shape of the state, for the step of that number in the schedule."""


@dataclass(frozen=True)
class Coefficients:
    """A step from t to t'; each is a float64 tensor in the shape of the timesteps."""

    of_state: Tensor
    """Of x in the mean."""
    of_velocity: Tensor
    """Of the velocity in the mean, negative."""
    deviation: Tensor
    """Of the noise added, all of it."""


@dataclass(frozen=True)
class Transition:
    """The Gaussian that a stochastic step draws from."""

    mean: Tensor
    """(B, ...) float32, with the velocity's graph."""
    deviation: Tensor
    """(B, 1, ...) float32, of every dimension."""

    def drawn(self, noise: Tensor) -> Tensor:
        """Where the step leads with this standard normal noise."""
        return self.mean + self.deviation * noise


@dataclass(frozen=True, kw_only=True)
class Window:
    """Steps of a schedule that are stochastic; elsewhere the flow's equation is solved as it is."""

    first: int
    """Number of the first, from 0."""
    size: int
    """How many; 0 for none."""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Samples, and what an update needs of the steps in the window."""

    states_BSCHW: Tensor
    """Before each step of the window, and after the last; S is 0 without a window."""
    means_BWCHW: Tensor
    """Means of the steps' Gaussians."""
    log_probabilities_BW: Tensor
    """Of the steps taken, each a mean over dimensions."""
    samples_BCHW: Tensor
    """At t = 0."""


def coefficients(sde: Sde, timestep: Tensor, next_timestep: Tensor, noise_level: float) -> Coefficients:
    """A step of `sde` at eta = `noise_level` from `timestep` down to `next_timestep`: any shape, 0 <= t' < t <= 1."""
    t, t_next = timestep.double(), next_timestep.double()
    if sde == "cps":
        return _coefficient_preserving(t, t_next, noise_level)
    if sde == "dance":
        return _reverse_sde(t, t_next, torch.full_like(t, noise_level))
    remaining = 1 - torch.where(t < 1, t, t_next)  # at t = 1 the level is infinite: the next step's, as in Flow-GRPO
    return _reverse_sde(t, t_next, noise_level * (t / remaining).sqrt())


def _reverse_sde(t: Tensor, t_next: Tensor, level: Tensor) -> Coefficients:
    """dx = (v - level^2 / 2 score) dt + level dw by Euler, with score = -(x + (1 - t) v) / t."""
    step, correction = t_next - t, level.square() / (2 * t)
    return Coefficients(1 + correction * step, (1 + correction * (1 - t)) * step, level * (-step).sqrt())


def _coefficient_preserving(t: Tensor, t_next: Tensor, noise_level: float) -> Coefficients:
    """x' = (1 - t') x0 + sqrt(t'^2 - deviation^2) x1 + deviation noise, with x0 = x - t v and x1 = x + (1 - t) v."""
    angle = 0.5 * math.pi * noise_level
    kept = t_next * math.cos(angle)
    return Coefficients((1 - t_next) + kept, kept * (1 - t) - (1 - t_next) * t, t_next * math.sin(angle))


def transition(
    sde: Sde, x: Tensor, velocity: Tensor, timestep_B: Tensor, next_timestep_B: Tensor, noise_level: float
) -> Transition:
    """The Gaussian of the next state, given the velocity at x (B, ...); each row has its own timesteps."""
    step = coefficients(sde, timestep_B, next_timestep_B, noise_level)
    of_state, of_velocity, deviation = (
        values.to(x.device, torch.float32).reshape(-1, *[1] * (x.ndim - 1))
        for values in (step.of_state, step.of_velocity, step.deviation)
    )
    return Transition(of_state * x.float() + of_velocity * velocity.float(), deviation)


def log_probability(reached: Tensor, given: Transition) -> Tensor:
    """(B,) log density of a step to `reached`, the mean over its dimensions rather than their sum.

    The mean keeps ratios near 1 however large pictures are; clip ranges are chosen for it.
    """
    error = (reached.float() - given.mean) / given.deviation
    density = -0.5 * error.square() - given.deviation.log() - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).mean(1)


def sample_in_window(
    velocity: VelocityFunction,
    noise: Tensor,
    schedule: Tensor,
    draw: Draw,
    *,
    sde: Sde,
    noise_level: float,
    window: Window,
) -> Trajectory:
    """From noise to samples: stochastic steps in the window, Euler's elsewhere.

    Raises ValueError for a window that leaves the schedule, or takes its last step where that has no noise.
    """
    _check_window(schedule, window, sde, noise_level)
    inside = range(window.first, window.first + window.size)
    states: list[Tensor] = []
    means: list[Tensor] = []
    log_probabilities: list[Tensor] = []
    x = noise.float()
    for step, (t, t_next) in enumerate(itertools.pairwise(schedule)):
        timestep_B, next_B = (each.double().repeat(len(x)) for each in (t, t_next))
        slope = velocity(x, timestep_B.to(x.device, torch.float32)).float()
        if step not in inside:
            x = x + float(t_next - t) * slope
            continue
        given = transition(sde, x, slope, timestep_B, next_B, noise_level)
        states.append(x)
        x = given.drawn(draw(step))
        means.append(given.mean)
        log_probabilities.append(log_probability(x, given))
        if step == inside[-1]:
            states.append(x)
    return Trajectory(
        states_BSCHW=_stacked(states, noise, noise.shape[1:]),
        means_BWCHW=_stacked(means, noise, noise.shape[1:]),
        log_probabilities_BW=_stacked(log_probabilities, noise, ()),
        samples_BCHW=x,
    )


def _check_window(schedule: Tensor, window: Window, sde: Sde, noise_level: float) -> None:
    num_steps, end = len(schedule) - 1, window.first + window.size
    if window.first < 0 or window.size < 0 or end > num_steps:
        raise ValueError(f"the window is steps {window.first} to {end} of {num_steps}: it must lie among them")
    if window.size and noise_level <= 0:
        raise ValueError(f"noise_level is {noise_level}: steps of a window need noise, or give it the size 0")
    if window.size and sde == "cps" and end == num_steps:
        raise ValueError(f"the window ends with step {end}, the last, where cps adds no noise: end it one earlier")


def _stacked(parts: Sequence[Tensor], like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.stack(list(parts), 1) if parts else like.new_empty(len(like), 0, *shape)
