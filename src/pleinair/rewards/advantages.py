"""From values and gates to advantages, group by group: plain functions, each with its equation.

    values --lowered: a gate that failed--> --GDPO: each value normalised in its group, summed, normalised in the batch-->
                                            --GRPO: summed, normalised in its group-------------------------------------->

A gate comes before any normalisation. A picture that fails one gets less than the least of its group in every value, so
that no weights and no other picture can lift its advantage over one that passes.

N pictures, K values.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Groups = npt.NDArray[np.int64]


def members(groups_N: Groups) -> Iterator[npt.NDArray[np.int64]]:
    """The rows of each group."""
    for group in np.unique(groups_N):
        yield np.flatnonzero(groups_N == group)


def lowered(values_N: Floats, passes_N: Flags, groups_N: Groups, margin: float) -> Floats:
    """The values, with those of pictures that fail a gate set `margin` below the least of their group.

    All that fail are alike: a value earned by a picture that fails is worth nothing, not even against its like.
    """
    floored_N = values_N.copy()
    for rows in members(groups_N):
        failing = rows[~passes_N[rows]]
        floored_N[failing] = values_N[rows].min() - margin
    return floored_N


def normalised_in_groups(values_N: Floats, groups_N: Groups, floor: float) -> Floats:
    """(v - mean of the group) / max(standard deviation of the group, floor); zero where a group does not vary.

    The floor keeps a group that agrees but for noise from speaking as loudly as one that does not.
    """
    advantages_N = np.zeros(len(values_N))
    for rows in members(groups_N):
        of_group = values_N[rows]
        spread = max(float(of_group.std()), floor)
        if np.ptp(of_group) > 0 and spread > 0:
            advantages_N[rows] = (of_group - of_group.mean()) / spread
    return advantages_N


def gdpo(values_KN: Floats, applies_KN: Flags, weights_K: Floats, groups_N: Groups, floors_K: Floats) -> Floats:
    """sum_k w_k A_k, each A_k normalised in its groups (GDPO, arXiv 2601.05242), then divided by the batch's spread.

    A value that does not apply to a picture adds nothing. The spread is floored at half of what independent values of
    full size would give: a batch in which no group has much to tell is not blown up to one that has.
    """
    total_N = np.zeros(len(groups_N))
    for values_N, applies_N, weight, floor in zip(values_KN, applies_KN, weights_K, floors_K, strict=True):
        rows = np.flatnonzero(applies_N)
        total_N[rows] += weight * normalised_in_groups(values_N[rows], groups_N[rows], float(floor))
    spread = max(float(total_N.std()), 0.5 * float(np.sqrt((weights_K**2).sum())))
    return total_N / spread


def grpo(total_N: Floats, groups_N: Groups, floor: float) -> Floats:
    """The weighted sum, normalised in its groups (GRPO): values of a large spread drown the others."""
    return normalised_in_groups(total_N, groups_N, floor)


def weighted_sum(values_KN: Floats, applies_KN: Flags, weights_K: Floats) -> Floats:
    """(N,): sum_k w_k v_k; where a value does not apply, the others stand in for its weight."""
    parts_KN = np.where(applies_KN, values_KN, 0.0) * weights_K[:, None]
    present_N = (applies_KN * weights_K[:, None]).sum(axis=0)
    share_N = np.divide(present_N, weights_K.sum(), out=np.ones_like(present_N), where=present_N > 0)
    return np.asarray(parts_KN.sum(axis=0) / share_N)
