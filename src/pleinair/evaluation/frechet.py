"""A Frechet distance without most of what small sets add to it."""

from __future__ import annotations

import numpy as np

from pleinair.evaluation.metrics import Floats, frechet_distance

NUM_SIZES, NUM_SUBSETS = 8, 4
SMALLEST_SHARE = 0.35
"""Of the sets: smaller subsets are no longer on the line."""


def extrapolated_frechet_distance(features_a_ND: Floats, features_b_MD: Floats, *, seed: int = 0) -> float:
    """The Frechet distance that sets without end would have (Chong and Forsyth 2020); may fall a little below 0.

    The plain distance of n pictures is too large by about c / n. It is measured on random subsets of several sizes, the
    same of both sets, and the line in 1 / n is followed to 0. With n below the number of features there is no such
    line: use fewer features, or more pictures. Raises ValueError then.
    """
    num, dims = min(len(features_a_ND), len(features_b_MD)), features_a_ND.shape[1]
    if SMALLEST_SHARE * num <= dims:
        raise ValueError(
            f"{num} pictures with {dims} features: for an extrapolation give more than {dims / SMALLEST_SHARE:.0f}, or "
            "fewer features"
        )
    rng = np.random.default_rng(seed)
    sizes = np.linspace(SMALLEST_SHARE * num, num, NUM_SIZES).astype(int)
    distances = [
        np.mean([_of_subsets(features_a_ND, features_b_MD, n, rng) for _ in range(NUM_SUBSETS)]) for n in sizes
    ]
    _, at_infinity = np.polyfit(1.0 / sizes, distances, 1)
    return float(at_infinity)


def _of_subsets(a_ND: Floats, b_MD: Floats, size: int, rng: np.random.Generator) -> float:
    chosen = [rows[rng.permutation(len(rows))[:size]] for rows in (a_ND, b_MD)]
    return frechet_distance(*chosen)
