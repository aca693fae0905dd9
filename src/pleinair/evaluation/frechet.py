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
    same rows of both sets, so that drawings stay with the real pictures of their prompts, and the line in 1 / n is followed
    to 0; of the larger set the first rows are used. With n below the number of features there is no such
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
    distances = []
    for size in sizes:
        chosen = [rng.permutation(num)[:size] for _ in range(NUM_SUBSETS)]
        distances.append(np.mean([frechet_distance(features_a_ND[rows], features_b_MD[rows]) for rows in chosen]))
    _, at_infinity = np.polyfit(1.0 / sizes, distances, 1)
    return float(at_infinity)
