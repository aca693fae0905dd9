"""How often to save, and what saving, failing and starting again leave of the time: the closed forms.

    M  mean seconds between failures        C  seconds training stands still for a checkpoint
    T  seconds of training between two      R  seconds from a failure until training goes on

With asynchronous saving C is the stall plus the seconds lost to slower steps during the write, and a failure costs the
write time more, since a checkpoint counts only once it is durable: see `simulator`.
"""

from __future__ import annotations

import math

DAY_SECONDS = 86_400.0


def young_interval(mean_between_failures: float, checkpoint_seconds: float) -> float:
    """The best T, to first order (Young 1974): sqrt(2 M C)."""
    return math.sqrt(2.0 * mean_between_failures * checkpoint_seconds)


def daly_interval(mean_between_failures: float, checkpoint_seconds: float) -> float:
    """The best T with the checkpoint's own time taken out (Daly 2006, first order): sqrt(2 M C) - C."""
    return young_interval(mean_between_failures, checkpoint_seconds) - checkpoint_seconds


def exact_goodput(interval: float, checkpoint_seconds: float, repair_seconds: float, mean_between: float) -> float:
    """Share of productive time when failures are exponential and may also strike during a repair (Daly 2006)."""
    grown = math.expm1((interval + checkpoint_seconds) / mean_between)
    return interval / (mean_between * math.exp(repair_seconds / mean_between) * grown)


def best_interval(checkpoint_seconds: float, repair_seconds: float, mean_between: float) -> float:
    """The T of the largest `exact_goodput`, by golden-section search; the repair does not move it."""
    shrink = (math.sqrt(5.0) - 1.0) / 2.0
    low, high = 1e-3, 10.0 * young_interval(mean_between, checkpoint_seconds) + 1.0
    while high - low > 1e-6 * high:
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        of_left, of_right = (exact_goodput(t, checkpoint_seconds, repair_seconds, mean_between) for t in (left, right))
        low, high = (low, right) if of_left > of_right else (left, high)
    return (low + high) / 2.0


def meta_ettr(interval: float, checkpoint_seconds: float, repair_seconds: float, mean_between: float) -> float:
    """Expected ratio of training time, (1 - (R + T/2) / M) / (1 + C/T) (Kokolis et al., HPCA 2025, arXiv 2410.21680)."""
    return (1.0 - (repair_seconds + interval / 2.0) / mean_between) / (1.0 + checkpoint_seconds / interval)


def linear_mean_between(num_gpus: int, per_1000_node_days: float, gpus_per_node: int = 8) -> float:
    """Seconds between failures of a job when every node fails by itself at one rate."""
    return DAY_SECONDS / (num_gpus / gpus_per_node * per_1000_node_days / 1000.0)
