"""The warmup-stable-decay schedule, as a factor of the peak learning rate.

    1 |    ______________
      |   /              \\_
      |  /                 \\__ shape: 1 - sqrt | linear | cosine
    m | /                     \\
      +--warm-up--stable--decay--> step

The stable part has no end of its own: a run may stop there, and another may start from its checkpoint to go on or to decay.
"""

from __future__ import annotations

import math
from typing import Literal

DecayShape = Literal["1-sqrt", "linear", "cosine"]


def warmup_stable_decay(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    decay_steps: float,
    shape: DecayShape = "1-sqrt",
    min_factor: float = 0.0,
) -> float:
    """Factor of step `step`, counted from 0; the decay takes the last `decay_steps` and would reach `min_factor` after them."""
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    into_decay = step - (total_steps - decay_steps)
    if into_decay <= 0 or decay_steps <= 0:
        return warmup
    done = min(1.0, into_decay / decay_steps)
    left = {"1-sqrt": 1.0 - math.sqrt(done), "linear": 1.0 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done)}[
        shape
    ]
    return min(warmup, min_factor + (1.0 - min_factor) * left)
