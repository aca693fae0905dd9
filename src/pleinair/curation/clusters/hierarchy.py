"""Hierarchical k-means with resampling, and balanced sampling from it.

    points --k-means--> level 0 centroids --k-means--> level 1 centroids --> ...        cluster_hierarchy
    target --equal shares over the top clusters, then over theirs, ...--> points        sample_hierarchy

Plain k-means spends its centroids where the points are many. Centroids of centroids are more even, and resampling (a few
points per cluster, clustered again, the whole assigned anew) makes each level more even still, so that equal shares of a
budget fall on the kinds of pictures rather than on the pictures. After "Automatic Data Curation for Self-Supervised
Learning: A Clustering-Based Approach" (Vo et al. 2024).

N points, D dimensions, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pleinair.curation.clusters.kmeans import Clustering, Indices, Points, assign, kmeans
from pleinair.records.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig:
    """Sizes of the levels, from the finest up."""

    num_clusters: tuple[int, ...] = (1000, 100, 12)
    """Clusters of each level; a level clusters the centroids of the one before."""
    resample_points: tuple[int, ...] = (5, 3, 3)
    """Points per cluster, nearest first, on which a level is clustered again; 0 or 1 leaves it as it is. Half the mean
    size of a cluster is a good number."""
    num_resamples: int = 10
    """How often each level is clustered again."""
    iterations: int = 50
    """Rounds of Lloyd's algorithm."""
    seed: int = 0
    """Of every random choice."""

    def __post_init__(self) -> None:
        if not self.num_clusters or list(self.num_clusters) != sorted(set(self.num_clusters), reverse=True):
            raise ConfigError(f"num_clusters is {self.num_clusters}: give falling numbers, the finest level first")
        if len(self.resample_points) != len(self.num_clusters):
            raise ConfigError(
                f"resample_points {self.resample_points} and num_clusters {self.num_clusters}: give one of each per level"
            )
        if self.num_clusters[-1] < 1 or self.num_resamples < 0 or self.iterations < 1:
            raise ConfigError(f"{self}: give at least one cluster and one iteration, and no negative number")


@dataclass(frozen=True)
class Hierarchy:
    """The levels, finest first; `levels[0]` clusters the points, each further one the centroids of the one before."""

    levels: tuple[Clustering, ...]

    def cluster_of_points(self, level: int) -> Indices:
        """The cluster of every point at a level."""
        cluster_N = self.levels[0].cluster_N
        for upper in self.levels[1 : level + 1]:
            cluster_N = upper.cluster_N[cluster_N]
        return cluster_N

    def sizes(self, level: int) -> Indices:
        """Points under each cluster of a level."""
        return np.bincount(self.cluster_of_points(level), minlength=len(self.levels[level].centroids_KD))

    def members(self, level: int) -> list[Indices]:
        """What each cluster of a level holds: points at level 0, else clusters of the level below."""
        clustering = self.levels[level]
        order = np.argsort(clustering.cluster_N, kind="stable")
        counts = np.bincount(clustering.cluster_N, minlength=len(clustering.centroids_KD))
        return np.split(order, np.cumsum(counts)[:-1])


def cluster_hierarchy(
    points_ND: Points, config: HierarchyConfig, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Hierarchy:
    """Cluster points level by level. `on_progress` gets k-means runs done and to be done. Raises ValueError for too few."""
    total = sum(1 + config.num_resamples * (points > 1) for points in config.resample_points)
    done, levels = 0, list[Clustering]()
    inputs_ND, rng = points_ND, np.random.default_rng(config.seed)
    for num_clusters, num_points in zip(config.num_clusters, config.resample_points, strict=True):
        clustering = kmeans(inputs_ND, num_clusters, iterations=config.iterations, rng=rng)
        on_progress(done := done + 1, total)
        for _ in range(config.num_resamples if num_points > 1 else 0):
            chosen_ND = inputs_ND[nearest_points(clustering, num_points)]
            again = kmeans(chosen_ND, num_clusters, iterations=config.iterations, rng=rng)
            clustering = assign(inputs_ND, again.centroids_KD)
            on_progress(done := done + 1, total)
        levels.append(clustering)
        inputs_ND = clustering.centroids_KD
    return Hierarchy(tuple(levels))


def nearest_points(clustering: Clustering, num_points: int) -> Indices:
    """The `num_points` points nearest to each centroid, in rising order; all of a smaller cluster."""
    order = np.lexsort((clustering.distance_N, clustering.cluster_N))
    clusters = clustering.cluster_N[order]
    place = np.arange(len(order)) - np.searchsorted(clusters, clusters)
    return np.sort(order[place < num_points])


def sample_hierarchy(
    hierarchy: Hierarchy,
    target: int,
    *,
    rng: np.random.Generator,
    pick: Literal["random", "nearest"] = "random",
) -> Indices:
    """`target` points (all, when there are fewer), in rising order, balanced from the top level down.

    In a cluster of the finest level the share is drawn at random, or is the points nearest to the centroid.
    """
    if target < 0:
        raise ValueError(f"{target} points to sample: give 0 or more")
    top = len(hierarchy.levels) - 1
    shares = balanced_shares(hierarchy.sizes(top), target, rng)
    for level in range(top, 0, -1):
        below, sizes = np.zeros(len(hierarchy.levels[level].cluster_N), np.int64), hierarchy.sizes(level - 1)
        for share, members in zip(shares, hierarchy.members(level), strict=True):
            below[members] = balanced_shares(sizes[members], int(share), rng)
        shares = below
    finest = hierarchy.levels[0]
    chosen = [
        _picked(members, int(share), finest.distance_N, rng, pick)
        for share, members in zip(shares, hierarchy.members(0), strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def _picked(
    members: Indices, share: int, distance_N: npt.NDArray[np.float32], rng: np.random.Generator, pick: str
) -> Indices:
    if pick == "nearest":
        return members[np.argsort(distance_N[members], kind="stable")[:share]]
    return rng.choice(members, share, replace=False)


def balanced_shares(sizes: Indices, target: int, rng: np.random.Generator) -> Indices:
    """How many to take of each cluster: at most its size, exactly `target` in sum (or everything), as even as can be.

    Every cluster gives min(cut, size), with the largest cut whose sum does not exceed the target; the remainder comes
    one each from clusters, drawn at random, that have more.
    """
    if target >= sizes.sum():
        return sizes.copy()
    low, high = 0, target
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= target else (low, middle - 1)
    shares = np.minimum(sizes, low)
    larger = np.flatnonzero(sizes > low)
    shares[rng.choice(larger, target - int(shares.sum()), replace=False)] += 1
    return shares
