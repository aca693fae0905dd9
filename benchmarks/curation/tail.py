"""What balanced sampling does for the rare, against random sampling of the same budget, over seeds.

    tail_cifar         CIFAR-10 made long-tailed, 1,850 pictures of one class down to 18 of another (exponential, 100 to 1):
                       share of the sample from the three rarest classes. A seed deals the classes anew and turns them five
                       times, so that every class is rare as often as another: some are dense in any vectors, some loose
    tail_openclipart   share of the keywords of at most 5 clip-arts that at least one sampled picture has
    tail_drawings      the same for tags of at most 20 drawings

The budget is a tenth of the pictures. Beside the default of `pleinair cluster` (`tail_*`) stand one level of k-means with
equal shares (`_flat`), the finest level alone (`_finest`), vectors as projected, not brought back to length 1
(`_projected`), and for CIFAR what tells method from encoder: vectors that know the class (`_known`, one-hot and noise;
`_probe`, outputs of a linear probe fitted to other pictures) and equal shares of the classes themselves (`_best`).
`_gain` is `tail_*` less random with its 95% interval over the seeds (Student's t), `_gain_low` the interval's lower end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from benchmarks.curation.pools import Pool, pool
from benchmarks.krablet.rounds import Result, result
from pleinair.curation.clusters.hierarchy import (
    Hierarchy,
    HierarchyConfig,
    balanced_shares,
    cluster_hierarchy,
    sample_hierarchy,
)
from pleinair.curation.clusters.kmeans import Points
from pleinair.curation.clusters.warehouse import ClusterConfig, leading_directions, levels_for

Rows = npt.NDArray[np.int64]
Score = Callable[[Rows], float]
Shares = dict[str, float]
T_95 = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262}
RARE = {"openclipart": 5, "drawings": 20}
MOST, IMBALANCE, NUM_RARE = 1850, 100, 3
TURNS = (0, 2, 4, 6, 8)
DRAWS = 5


def measure_cifar(seeds: int = 5) -> list[Result]:
    """The long-tailed photographs."""
    pictures = pool("cifar")
    return summarised("tail_cifar", [cifar_round(pictures, seed) for seed in range(seeds)])


def measure_words(name: str, seeds: int = 5) -> list[Result]:
    """`openclipart` or `drawings`."""
    pictures = pool(name)
    return summarised(f"tail_{name}", [keyword_round(pictures, RARE[name], seed) for seed in range(seeds)])


def keyword_round(pictures: Pool, most: int, seed: int) -> Shares:
    """Shares of the rare words that a tenth of the pictures still says, by sampler."""
    counts = Counter(word for own in pictures.labels for word in set(own))
    rare = {word for word, count in counts.items() if count <= most}

    def covered(chosen: Rows) -> float:
        return len(rare & {word for row in chosen.tolist() for word in pictures.labels[row]}) / len(rare)

    return told(seed, {**sampled(pictures.unit(), covered, seed), **projected(pictures.unit(), covered, seed)})


def cifar_round(pictures: Pool, seed: int) -> Shares:
    """Shares of the three rarest classes in a tenth of a long-tailed set, by sampler, mean over the turns."""
    classes = np.array([int(own[0]) for own in pictures.labels])
    dealt = np.random.default_rng(seed).permutation(10)
    turns = [cifar_turn(pictures.vectors_ND, classes, np.roll(dealt, turn), seed) for turn in TURNS]
    known = knowing_round(pictures, classes, dealt, seed)
    return told(seed, {**{name: float(np.mean([turn[name] for turn in turns])) for name in turns[0]}, **known})


def cifar_turn(vectors_ND: Points, classes: Rows, dealt: Rows, seed: int) -> Shares:
    """One dealing of the classes, the most frequent first."""
    rows = long_tailed(classes, dealt, MOST, np.random.default_rng(seed))
    return sampled(centred(vectors_ND[rows]), tail_share(classes[rows], dealt), seed)


def knowing_round(pictures: Pool, classes: Rows, dealt: Rows, seed: int) -> Shares:
    """The same with vectors that know the classes, on the second half of the pictures; as multiples of random."""
    half, unit_ND = len(classes) // 2, pictures.unit()
    rng = np.random.default_rng(seed)
    rows = half + long_tailed(classes[half:], dealt, MOST // 2, rng)
    score, num_rare = tail_share(classes[rows], dealt), np.isin(classes[rows], dealt[-NUM_RARE:]).mean()
    one_hot = np.eye(10, 64, dtype=np.float32)[classes[rows]]
    noisy = one_hot + 0.075 * rng.normal(size=one_hot.shape).astype(np.float32)
    vectors = {
        "known": noisy,
        "probe": unit_ND[rows] @ linear_probe(unit_ND[:half], classes[:half]),
        "half": pictures.vectors_ND[rows],
    }
    shares = {name: sampled(centred(of_kind), score, seed)["hierarchy"] for name, of_kind in vectors.items()}
    counts = np.bincount(classes[rows], minlength=10)
    best = balanced_shares(counts, len(rows) // 10, rng)[dealt[-NUM_RARE:]].sum() / (len(rows) // 10)
    return {f"{name} x": share / num_rare for name, share in {**shares, "best": best}.items()}


def long_tailed(classes: Rows, dealt: Rows, most: int, rng: np.random.Generator) -> Rows:
    """Rows of every class, falling exponentially from `most` by IMBALANCE in the order dealt."""
    counts = [round(most * IMBALANCE ** (-place / (len(dealt) - 1))) for place in range(len(dealt))]
    return np.concatenate(
        [
            rng.choice(np.flatnonzero(classes == name), count, replace=False)
            for name, count in zip(dealt, counts, strict=True)
        ]
    )


def tail_share(classes: Rows, dealt: Rows) -> Score:
    """The share of the rarest classes among chosen rows."""
    tail = np.isin(classes, dealt[-NUM_RARE:])
    return lambda chosen: float(tail[chosen].mean())


def linear_probe(unit_ND: Points, classes: Rows, ridge: float = 3.0) -> Points:
    """Ridge regression from vectors to classes, (D, 10)."""
    wanted = np.eye(10, dtype=np.float32)[classes] - 0.1
    weights: Points = np.linalg.solve(unit_ND.T @ unit_ND + ridge * np.eye(unit_ND.shape[1]), unit_ND.T @ wanted)
    return weights.astype(np.float32)


def centred(vectors_ND: Points) -> Points:
    """Centred, at length 1, as clustering takes them."""
    return Pool(vectors_ND, []).unit()


def sampled(unit_ND: Points, score: Score, seed: int) -> Shares:
    """The score of each sampler at one budget: the default, parts of it, and random."""
    points, rng = leading_directions(unit_ND, ClusterConfig().dims), np.random.default_rng(seed)
    hierarchy = cluster_hierarchy(points, levels(len(points), seed))
    plain = HierarchyConfig(num_clusters=levels(len(points), seed).num_clusters[:1], resample_points=(0,), seed=seed)
    samplers = {
        "hierarchy": hierarchy,
        "flat": cluster_hierarchy(points, plain),
        "finest": Hierarchy(hierarchy.levels[:1]),
    }
    budget = len(points) // 10
    random = np.mean([score(rng.choice(len(points), budget, replace=False)) for _ in range(4 * DRAWS)])
    return {"random": float(random), **{name: drawn(made, budget, score, rng) for name, made in samplers.items()}}


def projected(unit_ND: Points, score: Score, seed: int) -> Shares:
    """The hierarchy over vectors whose left-out directions shorten them."""
    _, directions_DD = np.linalg.eigh(unit_ND.T @ unit_ND)
    points = np.ascontiguousarray(unit_ND @ directions_DD[:, -ClusterConfig().dims :], dtype=np.float32)
    hierarchy = cluster_hierarchy(points, levels(len(points), seed))
    return {"projected": drawn(hierarchy, len(points) // 10, score, np.random.default_rng(seed))}


def levels(num_points: int, seed: int) -> HierarchyConfig:
    """The default levels with another seed and fewer rounds."""
    made = levels_for(num_points)
    return HierarchyConfig(
        num_clusters=made.num_clusters, resample_points=made.resample_points, iterations=20, seed=seed
    )


def drawn(hierarchy: Hierarchy, budget: int, score: Score, rng: np.random.Generator) -> float:
    """The mean score of a few samples."""
    return float(np.mean([score(sample_hierarchy(hierarchy, budget, rng=rng)) for _ in range(DRAWS)]))


def told(seed: int, found: Shares) -> Shares:
    """`found`, printed."""
    print(f"  seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
    return found


def summarised(name: str, rounds: list[Shares]) -> list[Result]:
    """The mean of every sampler beside random, and the interval of hierarchy less random."""
    means = {kind: float(np.mean([one[kind] for one in rounds])) for kind in rounds[0]}
    differences = np.array([one["hierarchy"] - one["random"] for one in rounds])
    gain, half = float(differences.mean()), T_95[len(rounds) - 1] * differences.std(ddof=1) / len(rounds) ** 0.5
    return [
        *(_row(name, kind, value, means) for kind, value in means.items()),
        result(f"{name}_gain", gain, "share", f"random; +- {half:.4f} (95%, {len(rounds)} seeds)"),
        result(f"{name}_gain_low", gain - half, "share", f"random; 95%, {len(rounds)} seeds"),
    ]


def _row(name: str, kind: str, value: float, means: Mapping[str, float]) -> Result:
    if kind == "random":
        return result(f"{name}_random", value, "share")
    if kind.endswith(" x"):
        return result(f"{name}_{kind[:-2]}", value, "times random, half the pictures")
    return result(name if kind == "hierarchy" else f"{name}_{kind}", value, "share", "random", value / means["random"])
