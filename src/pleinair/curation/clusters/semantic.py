"""Duplicates in meaning: pictures of one leaf cluster whose embeddings nearly agree, whatever their hashes say.

    leaf --all pairs, in blocks--> pairs over a cosine --components--> stars: a keeper and what is near it

Components alone would chain: a is near b, b near c, and c goes although nothing kept is like it. So in every component the
best picture is kept and takes only those near it, then the best of the rest, until none is left. Crops and redraws that move
a perceptual hash far are found; a leaf's border hides pairs that fall on either side of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pleinair.curation.clusters.kmeans import Indices
from pleinair.curation.duplicates import groups
from pleinair.curation.hamming import Pairs

_BLOCK = 2048


@dataclass(frozen=True)
class SemanticDuplicate:
    """A picture that goes, as rows of the arrays searched."""

    row: int
    of: int
    """The picture kept instead."""
    similarity: float
    reason: str


def semantic_duplicates(
    unit_ND: npt.NDArray[np.float32],
    leaf_N: Indices,
    names: Sequence[str],
    rank_N: Indices,
    *,
    min_similarity: float,
) -> list[SemanticDuplicate]:
    """Pictures to drop, by row. `unit_ND` are vectors of length 1, smaller `rank_N` is kept first."""
    found = []
    order = np.argsort(leaf_N, kind="stable")
    _, starts = np.unique(leaf_N[order], return_index=True)
    for members in np.split(order, starts[1:]) if len(order) else []:
        pairs = near_pairs(unit_ND[members], min_similarity)
        for group in groups(len(members), pairs):
            rows = members[group]
            found += _stars(rows[np.argsort(rank_N[rows], kind="stable")], unit_ND, names, min_similarity)
    return sorted(found, key=lambda duplicate: duplicate.row)


def near_pairs(unit_ND: npt.NDArray[np.float32], min_similarity: float) -> Pairs:
    """Every pair with at least that cosine, smaller row first; memory for a block of rows at a time."""
    parts = [np.empty((0, 2), np.int64)]
    for start in range(0, len(unit_ND), _BLOCK):
        block_BD = unit_ND[start : start + _BLOCK]
        first, second = np.nonzero(block_BD @ unit_ND.T >= min_similarity)
        ahead = first + start < second
        parts.append(np.stack([first[ahead] + start, second[ahead]], axis=1))
    return np.concatenate(parts)


def _stars(
    ranked: Indices, unit_ND: npt.NDArray[np.float32], names: Sequence[str], min_similarity: float
) -> list[SemanticDuplicate]:
    """A component, best picture first, as keepers and those near them."""
    found, left = list[SemanticDuplicate](), ranked
    while len(left) > 1:
        keeper, others = int(left[0]), left[1:]
        similarity = unit_ND[others] @ unit_ND[keeper]
        for row, value in zip(others.tolist(), similarity.tolist(), strict=True):
            if value >= min_similarity:
                reason = f"semantic: {value:.3f} similar to {names[keeper]}, over {min_similarity:g}"
                found.append(SemanticDuplicate(row, keeper, value, reason))
        left = others[similarity < min_similarity]
    return found
