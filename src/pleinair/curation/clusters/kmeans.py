"""k-means that starts well: greedy k-means++ chooses the first centroids, faiss does the rounds.

The start decides what hierarchical k-means is for. From faiss's own start (points drawn at random) centroids lie where
the points are many, Lloyd's rounds move them little, and a hierarchy over them balances nothing: three levels on the
published toy stay at a divergence from uniform of 1.0, from this start they come to 0.09 (docs/curation-clusters.md).

N points, D dimensions, K clusters, T candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pleinair.records.errors import require

# faiss has no early stop: it does this many rounds at a time, and the last ones must still have lowered the sum of
# distances by more than this share.
ROUNDS = 5
SETTLED = 1e-3

Points = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Clustering:
    """K centroids and, for every point, the number of its nearest one and the squared distance to it."""

    centroids_KD: Points
    cluster_N: Indices
    distance_N: npt.NDArray[np.float32]
    rounds: int
    """Of Lloyd's, until the centroids had settled or as many were done as were allowed."""


def kmeans(points_ND: Points, num_clusters: int, *, iterations: int = 50, rng: np.random.Generator) -> Clustering:
    """Lloyd's k-means with squared Euclidean distances from a greedy k-means++ start: at most `iterations` rounds, fewer
    when the centroids have settled. Raises ValueError for K > N.
    """
    points_ND = np.ascontiguousarray(points_ND, dtype=np.float32)
    num_points, dim = points_ND.shape
    if not 1 <= num_clusters <= num_points:
        raise ValueError(f"{num_clusters} clusters of {num_points} points: ask for 1 to {num_points}")
    centroids_KD = points_ND[greedy_start(points_ND, num_clusters, rng)]
    faiss: Any = require("faiss", "curate")
    seed, before = int(rng.integers(2**31)), np.inf
    rounds = 0
    while rounds < iterations:
        niter = min(ROUNDS, iterations - rounds)
        trained = faiss.Kmeans(
            dim,
            num_clusters,
            niter=niter,
            # faiss trains on 256 points per cluster unless told otherwise, and warns of fewer than 39.
            min_points_per_centroid=1,
            max_points_per_centroid=num_points,
            seed=seed,
        )
        trained.train(points_ND, init_centroids=centroids_KD)
        centroids_KD, after, rounds = trained.centroids, float(trained.obj[-1]), rounds + niter
        if after >= before * (1 - SETTLED):
            break
        before = after
    return assign(points_ND, centroids_KD, rounds)


def assign(points_ND: Points, centroids_KD: Points, rounds: int = 0) -> Clustering:
    """Every point to its nearest centroid, which `rounds` of Lloyd's gave."""
    faiss: Any = require("faiss", "curate")
    index = faiss.IndexFlatL2(points_ND.shape[1])
    index.add(np.ascontiguousarray(centroids_KD))
    distance_N1, cluster_N1 = index.search(np.ascontiguousarray(points_ND), 1)
    return Clustering(np.asarray(centroids_KD), cluster_N1[:, 0], distance_N1[:, 0], rounds)


def greedy_start(points_ND: Points, num_clusters: int, rng: np.random.Generator) -> Indices:
    """Which points to start from: greedy k-means++ (Arthur and Vassilvitskii 2007) with 2 + ln K candidates a step.

    A candidate is drawn with probability proportional to its squared distance from the chosen; of the candidates the one
    that leaves the smallest sum of distances is chosen.
    """
    num_candidates = 2 + int(np.log(num_clusters))
    square_N = np.einsum("ij,ij->i", points_ND, points_ND)
    chosen = np.empty(num_clusters, dtype=np.int64)
    chosen[0] = rng.integers(len(points_ND))
    nearest_N = _distances(points_ND, square_N, chosen[:1])[:, 0]
    for number in range(1, num_clusters):
        cumulative_N = np.cumsum(nearest_N, dtype=np.float64)
        drawn = rng.random(num_candidates) * cumulative_N[-1]
        candidates_T = np.searchsorted(cumulative_N, drawn, side="right").clip(max=len(points_ND) - 1)
        left_NT = np.minimum(nearest_N[:, None], _distances(points_ND, square_N, candidates_T))
        best = int(left_NT.sum(axis=0, dtype=np.float64).argmin())
        chosen[number], nearest_N = candidates_T[best], left_NT[:, best].copy()
    return chosen


def _distances(points_ND: Points, square_N: Points, rows_T: Indices) -> Points:
    """Squared distances (N, T) of all points to some of them."""
    # The two goes to the few rows: doubling all points first took twice as long as the product.
    distance_NT = square_N[:, None] - points_ND @ (2.0 * points_ND[rows_T]).T + square_N[rows_T]
    distance_NT[rows_T, np.arange(len(rows_T))] = 0.0
    nearest_NT: Points = np.maximum(distance_NT, 0.0)
    return nearest_NT
