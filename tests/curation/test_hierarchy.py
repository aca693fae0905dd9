"""Hierarchical k-means and its sampling, against naive forms and the properties the method promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.curation.clusters import divergence_from_uniform, toy
from pleinair.curation.clusters.hierarchy import (
    Hierarchy,
    HierarchyConfig,
    balanced_shares,
    cluster_hierarchy,
    nearest_points,
    sample_hierarchy,
)
from pleinair.curation.clusters.kmeans import Points, assign, greedy_start, kmeans
from pleinair.records.errors import ConfigError


def blobs(counts: tuple[int, ...], seed: int = 0) -> Points:
    """Blobs of these sizes, 10 apart, deviation 0.1."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal((10.0 * number, 0.0), 0.1, (count, 2)) for number, count in enumerate(counts)]
    return np.concatenate(parts).astype(np.float32)


@pytest.fixture(scope="module")
def skewed() -> Hierarchy:
    config = HierarchyConfig(num_clusters=(30, 5), resample_points=(3, 2), num_resamples=2, iterations=10)
    return cluster_hierarchy(blobs((800, 100, 60, 30, 10)), config)


def test_the_start_finds_every_blob_however_small() -> None:
    points = blobs((2000, 3, 2))
    for seed in range(10):
        start = points[greedy_start(points, 3, np.random.default_rng(seed))]
        assert sorted(np.rint(start[:, 0] / 10)) == [0, 1, 2]


def test_every_point_belongs_to_its_nearest_centroid() -> None:
    points = np.random.default_rng(1).normal(size=(300, 7)).astype(np.float32)
    found = kmeans(points, 11, iterations=5, rng=np.random.default_rng(0))
    distances = ((points[:, None] - found.centroids_KD[None]) ** 2).sum(axis=2)
    assert np.array_equal(found.cluster_N, distances.argmin(axis=1))
    np.testing.assert_allclose(found.distance_N, distances.min(axis=1), rtol=1e-3, atol=1e-4)


def test_rounds_end_when_the_centroids_have_settled_and_never_pass_what_is_allowed() -> None:
    easy = kmeans(blobs((200, 200, 200)), 3, iterations=500, rng=np.random.default_rng(0))
    assert easy.rounds <= 10
    hard = np.random.default_rng(1).normal(size=(3000, 8)).astype(np.float32)
    assert kmeans(hard, 60, iterations=7, rng=np.random.default_rng(0)).rounds == 7
    soon, late = (kmeans(hard, 60, iterations=most, rng=np.random.default_rng(0)).distance_N.sum() for most in (5, 500))
    assert late < 0.997 * soon  # five rounds were not enough, and were not taken for enough


def test_more_clusters_than_points_are_refused() -> None:
    with pytest.raises(ValueError, match="9 clusters of 4 points: ask for 1 to 4"):
        kmeans(blobs((4,)), 9, rng=np.random.default_rng(0))


def test_levels_must_fall() -> None:
    with pytest.raises(ConfigError, match="give falling numbers, the finest level first"):
        HierarchyConfig(num_clusters=(10, 100), resample_points=(0, 0))


def test_points_chosen_for_resampling_are_the_nearest_of_each_cluster() -> None:
    points = np.random.default_rng(2).normal(size=(200, 3)).astype(np.float32)
    clustering = assign(points, points[:17])
    naive: set[int] = set()
    for cluster in range(17):
        members = np.flatnonzero(clustering.cluster_N == cluster)
        naive |= set(members[np.argsort(clustering.distance_N[members])[:4]].tolist())
    assert nearest_points(clustering, 4).tolist() == sorted(naive)


def test_each_level_and_resampling_bring_centroids_nearer_to_uniform() -> None:
    points = toy(np.random.default_rng(0))[::3]
    kinds = {(100,): 0, (500, 100): 0, (1000, 333, 100): 2}
    found = []
    for levels, resampled in kinds.items():
        config = HierarchyConfig(num_clusters=levels, resample_points=(resampled,) * len(levels), num_resamples=4)
        found.append(divergence_from_uniform(cluster_hierarchy(points, config).levels[-1].centroids_KD))
    data = divergence_from_uniform(points)
    assert data > 0.85
    assert data - 0.3 > found[0] > found[1] + 0.1 > found[2] + 0.15


@settings(max_examples=200)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(0, 500), st.integers(0, 5))
def test_shares_sum_to_the_target_never_exceed_a_cluster_and_are_as_even_as_can_be(
    sizes: list[int], target: int, seed: int
) -> None:
    available = np.array(sizes, dtype=np.int64)
    shares = balanced_shares(available, target, np.random.default_rng(seed))
    assert shares.sum() == min(target, available.sum())
    assert (shares <= available).all()
    not_exhausted = shares < available
    if not_exhausted.any():
        assert shares.max() - shares[not_exhausted].min() <= 1


@pytest.mark.parametrize("pick", ["random", "nearest"])
def test_a_sample_has_exactly_the_size_asked_for_and_no_picture_twice(skewed: Hierarchy, pick: str) -> None:
    for target in (0, 1, 7, 100, 999):
        chosen = sample_hierarchy(skewed, target, rng=np.random.default_rng(0), pick=pick)  # type: ignore[arg-type]
        assert len(chosen) == len(set(chosen.tolist())) == target


def test_asking_for_more_than_there_is_gives_everything(skewed: Hierarchy) -> None:
    assert sample_hierarchy(skewed, 5000, rng=np.random.default_rng(0)).tolist() == list(range(1000))


def test_equal_shares_fall_on_kinds_and_not_on_pictures(skewed: Hierarchy) -> None:
    chosen = sample_hierarchy(skewed, 50, rng=np.random.default_rng(0))
    kinds = np.repeat(np.arange(5), (800, 100, 60, 30, 10))
    assert np.bincount(kinds[chosen], minlength=5).tolist() == [10, 10, 10, 10, 10]


def test_the_same_seed_gives_the_same_clusters() -> None:
    config = HierarchyConfig(num_clusters=(20, 4), resample_points=(2, 0), num_resamples=2, iterations=5)
    first, second = (cluster_hierarchy(blobs((90, 30, 10)), config) for _ in range(2))
    assert all(np.array_equal(a.cluster_N, b.cluster_N) for a, b in zip(first.levels, second.levels, strict=True))


def test_progress_counts_every_run() -> None:
    seen: list[tuple[int, int]] = []
    config = HierarchyConfig(num_clusters=(20, 4), resample_points=(2, 0), num_resamples=2, iterations=2)
    cluster_hierarchy(blobs((90, 30)), config, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
