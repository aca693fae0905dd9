"""Duplicates in meaning: pairs whose vectors are near, and what is dropped of those that prove to be one picture.

    cluster --cosine, colours, the nearest few of each--> candidates --alignment (pixels)--> confirmed pairs
            --components--> stars: a keeper and what is paired with it

Crops move a perceptual hash far and a vector little. But an encoder also finds drawings alike that differ in a hand, so a
near vector only makes a candidate. Components alone would chain: a is a part of b, b of c, and c goes although nothing
kept shows it all. So in every component the best picture is kept and takes those paired with it, then the best of the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pleinair.curation.clusters.kmeans import Indices
from pleinair.curation.duplicates import groups
from pleinair.curation.hamming import Pairs
from pleinair.records.errors import ConfigError

_BLOCK = 2048


@dataclass(frozen=True, kw_only=True)
class CandidateLimits:
    """Which pairs of one cluster are worth a look at their pixels."""

    min_similarity: float = 0.5
    """Cosine of the centred vectors."""
    max_colour: int = 16
    """Sum of differences of levels of `colour_v2`: a crop has the colours of the whole, nearly."""
    nearest: int = 6
    """Pairs per picture, the most similar first; a pair counts when it is among these for either."""

    def __post_init__(self) -> None:
        if not 0 < self.min_similarity <= 1:
            raise ConfigError(f"candidates.min_similarity is {self.min_similarity}: give a number over 0, at most 1")
        if self.nearest < 1:
            raise ConfigError(f"candidates.nearest is {self.nearest}: give at least 1")


@dataclass(frozen=True)
class Candidates:
    """Pairs of rows, smaller first, and their cosines."""

    pairs: Pairs
    similarity: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Judged:
    """A picture in a group of duplicates, by row; a keeper is `of` itself."""

    row: int
    of: int


def candidates(
    unit_ND: npt.NDArray[np.float32], colours: npt.NDArray[np.int16], cluster_N: Indices, limits: CandidateLimits
) -> Candidates:
    """Pairs worth a look. `unit_ND` are vectors of length 1, `colours` levels (N, 28), `cluster_N` where each belongs."""
    parts, values = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    order = np.argsort(cluster_N, kind="stable")
    _, starts = np.unique(cluster_N[order], return_index=True)
    for members in np.split(order, starts[1:]) if len(order) else []:
        pairs = members[near_pairs(unit_ND[members], limits.min_similarity)]
        first, second = pairs.T
        pairs = pairs[np.abs(colours[first] - colours[second]).sum(axis=1) <= limits.max_colour]
        similarity = np.einsum("pd,pd->p", unit_ND[pairs[:, 0]], unit_ND[pairs[:, 1]])
        chosen = _nearest(pairs, similarity, limits.nearest)
        parts.append(np.sort(pairs[chosen], axis=1))
        values.append(similarity[chosen])
    return Candidates(np.concatenate(parts), np.concatenate(values))


def near_pairs(unit_ND: npt.NDArray[np.float32], min_similarity: float) -> Pairs:
    """Every pair with at least that cosine, smaller row first; memory for a block of rows at a time."""
    parts = [np.empty((0, 2), np.int64)]
    for start in range(0, len(unit_ND), _BLOCK):
        block_BD = unit_ND[start : start + _BLOCK]
        first, second = np.nonzero(block_BD @ unit_ND.T >= min_similarity)
        ahead = first + start < second
        parts.append(np.stack([first[ahead] + start, second[ahead]], axis=1))
    return np.concatenate(parts)


def _nearest(pairs: Pairs, similarity: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.bool_]:
    """Which pairs are among the `count` most similar of one of their rows; equal ones in the order of the rows."""
    chosen = np.zeros(len(pairs), np.bool_)
    rows, others = np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([pairs[:, 1], pairs[:, 0]])
    order = np.lexsort((others, -np.tile(similarity, 2), rows))
    _, starts, sizes = np.unique(rows[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(starts, sizes)
    chosen[order[place < count] % max(len(pairs), 1)] = True
    return chosen


def judge(num: int, confirmed: Pairs, rank_N: Indices) -> list[Judged]:
    """All pictures that have duplicates, keepers included; the smaller `rank_N` is kept."""
    paired: dict[int, set[int]] = {}
    for first, second in confirmed.tolist():
        paired.setdefault(first, set()).add(second)
        paired.setdefault(second, set()).add(first)
    found = []
    for group in groups(num, confirmed):
        found += _stars(sorted(group, key=lambda row: int(rank_N[row])), paired)
    return sorted(found, key=lambda judged: judged.row)


def _stars(ranked: Sequence[int], paired: Mapping[int, set[int]]) -> list[Judged]:
    """A component, best picture first, as keepers and those paired with them."""
    found, left = list[Judged](), list(ranked)
    while left:
        keeper = left[0]
        near = [row for row in left[1:] if row in paired[keeper]]
        if near:
            found += [Judged(row, keeper) for row in (keeper, *near)]
        left = [row for row in left[1:] if row not in paired[keeper]]
    return found
