"""What balanced sampling does for the rare, against random sampling of the same budget, over seeds.

    tail_cifar        CIFAR-10 made long-tailed (1,850 pictures of one class down to 18, classes dealt anew per seed): share
                      of the sample from the three rarest classes
    tail_drawings     share of the tags of at most 20 drawings that at least one sampled drawing has
    tail_openclipart  the same for keywords of at most 5 clip-arts

The same from one level of k-means (equal shares over leaves) stands beside it: what the hierarchy adds to clustering.
Intervals are 95%, Student's t over the seeds' differences from random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from benchmarks.curation.pools import Pool, pool
from benchmarks.krablet.rounds import Result, result
from pleinair.curation.clusters.hierarchy import Hierarchy, HierarchyConfig, cluster_hierarchy, sample_hierarchy
from pleinair.curation.clusters.warehouse import leading_directions, levels_for

Rows = npt.NDArray[np.int64]
T_95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262}
DIMS = 64


def measure(seeds: int = 5) -> list[Result]:
    """All three, `seeds` times."""
    cifar, kept = pool("cifar"), {"drawings": 20, "openclipart": 5}
    figures = {"cifar": [cifar_round(cifar, seed) for seed in range(seeds)]}
    for name, most in kept.items():
        labelled = pool(name)
        figures[name] = [keyword_round(labelled, most, seed) for seed in range(seeds)]
    return [row for name, rounds in figures.items() for row in summarised(f"tail_{name}", rounds)]


def cifar_round(pictures: Pool, seed: int) -> dict[str, float]:
    """Shares of the three rarest classes in a tenth of a long-tailed set, by sampler."""
    rng = np.random.default_rng(seed)
    classes = np.array([int(own[0]) for own in pictures.labels])
    dealt = rng.permutation(10)
    rows = np.concatenate(
        [
            rng.choice(np.flatnonzero(classes == name), round(1850 * 100 ** (-place / 9)), replace=False)
            for place, name in enumerate(dealt)
        ]
    )
    tail = np.isin(classes[rows], dealt[-3:])
    return sampled(pictures.unit()[rows], len(rows) // 10, lambda chosen: float(tail[chosen].mean()), seed)


def keyword_round(pictures: Pool, most: int, seed: int) -> dict[str, float]:
    """Shares of the rare words that a tenth of the pictures still says, by sampler."""
    counts = Counter(word for own in pictures.labels for word in set(own))
    rare = {word for word, count in counts.items() if count <= most}

    def covered(chosen: Rows) -> float:
        return len(rare & {word for row in chosen.tolist() for word in pictures.labels[row]}) / len(rare)

    return sampled(pictures.unit(), len(pictures.labels) // 10, covered, seed)


def sampled(
    unit_ND: npt.NDArray[np.float32], budget: int, score: Callable[[Rows], float], seed: int
) -> dict[str, float]:
    """The score of each sampler at one budget."""
    points, rng = leading_directions(unit_ND, DIMS), np.random.default_rng(seed)
    levels = levels_for(len(points))
    config = HierarchyConfig(
        num_clusters=levels.num_clusters, resample_points=levels.resample_points, iterations=20, seed=seed
    )
    hierarchy = cluster_hierarchy(points, config)
    flat = cluster_hierarchy(
        points,
        HierarchyConfig(num_clusters=levels.num_clusters[:1], resample_points=(0,), iterations=20, seed=seed),
    )
    random = np.mean([score(rng.choice(len(points), budget, replace=False)) for _ in range(20)])
    found = {"random": float(random)}
    for name, made in (("hierarchy", hierarchy), ("flat", flat), ("finest level", Hierarchy(hierarchy.levels[:1]))):
        found[name] = float(np.mean([score(sample_hierarchy(made, budget, rng=rng)) for _ in range(5)]))
    print(f"  seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
    return found


def summarised(name: str, rounds: list[dict[str, float]]) -> list[Result]:
    """The mean of every sampler beside random, and the half-width of the interval of hierarchy minus random."""
    means = {kind: float(np.mean([one[kind] for one in rounds])) for kind in rounds[0]}
    differences = np.array([one["hierarchy"] - one["random"] for one in rounds])
    half = T_95[len(rounds) - 1] * differences.std(ddof=1) / len(rounds) ** 0.5
    rows = [
        result(f"{name}_{kind.replace(' ', '_')}", value, "share", "random", value / means["random"])
        for kind, value in means.items()
        if kind != "random"
    ]
    return [
        *rows,
        result(f"{name}_random", means["random"], "share"),
        result(f"{name}_gain", float(differences.mean()), "share", f"+- {half:.4f} (95%, {len(rounds)} seeds)"),
    ]
