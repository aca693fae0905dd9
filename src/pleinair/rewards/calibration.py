"""From evidence to probability: sigmoid(slope * evidence + offset), fitted to what turned out true (Platt 1999)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]
_RIDGE = 1e-3
_MOST_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What makes evidence a probability."""

    slope: float = 1.0
    offset: float = 0.0

    def probability(self, evidence_N: Floats) -> npt.NDArray[np.float32]:
        """(N,) in 0..1; NaN stays NaN."""
        return sigmoid(self.slope * evidence_N.astype(np.float64) + self.offset).astype(np.float32)


def sigmoid(x: Floats) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), dtype=np.float64)


def log_odds(probability: Floats) -> npt.NDArray[np.float64]:
    """The inverse of `sigmoid`, within +-14."""
    inside = np.clip(probability.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inside) - np.log1p(-inside), dtype=np.float64)


def fit_calibration(evidence_N: Floats, true_N: Flags) -> Calibration:
    """Maximum likelihood of both numbers, with targets drawn in a little as Platt does. Raises ValueError for one class."""
    num_true, num_false = int(true_N.sum()), int((~true_N).sum())
    if not num_true or not num_false:
        raise ValueError(f"{num_true} true and {num_false} false examples: a calibration needs both")
    design_N2 = np.stack([evidence_N.astype(np.float64), np.ones(len(evidence_N))], axis=1)
    target_N = np.where(true_N, (num_true + 1) / (num_true + 2), 1 / (num_false + 2))
    weights_2 = np.zeros(2)
    for _ in range(_MOST_STEPS):
        given_N = sigmoid(design_N2 @ weights_2)
        gradient_2 = design_N2.T @ (given_N - target_N) + _RIDGE * weights_2
        curvature_22 = (design_N2 * (given_N * (1 - given_N))[:, None]).T @ design_N2 + _RIDGE * np.eye(2)
        step_2 = np.linalg.solve(curvature_22, gradient_2)
        # Newton's step alone may overshoot where classes are nearly separable.
        weights_2 = weights_2 - step_2 / max(1.0, float(np.abs(step_2).max()) / 4)
        if np.abs(step_2).max() < 1e-8:
            break
    return Calibration(slope=float(weights_2[0]), offset=float(weights_2[1]))


def calibration_error(probability_N: Floats, true_N: Flags, num_bins: int = 10) -> float:
    """Expected calibration error: the gap between probability and share true, over bins of equal numbers."""
    order = np.argsort(probability_N, kind="stable")
    bins = [one for one in np.array_split(order, num_bins) if len(one)]
    gaps = [len(one) * abs(float(probability_N[one].mean()) - float(true_N[one].mean())) for one in bins]
    return float(sum(gaps) / len(probability_N))


def area_under_curve(of_true: Floats, of_false: Floats) -> float:
    """The chance that a true example scores above a false one, ties half (AUROC)."""
    ordered = np.sort(of_false)
    below, up_to = (np.searchsorted(ordered, of_true, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(of_false)))
