"""Rectified flow as plain functions: the path, where to train on it, how to step along it, how to guide it.

training:  t = sample_timesteps(...)   x_t = interpolate(x0, noise, t)   loss = |model(x_t, t) - velocity_target|^2
sampling:  x0 = euler(velocity, noise, timestep_schedule(num_steps, shift_mu(num_image_tokens)))
with probabilities: `flow.stochastic`
"""

from pleinair.flow.guidance import guide
from pleinair.flow.interpolant import interpolate, velocity_target
from pleinair.flow.solvers import StepCallback, VelocityFunction, euler, heun
from pleinair.flow.timesteps import sample_timesteps, shift_mu, shift_timesteps, timestep_schedule

__all__ = [
    "StepCallback",
    "VelocityFunction",
    "euler",
    "guide",
    "heun",
    "interpolate",
    "sample_timesteps",
    "shift_mu",
    "shift_timesteps",
    "timestep_schedule",
    "velocity_target",
]
