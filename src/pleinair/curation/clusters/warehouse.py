"""Clusters of kept pictures: made, named, flagged, written to the warehouse.

    vectors --centre, PCA--> hierarchy --> images.cluster ("17/204": top/leaf)
                                      `--> clusters: one row each with size, name, words, flags, the pictures nearest

Everything depends on the pictures, their vectors and the configuration alone, and so does the name of the run: the same
command gives the same clusters under the same names, and decisions taken on them (pleinair.curation.clusters.reviews) still hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pleinair.config import config_digest
from pleinair.curation.clusters.hierarchy import Hierarchy, HierarchyConfig, cluster_hierarchy
from pleinair.curation.clusters.kmeans import Indices, Points
from pleinair.curation.clusters.names import Namer, name_by_words
from pleinair.curation.embeddings import Embedded, embedded_table, read_embeddings
from pleinair.curation.stages import IMAGES, PASSED
from pleinair.curation.store import ObjectStore
from pleinair.curation.vocabulary import Vocabulary
from pleinair.krablet import Database, Table
from pleinair.records.errors import ConfigError

CLUSTER_COLUMNS: Mapping[str, str] = {"cluster_run": "text", "cluster": "text", "cluster_drop": "text"}
TABLE_COLUMNS: Mapping[str, str] = {
    "cluster_id": "text",
    "run": "text",
    "cluster": "text",
    "level": "integer",
    "size": "integer",
    "name": "text",
    "words": "text[]",
    "flags": "text[]",
    "nearest": "text[]",
}
MAX_TOP = 10_000
"""Clusters of the coarsest level; as many as the paper has over 743 million pictures."""
_FACTS = ("image_name", "caption_long", "entropy", "border_flatness", "image_path")


@dataclass(frozen=True, kw_only=True)
class FlagLimits:
    """From when on a rule asks a person to look at a cluster. A flag drops nothing."""

    max_similarity: float = 0.9
    """Mean cosine of a cluster's pictures to their mean, over which they are all but one picture."""
    min_entropy: float = 0.5
    """Median bits per channel, under which a cluster is nearly blank."""
    max_share: float = 0.25
    """Share of all pictures in one cluster of the finest level, over which it is a heap."""

    def __post_init__(self) -> None:
        for name in ("max_similarity", "max_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"flags.{name} is {getattr(self, name)}: give a number over 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """How pictures are clustered."""

    hierarchy: HierarchyConfig | None = None
    """Levels; None chooses about 15 pictures a leaf and three leaves a cluster (`levels_for`)."""
    dims: int = 128
    """Leading principal directions of the centred vectors that are clustered."""
    num_nearest: int = 12
    """Pictures nearest to a centroid, for its sheet and its name."""
    flags: FlagLimits = field(default_factory=FlagLimits)
    """Rules that ask for a look."""


@dataclass(frozen=True)
class ClusterRow:
    """One cluster as the table `clusters` holds it."""

    cluster_id: str
    run: str
    cluster: str
    """Numbers from the top level down, with slashes."""
    level: int
    """0 is the finest."""
    size: int
    name: str
    words: list[str]
    flags: list[str]
    """`kind: why`, from a rule or a vision-language model."""
    nearest: list[str]
    """Names of the pictures nearest to the centroid, nearest first."""


def levels_for(num_pictures: int) -> HierarchyConfig:
    """Levels for a number of pictures: leaves of about 15 pictures, three leaves a cluster of the next level.

    A few coarse clusters on top would undo the balance: each gets the same share, however many kinds it holds. Tenths of
    a level follow only while it has more than MAX_TOP clusters.
    """
    sizes = [max(1, num_pictures // 15)]
    if sizes[0] >= 3:
        sizes.append(sizes[0] // 3)
    while sizes[-1] > MAX_TOP:
        sizes.append(sizes[-1] // 10)
    return HierarchyConfig(num_clusters=tuple(sizes), resample_points=(7, 2, *(5,) * len(sizes))[: len(sizes)])


def clustered_table(db: Database) -> Table:
    """`images` with the columns of this module."""
    return db.table(IMAGES, key="image_name", columns={**embedded_table(db).columns, **CLUSTER_COLUMNS})


def clusters_table(db: Database) -> Table:
    """The declared `clusters` table."""
    return db.table("clusters", key="cluster_id", columns=TABLE_COLUMNS)


def cluster_pictures(
    db: Database,
    store: ObjectStore,
    config: ClusterConfig | None = None,
    *,
    namer: Namer = name_by_words,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[ClusterRow]:
    """Cluster all kept pictures that have a vector and write what was found. Raises SourceError without vectors."""
    config, images = config or ClusterConfig(), clustered_table(db)
    embedded = read_embeddings(images, store, where=PASSED)
    hierarchy = make_hierarchy(embedded, config, on_progress)
    run, facts = run_name(embedded, config), read_facts(images, embedded.names)
    rows = list(describe_clusters(run, embedded, hierarchy, facts, config, store, namer))
    clusters_table(db).upsert(asdict(row) for row in rows)
    paths = cluster_paths(hierarchy)[0]
    images.update(
        {"image_name": name, "cluster_run": run, "cluster": paths[leaf]}
        for name, leaf in zip(embedded.names, hierarchy.cluster_of_points(0).tolist(), strict=True)
    )
    images.update(_left_behind(images, run))
    return rows


def _left_behind(images: Table, run: str) -> Iterator[dict[str, object]]:
    """Pictures that are in a cluster of an earlier run and in none of this one."""
    for batch in images.read(where="cluster_run <> %(run)s", params={"run": run}, columns=["image_name"]):
        for name in batch.column("image_name").to_pylist():
            yield {"image_name": name, **dict.fromkeys(CLUSTER_COLUMNS)}


def make_hierarchy(
    embedded: Embedded,
    config: ClusterConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Hierarchy:
    """The hierarchy over pictures' vectors. Raises ValueError for more clusters than pictures."""
    levels = config.hierarchy or levels_for(len(embedded.names))
    return cluster_hierarchy(leading_directions(embedded.unit(), config.dims), levels, on_progress)


def leading_directions(unit_ND: Points, dims: int) -> Points:
    """Coordinates along the `dims` directions of largest variance, (N, dims) at most, brought back to length 1.

    What is rare lies in directions that are rare, and these are left out: as projected, rare pictures crowd about the
    centre and pass for common ones. At length 1 they are as far from others as they were (docs/curation-clusters.md).
    """
    if dims >= min(unit_ND.shape):
        return unit_ND
    _, directions_DD = np.linalg.eigh(unit_ND.T @ unit_ND)
    projected_ND = unit_ND @ directions_DD[:, -dims:]
    lengths_N1 = np.linalg.norm(projected_ND, axis=1, keepdims=True)
    return np.ascontiguousarray(projected_ND / np.maximum(lengths_N1, 1e-12), dtype=np.float32)


def run_name(embedded: Embedded, config: ClusterConfig) -> str:
    """Eight hex digits that depend on the configuration and on every picture and its vector."""
    digest = hashlib.sha256("\n".join([config_digest([asdict(config)]), *embedded.names]).encode())
    digest.update(np.ascontiguousarray(embedded.vectors_ND).data)
    return digest.hexdigest()[:8]


def read_facts(images: Table, names: Sequence[str]) -> list[dict[str, Any]]:
    """What naming and flags look at, in the order of the names."""
    found = {
        row["image_name"]: row
        for batch in images.read(where=f"{PASSED} AND embedding_path IS NOT NULL", columns=list(_FACTS))
        for row in batch.to_pylist()
    }
    return [found[name] for name in names]


def cluster_paths(hierarchy: Hierarchy) -> list[list[str]]:
    """The path of every cluster, by level: a number per level from the top down."""
    top = len(hierarchy.levels) - 1
    paths = [[str(number) for number in range(len(hierarchy.levels[top].centroids_KD))]]
    for upper in reversed(hierarchy.levels[1:]):
        paths.insert(0, [f"{paths[0][above]}/{number}" for number, above in enumerate(upper.cluster_N.tolist())])
    return paths


def describe_clusters(
    run: str,
    embedded: Embedded,
    hierarchy: Hierarchy,
    facts: Sequence[Mapping[str, Any]],
    config: ClusterConfig,
    store: ObjectStore,
    namer: Namer,
) -> Iterator[ClusterRow]:
    """A row per cluster that holds pictures, finest level first."""
    from pleinair.model.two_tower import words_of

    unit_ND = embedded.unit()
    vocabulary = Vocabulary([words_of(fact["caption_long"] or "") for fact in facts])
    for level, paths in enumerate(cluster_paths(hierarchy)):
        cluster_N = hierarchy.cluster_of_points(level)
        for number, members in enumerate(split_by(cluster_N, len(paths))):
            if not len(members):
                continue
            centre_D = unit_ND[members].mean(axis=0)
            nearest = members[np.argsort(-(unit_ND[members] @ centre_D), kind="stable")[: config.num_nearest]]
            words = [named.word for named in vocabulary.names(members)]
            described = namer([store.get(facts[row]["image_path"]) for row in nearest.tolist()], words)
            flags = rule_flags(members, facts, unit_ND, level, config.flags)
            yield ClusterRow(
                cluster_id=f"{run}:{paths[number]}",
                run=run,
                cluster=paths[number],
                level=level,
                size=len(members),
                name=described.name,
                words=words,
                flags=flags + ([f"model: {described.flag}"] if described.flag else []),
                nearest=[embedded.names[row] for row in nearest.tolist()],
            )


def split_by(cluster_N: Indices, count: int) -> list[Indices]:
    """The points of each cluster."""
    return np.split(np.argsort(cluster_N, kind="stable"), np.cumsum(np.bincount(cluster_N, minlength=count))[:-1])


def rule_flags(
    members: Indices,
    facts: Sequence[Mapping[str, Any]],
    unit_ND: npt.NDArray[np.float32],
    level: int,
    limits: FlagLimits,
) -> list[str]:
    """Why a person should look at a cluster, each as `kind: value and limit`."""
    entropy = float(np.median([facts[row]["entropy"] for row in members.tolist()]))
    share = len(members) / len(facts)
    # The mean of unit vectors has length sqrt(mean cosine of all pairs); a single picture is no flaw.
    similarity = float(np.linalg.norm(unit_ND[members].mean(axis=0))) if len(members) > 2 else 0.0
    checks = (
        ("alike", similarity > limits.max_similarity, f"similarity {similarity:.2f}, over {limits.max_similarity:g}"),
        ("plain", entropy < limits.min_entropy, f"median entropy {entropy:.2f} bits, under {limits.min_entropy:g}"),
        ("heap", level == 0 and share > limits.max_share, f"{share:.0%} of all pictures, over {limits.max_share:.0%}"),
    )
    return [f"{kind}: {why}" for kind, failed, why in checks if failed]
