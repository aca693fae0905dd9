"""Numbers about sets of pictures: accuracies of a judge, a Frechet distance, a diversity, nearest neighbours.

Everything is NumPy in float64 over judge outputs (pleinair.model.judge). Each number comes with how many pictures
it rests on and a 95% bootstrap interval. The intervals cover the noise of drawing these pictures; they do not cover
the bias of small sets, which makes a Frechet distance too large and a Vendi score too small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.integer[Any]]
NUM_RESAMPLES = 2000
NUM_RESAMPLES_OF_SPECTRA = 40


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number, its 95% interval, and the count of pictures behind it."""

    value: float
    interval: tuple[float, float]
    num: int


def style_accuracy(style_logits_NS: Floats, styles_N: Indices) -> Estimate:
    """The share of pictures whose style the judge names."""
    return top_accuracy(style_logits_NS, styles_N, 1)


def concept_top1(concept_logits_NC: Floats, concepts_N: Indices) -> Estimate:
    """The share of pictures whose concept the judge names."""
    return top_accuracy(concept_logits_NC, concepts_N, 1)


def concept_top5(concept_logits_NC: Floats, concepts_N: Indices) -> Estimate:
    """The share of pictures whose concept is among the five the judge finds likeliest."""
    return top_accuracy(concept_logits_NC, concepts_N, 5)


def top_accuracy(logits_NC: Floats, labels_N: Indices, k: int) -> Estimate:
    """The share of rows whose label is among the k largest logits; ties count against the picture."""
    if len(logits_NC) != len(labels_N) or not len(labels_N):
        raise ValueError(
            f"{len(logits_NC)} rows of logits for {len(labels_N)} labels: give one label each, at least one"
        )
    own_N1 = np.take_along_axis(logits_NC, labels_N[:, None], axis=1)
    num_not_below_N = (logits_NC >= own_N1).sum(axis=1)
    return proportion(num_not_below_N <= k)


def proportion(correct_N: npt.NDArray[np.bool_], *, seed: int = 0) -> Estimate:
    """The share of true values.

    The bootstrap of a proportion is a binomial, drawn as such. Where all values agree, the interval has no width.
    """
    num, share = len(correct_N), float(correct_N.mean())
    resampled = np.random.default_rng(seed).binomial(num, share, NUM_RESAMPLES) / num
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Estimate(value=share, interval=(float(low), float(high)), num=num)


def frechet_distance(features_a_ND: Floats, features_b_MD: Floats) -> float:
    """The squared 2-Wasserstein distance between Gaussians fitted to two sets of features (Heusel et al. 2017).

    ||mean_a - mean_b||^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), with the plain sample covariances A and B. With fewer
    pictures than dimensions it is still defined, but grows as sets shrink: compare only sets of equal size.
    """
    mean_a, covariance_a = moments(features_a_ND)
    mean_b, covariance_b = moments(features_b_MD)
    root_a = matrix_root(covariance_a)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root_a @ covariance_b @ root_a), 0, None)).sum()
    distance = np.square(mean_a - mean_b).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross
    return max(float(distance), 0.0)


def moments(features_ND: Floats) -> tuple[Floats, Floats]:
    """Mean and covariance in float64. Raises ValueError for fewer than two rows."""
    if len(features_ND) < 2:
        raise ValueError(f"a covariance needs two pictures or more, not {len(features_ND)}: give a larger set")
    exact = features_ND.astype(np.float64)
    return exact.mean(axis=0), np.cov(exact, rowvar=False).reshape(exact.shape[1], exact.shape[1])


def matrix_root(symmetric_DD: Floats) -> Floats:
    """The square root of a symmetric positive semi-definite matrix; eigenvalues below 0 are rounding and become 0."""
    values, vectors = np.linalg.eigh(symmetric_DD)
    rooted: Floats = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return rooted


def vendi_score(features_ND: Floats) -> float:
    """How many different pictures a set is worth: 1 for copies of one, N for N orthogonal ones.

    The exponential of the entropy of the eigenvalues of K / N, where K holds cosine similarities (Friedman and Dieng
    2023).
    """
    unit_ND = unit_rows(features_ND)
    num, dim = unit_ND.shape
    kernel = unit_ND @ unit_ND.T if num <= dim else unit_ND.T @ unit_ND
    weights = np.clip(np.linalg.eigvalsh(kernel / num), 0, None)
    weights = weights[weights > 0]
    return float(np.exp(-(weights * np.log(weights)).sum()))


def nearest(features_ND: Floats, reference_features_MD: Floats, k: int) -> tuple[Indices, Floats]:
    """For each row the k most similar reference rows, nearest first: indices and cosine similarities, (N, k) each."""
    if not 1 <= k <= len(reference_features_MD):
        raise ValueError(f"k = {k} neighbours of {len(reference_features_MD)} references: choose k between 1 and that")
    similarity_NM = unit_rows(features_ND) @ unit_rows(reference_features_MD).T
    order_NK = np.argsort(-similarity_NM, axis=1, kind="stable")[:, :k]
    return order_NK, np.take_along_axis(similarity_NM, order_NK, axis=1)


def unit_rows(features_ND: Floats) -> Floats:
    """Rows of length 1 in float64; a row of zeros stays zero."""
    exact = features_ND.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    scaled: Floats = np.divide(exact, lengths, out=np.zeros_like(exact), where=lengths > 0)
    return scaled


def spread_of(statistic: Callable[..., float], *features: Floats, seed: int = 0) -> Estimate:
    """A statistic of whole sets of features with a 95% bootstrap interval; `num` is the smallest set's count.

    Resampling repeats pictures, which shifts these statistics; so the quantiles are taken around the mean of the
    resamples and laid around the value itself.
    """
    value = statistic(*features)
    rng = np.random.default_rng(seed)
    resampled = [
        statistic(*(rows[rng.integers(len(rows), size=len(rows))] for rows in features))
        for _ in range(NUM_RESAMPLES_OF_SPECTRA)
    ]
    low, high = value + np.quantile(resampled, (0.025, 0.975)) - np.mean(resampled)
    return Estimate(value=value, interval=(max(float(low), 0.0), float(high)), num=min(len(rows) for rows in features))
