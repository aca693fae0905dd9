"""Hierarchical k-means against the published toy, and what its sampling does for the rare.

hier_kl_*         9,000 points of three Gaussians and a uniform floor on [-3, 3]^2: the Kullback-Leibler divergence of
                  the top centroids' density (Gaussian kernel, 0.5) from uniform. Published: 0.340 for one level of
                  300, 0.132 for two, 0.081 for three, 0.042 with resampling (hier_kl; hier_kl_1, _2, _3 without); 300
                      uniform points themselves give 0.040 (here hier_kl_uniform).
hier_ring_count   the published ring example: 29,700 points, [1000, 300] clusters, 1,000 asked for
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from benchmarks.krablet.rounds import Result, result
from pleinair.curation.clusters.hierarchy import HierarchyConfig, cluster_hierarchy, sample_hierarchy
from pleinair.curation.clusters.kmeans import Points

PUBLISHED = {"1": 0.340, "2": 0.132, "3": 0.081, "3r": 0.042}
LEVELS = {"1": (300,), "2": (1500, 300), "3": (3000, 1000, 300), "3r": (3000, 1000, 300)}


def toy(rng: np.random.Generator) -> Points:
    """The 9,000 points."""
    parts = [
        rng.normal(centre, 0.5, (count, 2)) for centre, count in (((-1, -1), 7000), ((1, -1), 1000), ((0, 1), 500))
    ]
    return np.concatenate([*parts, rng.uniform(-3, 3, (500, 2))]).astype(np.float32)


def rings(rng: np.random.Generator) -> Points:
    """29,700 points in five rings, most of them in the first."""
    parts = []
    for number, count in enumerate((20_000, 6_000, 2_500, 900, 300)):
        angle, radius = rng.uniform(0, 2 * np.pi, count), rng.normal(1 + number, 0.1, count)
        parts.append(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1))
    return np.concatenate(parts).astype(np.float32)


def divergence_from_uniform(points_ND: npt.NDArray[np.float32], bandwidth: float = 0.5, side: int = 200) -> float:
    """KL(density of the points || uniform on [-3, 3]^2), on a grid; the density is cut off and normalised there."""
    axis = (np.arange(side) + 0.5) / side * 6 - 3
    along = [np.exp(-((axis[:, None] - points_ND[:, dim]) ** 2) / (2 * bandwidth**2)) for dim in (0, 1)]
    density = along[0] @ along[1].T
    density /= density.sum()
    return float((density * np.log(density * side * side)).sum())


def measure(rounds: int = 3) -> list[Result]:
    """The toy over `rounds` seeds, then the rings."""
    kls: dict[str, list[float]] = {name: [] for name in ("data", "uniform", *LEVELS)}
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        points = toy(rng)
        kls["data"].append(divergence_from_uniform(points))
        kls["uniform"].append(divergence_from_uniform(rng.uniform(-3, 3, (300, 2)).astype(np.float32)))
        for name, levels in LEVELS.items():
            config = HierarchyConfig(
                num_clusters=levels, resample_points=(2 if name == "3r" else 0,) * len(levels), seed=seed
            )
            began = time.process_time()
            centroids = cluster_hierarchy(points, config).levels[-1].centroids_KD
            kls[name].append(divergence_from_uniform(centroids))
            print(f"  seed {seed}, {name}: KL {kls[name][-1]:.3f}, {time.process_time() - began:.0f} CPU-s", flush=True)
    rows = [
        result(
            "hier_kl" if name == "3r" else f"hier_kl_{name}",
            float(np.mean(values)),
            "nat",
            "published",
            np.mean(values) / PUBLISHED[name] if name in PUBLISHED else None,
        )
        for name, values in kls.items()
    ]
    config = HierarchyConfig(num_clusters=(1000, 300), resample_points=(15, 2))
    chosen = sample_hierarchy(
        cluster_hierarchy(rings(np.random.default_rng(0)), config), 1000, rng=np.random.default_rng(0)
    )
    return [*rows, result("hier_ring_count", float(len(np.unique(chosen))), "points")]
