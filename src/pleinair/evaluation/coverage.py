"""Whether samples are everywhere where they should be: known modes, or the neighbourhoods of real pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pleinair.evaluation.metrics import Floats


def mode_coverage(samples_ND: Floats, modes_MD: Floats, radius: float, least_share: float = 0.2) -> float:
    """The share of modes that hold at least `least_share` of an equal part of the samples within `radius`."""
    distances_NM = _distances(samples_ND, modes_MD)
    nearest_N = distances_NM.argmin(1)
    inside_N = distances_NM[np.arange(len(samples_ND)), nearest_N] <= radius
    counts_M = np.bincount(nearest_N[inside_N], minlength=len(modes_MD))
    return float((counts_M >= least_share * len(samples_ND) / len(modes_MD)).mean())


def neighbour_coverage(samples_ND: Floats, reference_MD: Floats, k: int = 5) -> float:
    """The share of reference points with a sample no farther than their k-th neighbour among the references.

    Coverage of Naeem et al. 2020: unlike recall, one outlying sample does not cover much. It grows with the number of
    samples: compare only sets of equal size. Raises ValueError for a k that the reference does not have.
    """
    if not 1 <= k < len(reference_MD):
        raise ValueError(f"k = {k} neighbours among {len(reference_MD)} references: choose k between 1 and one fewer")
    among_MM = _distances(reference_MD, reference_MD)
    reach_M = np.partition(among_MM, k, axis=1)[:, k]  # place 0 is the point itself
    nearest_M = _distances(reference_MD, samples_ND).min(1)
    return float((nearest_M <= reach_M).mean())


def _distances(a_ND: Floats, b_MD: Floats) -> npt.NDArray[np.float64]:
    """(N, M) Euclidean, in float64."""
    a, b = a_ND.astype(np.float64), b_MD.astype(np.float64)
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T
    distances: npt.NDArray[np.float64] = np.sqrt(np.clip(squares, 0, None))
    return distances
