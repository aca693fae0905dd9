"""Regularised logistic regression over groups: fitted, calibrated and thresholded on scores it did not fit.

    features, labels, groups --five folds of whole groups--> held-out logits --+--> strength of the penalty
                                                                               +--> calibration (Platt): score in 0..1
                                                                               `--> threshold: the false-drop rate asked for
    all of them, that strength --> weights

Both classes weigh the same, whatever their numbers. A group is all that comes of one picture, so that a fold never scores
a picture whose twin it was fitted on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from pleinair.records.errors import ConfigError

Array = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
PENALTIES = (1e-2, 1e-1, 1.0)
NUM_FOLDS = 5
_LARGEST_DEVIATION = 8.0


@dataclass(frozen=True)
class LinearProbe:
    """A linear score over standardised features."""

    mean_D: Array
    std_D: Array
    weights_D: Array
    bias: float
    slope: float = 1.0
    offset: float = 0.0
    """Platt's calibration: score = sigmoid(slope * logit + offset)."""

    def logits(self, features_ND: Array) -> Array:
        """Uncalibrated scores."""
        return _standardised(features_ND, self.mean_D, self.std_D) @ self.weights_D + np.float32(self.bias)

    def scores(self, features_ND: Array) -> Array:
        """Scores in 0..1; 0.5 where both classes are as likely if they were as frequent."""
        return _sigmoid(self.slope * self.logits(features_ND) + self.offset)


@dataclass(frozen=True)
class Fitted:
    """A probe, and what its held-out folds said."""

    probe: LinearProbe
    penalty: float
    held_out_scores_N: Array
    """Calibrated score of every example by the fold that did not see its group."""


def fit_probe(features_ND: Array, labels_N: Flags, groups: Sequence[str]) -> Fitted:
    """The probe with the penalty that its held-out folds like best. Raises ConfigError for a class under five groups."""
    fold_N = np.array([fold_of(group) for group in groups])
    for label, word in ((True, "positive"), (False, "negative")):
        if (num := len({group for group, is_ in zip(groups, labels_N, strict=True) if is_ == label})) < NUM_FOLDS:
            raise ConfigError(
                f"{num} {word} pictures are too few to fit and check a detector: label {NUM_FOLDS} or more"
            )
    held_out = {penalty: _held_out_logits(features_ND, labels_N, fold_N, penalty) for penalty in PENALTIES}
    penalty = min(held_out, key=lambda one: _balanced_loss(held_out[one], labels_N))
    slope, offset = platt(held_out[penalty], labels_N)
    mean_D, std_D, weights_D, bias = _fit(features_ND, labels_N, penalty)
    probe = LinearProbe(mean_D, std_D, weights_D, bias, slope, offset)
    return Fitted(probe, penalty, _sigmoid(slope * held_out[penalty] + offset))


def fold_of(group: str, num_folds: int = NUM_FOLDS, salt: str = "fold") -> int:
    """The fold of a group, by its name alone."""
    return int.from_bytes(hashlib.sha256(f"{salt}/{group}".encode()).digest()[:8], "big") % num_folds


def threshold_for(scores_N: Array, labels_N: Flags, max_false_rate: float) -> float:
    """The lowest threshold over which at most that share of the negatives lies; at least 0.5."""
    negatives = np.sort(scores_N[~labels_N])[::-1]
    allowed = int(max_false_rate * len(negatives))
    return max(0.5, float(negatives[allowed])) if allowed < len(negatives) else 0.5


def _held_out_logits(features_ND: Array, labels_N: Flags, fold_N: npt.NDArray[np.int64], penalty: float) -> Array:
    logits_N = np.zeros(len(labels_N), np.float32)
    for fold in np.unique(fold_N):
        inside = fold_N == fold
        mean_D, std_D, weights_D, bias = _fit(features_ND[~inside], labels_N[~inside], penalty)
        logits_N[inside] = _standardised(features_ND[inside], mean_D, std_D) @ weights_D + bias
    return logits_N


def _fit(features_ND: Array, labels_N: Flags, penalty: float) -> tuple[Array, Array, Array, float]:
    """Mean, deviation, weights and bias: balanced cross-entropy + penalty / D * |weights|^2, to convergence."""
    mean_D = features_ND.mean(axis=0)
    std_D = np.maximum(features_ND.std(axis=0), 1e-6)
    x_ND = torch.from_numpy(_standardised(features_ND, mean_D, std_D)).double()
    y_N = torch.from_numpy(labels_N).double()
    weight_N = balance(labels_N)
    parameters = torch.zeros(x_ND.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x_ND @ parameters[:-1] + parameters[-1], y_N, weight=weight_N)
        loss = loss + penalty * parameters[:-1].square().mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    fitted = parameters.detach().float().numpy()
    return mean_D, std_D, fitted[:-1].copy(), float(fitted[-1])


def balance(labels_N: Flags) -> torch.Tensor:
    """A weight per example with which both classes weigh half; their mean is 1."""
    share = labels_N.mean()
    return torch.from_numpy(np.where(labels_N, 0.5 / max(share, 1e-9), 0.5 / max(1 - share, 1e-9)))


def platt(logits_N: Array, labels_N: Flags) -> tuple[float, float]:
    """Slope and offset that calibrate held-out logits, with a touch of penalty so that separable ones stay finite."""
    mean, std, weights, bias = _fit(logits_N[:, None], labels_N, 1e-3)
    # Held-out folds that say the opposite of the labels have learned nothing: their word is not turned round.
    slope = max(0.0, float(weights[0] / std[0]))
    return slope, bias - slope * float(mean[0]) if slope else 0.0


def _balanced_loss(logits_N: Array, labels_N: Flags) -> float:
    return float(
        F.binary_cross_entropy_with_logits(
            torch.from_numpy(logits_N).double(), torch.from_numpy(labels_N).double(), weight=balance(labels_N)
        )
    )


def _standardised(features_ND: Array, mean_D: Array, std_D: Array) -> Array:
    # A feature that is constant in training may be anything later: no single one decides.
    standardised: Array = np.clip((features_ND - mean_D) / std_D, -_LARGEST_DEVIATION, _LARGEST_DEVIATION)
    return standardised


def _sigmoid(x_N: Array) -> Array:
    sigmoid: Array = (0.5 * (1 + np.tanh(0.5 * x_N))).astype(np.float32)
    return sigmoid
