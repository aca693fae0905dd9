"""How strong each subject is, from who was preferred to whom: Bradley-Terry with ties, as Davidson (1970) writes them.

    P(i over j) : P(j over i) : P(same)  =  exp(theta_i) : exp(theta_j) : exp(tie + (theta_i + theta_j) / 2)

That is a multinomial logit, linear in theta and tie, so its likelihood has one maximum, which Newton's method finds. The
strengths sum to zero. Intervals come from resampling persons and comparisons at once (the pigeonhole bootstrap, Owen 2007):
answers of one person, or about one comparison, are not independent.

K subjects, P pairs of them, R resamples, N answers; 3 outcomes: first, second, same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NUM_RESAMPLES = 600
LEVEL = 0.95
PSEUDO = 0.1
"""Answers of each outcome added to every pair: a subject that always wins is strong, not infinitely so."""
_STEP = 2.0
_CLOSE = 1e-8


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """The fit of one attribute."""

    theta_K: Floats
    """Log-odds against the average of the subjects; they sum to zero."""
    interval_K2: Floats
    tie: float
    """0 means that of equals one in three answers is `same`; lower is rarer."""
    beats_KK: Floats
    """Chance that row is preferred to column where one of them is."""
    beats_interval_KK2: Floats
    num_persons: int
    """With one person the interval holds for that person."""


def strengths(
    first_N: Ints,
    second_N: Ints,
    outcome_N: Ints,
    person_N: Ints,
    comparison_N: Ints,
    num_subjects: int,
    *,
    seed: int = 0,
) -> Strengths:
    """Fit answers: subject, subject, 0 (the first), 1 (the second) or 2 (same), who answered, and what. N > 0."""
    weight_RN = np.concatenate([np.ones((1, len(first_N))), resampled(person_N, comparison_N, seed)])
    counts_RP3 = counted(first_N, second_N, outcome_N, weight_RN, num_subjects)
    fitted = fit(counts_RP3 + unseen(counts_RP3.shape, seed), num_subjects)
    theta_RK, tie_R = fitted[:, :-1], fitted[:, -1]
    beats_RKK = 1 / (1 + np.exp(theta_RK[:, None, :] - theta_RK[:, :, None]))
    return Strengths(
        theta_K=theta_RK[0],
        interval_K2=interval(theta_RK),
        tie=float(tie_R[0]),
        beats_KK=beats_RKK[0],
        beats_interval_KK2=interval(beats_RKK),
        num_persons=len(set(person_N.tolist())),
    )


def unseen(shape: tuple[int, ...], seed: int) -> Floats:
    """What is added to the counts: to the estimate's `PSEUDO`, to a resample's more, at random.

    Resamples of answers that all agree all agree too; half an answer of each outcome, gamma distributed, gives them the
    width of Jeffreys' interval (a Bayesian bootstrap with his prior), and `PSEUDO` at least keeps them finite.
    """
    added_RP3 = np.maximum(np.random.default_rng([seed, 1]).gamma(0.5, size=shape), PSEUDO)
    added_RP3[0] = PSEUDO
    return added_RP3


def interval(values_R: Floats) -> Floats:
    """(..., 2): the middle 95% of resamples; the first row is the estimate itself and is held inside."""
    low, high = np.quantile(values_R[1:], ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return np.stack([np.minimum(low, values_R[0]), np.maximum(high, values_R[0])], axis=-1)


def resampled(person_N: Ints, comparison_N: Ints, seed: int, num: int = NUM_RESAMPLES) -> Floats:
    """(R, N): how often each answer counts when persons and comparisons are drawn anew, each with replacement."""
    rng = np.random.default_rng(seed)
    weight_RN = np.ones((num, len(person_N)))
    for of_N in (person_N, comparison_N):
        kinds, number_N = np.unique(of_N, return_inverse=True)
        if len(kinds) > 1:
            drawn = rng.multinomial(len(kinds), np.full(len(kinds), 1 / len(kinds)), num)
            weight_RN *= drawn[:, number_N]
    return weight_RN


def counted(first_N: Ints, second_N: Ints, outcome_N: Ints, weight_RN: Floats, num_subjects: int) -> Floats:
    """(R, P, 3): weighted answers per pair, pairs in the order of `combinations`."""
    place = {pair: number for number, pair in enumerate(combinations(range(num_subjects), 2))}
    exchanged_N = first_N > second_N
    pairs = zip(np.minimum(first_N, second_N).tolist(), np.maximum(first_N, second_N).tolist(), strict=True)
    pair_N = np.array([place[pair] for pair in pairs], np.int64)
    outcome_N = np.where(exchanged_N & (outcome_N < 2), 1 - outcome_N, outcome_N)
    cells_NC = np.zeros((len(first_N), len(place) * 3))
    cells_NC[np.arange(len(first_N)), pair_N * 3 + outcome_N] = 1
    counts: Floats = (weight_RN @ cells_NC).reshape(len(weight_RN), len(place), 3)
    return counts


def features(num_subjects: int) -> Floats:
    """(P, 3, K + 1): the logit of each outcome is its features times (theta, tie)."""
    pairs = list(combinations(range(num_subjects), 2))
    features_P3D = np.zeros((len(pairs), 3, num_subjects + 1))
    for number, (first, second) in enumerate(pairs):
        features_P3D[number, 0, first] = features_P3D[number, 1, second] = 1
        features_P3D[number, 2, [first, second, -1]] = 0.5, 0.5, 1
    return features_P3D


def fit(counts_RP3: Floats, num_subjects: int) -> Floats:
    """(R, K + 1): theta and tie of the greatest likelihood, by Newton's method. Every count must be positive."""
    features_P3D = features(num_subjects)
    width = num_subjects + 1
    features_ED = features_P3D.reshape(-1, width)  # E = P * 3: matrix products take a tenth of the time of einsum
    squares_EF = np.einsum("ed,ef->edf", features_ED, features_ED).reshape(-1, width * width)
    total_RP1 = counts_RP3.sum(axis=2, keepdims=True)
    level_DD = np.zeros((width, width))
    level_DD[:-1, :-1] = 1  # moving all strengths together changes nothing: hold their sum
    found_RD = np.zeros((len(counts_RP3), width))
    for _ in range(100):
        expected_RP3 = total_RP1 * softmax((found_RD @ features_ED.T).reshape(counts_RP3.shape))
        gradient_RD = (counts_RP3 - expected_RP3).reshape(len(found_RD), -1) @ features_ED
        if np.abs(gradient_RD).max() < _CLOSE * max(1.0, float(total_RP1.max())):
            break
        sums_RPD = np.einsum("rpk,pkd->rpd", expected_RP3, features_P3D)
        square_RDD = (expected_RP3.reshape(len(found_RD), -1) @ squares_EF).reshape(-1, width, width)
        curvature_RDD = square_RDD - np.swapaxes(sums_RPD / total_RP1, 1, 2) @ sums_RPD
        step_RD = np.linalg.solve(curvature_RDD + level_DD, gradient_RD[:, :, None])[:, :, 0]
        found_RD = found_RD + step_RD * np.minimum(1, _STEP / np.abs(step_RD).max(axis=1, keepdims=True).clip(_CLOSE))
    return found_RD


def softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    chances: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return chances


@dataclass(frozen=True)
class Share:
    """How often something held."""

    value: float
    interval: tuple[float, float]
    """The wider of the resampled interval and Wilson's, which keeps a width where all agree."""
    num: int


def share(
    hit_N: Sequence[bool], person_N: Sequence[str], comparison_N: Sequence[str], *, seed: int = 0
) -> Share | None:
    """The share of hits; None of none."""
    num = len(hit_N)
    if not num:
        return None
    hits = np.asarray(hit_N, np.float64)
    codes = [np.unique(np.asarray(of), return_inverse=True)[1].astype(np.int64) for of in (person_N, comparison_N)]
    weight_RN = resampled(codes[0], codes[1], seed)
    total_R = weight_RN.sum(axis=1)
    shares_R = (weight_RN @ hits)[total_R > 0] / total_R[total_R > 0]
    value = float(hits.mean())
    low, high = np.quantile(shares_R, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)) if len(shares_R) else (value, value)
    lower, upper = wilson(value, num)
    return Share(value, (min(float(low), lower), max(float(high), upper)), num)


def wilson(value: float, num: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `num` independent answers."""
    z = 1.96
    middle = (value + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * (value * (1 - value) / num + z * z / (4 * num * num)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
