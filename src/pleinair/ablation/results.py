"""What is kept of an ablation: the result of a training, and what a step of an arm costs. Read back by later versions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

HORIZONS = ("short", "long")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one training gave: an arm at one resolution with one seed, to both horizons."""

    arm: str
    """Its name when it was trained."""
    resolution: int
    """Pixels."""
    seed: int
    """Equal seeds are pairs."""
    steps: dict[str, int]
    """Horizon -> optimiser steps."""
    validation: dict[str, dict[str, float]] = field(default_factory=dict)
    """Horizon -> error on unseen pairs at each timestep of the grid (`t0.1` ...) and their mean (`loss`), after the decay."""
    cpu_seconds: dict[str, float] = field(default_factory=dict, compare=False)
    """Horizon -> CPU time of all its steps, steady and decaying; empty in results that are older than this field."""
    averages: dict[str, dict[str, float]] = field(default_factory=dict)
    """Horizon -> mean error of `last` and averaged weights of the steady phase, and of the `decayed` ones."""
    num_spikes: int = 0
    """Loss or gradient spikes over all its steps."""
    num_steps: int = 0
    """All its steps, both decays included."""
    gradient_ratio: float = math.nan
    """99th percentile of the gradient norm over its median, steady steps after the warm-up."""
    diverged: str | None = None
    """Why training ended early, where it did."""


@dataclass(frozen=True, kw_only=True)
class ArmCost:
    """What a step of an arm costs at one resolution."""

    parameters: int
    """Trained parameters, without a stage's head."""
    modules: int
    """Modules of the model."""
    flops_per_step: float
    """Counted over real steps: forward, backward and update."""
    extra_flops_per_step: float = 0.0
    """What a step costs more while iREPA is on."""
    cpu_seconds: tuple[float, ...] = ()
    """CPU time per step in each round, all arms interleaved, one thread; of iREPA while it is on."""
    average_seconds: tuple[float, ...] = ()
    """CPU time of moving an average of the weights, in each round; empty in costs that are older than this field."""
    peak_bytes: int = 0
    """Weights, moments and the most that a step holds beside them."""

    def with_average(self) -> ArmCost:
        """The same with a moving average of the weights kept beside them, float32, and moved after every step."""
        seconds = tuple(step + more for step, more in zip(self.cpu_seconds, self.average_seconds, strict=True))
        return replace(self, cpu_seconds=seconds, peak_bytes=self.peak_bytes + 4 * self.parameters)
