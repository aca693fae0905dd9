"""Duplicates in meaning, in the warehouse: pairs are rows, looked at once, by any number of workers.

    images (clustered, embedded) --candidates--> semantic_pairs --confirm (queue stage)--> same, difference
                                                       `--judge--> images.semantic_drop, semantic_group, semantic_of

A pair is named by the contents of its two pictures, so no later run looks at it again: a new ingest costs its own pairs.
The verdicts are made anew from all pairs that are candidates now, and only what changed is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pleinair.curation.clusters.alignment import SIDE, VERSION, Alignment, AlignmentLimits, align
from pleinair.curation.clusters.semantic import CandidateLimits, Candidates, candidates, judge
from pleinair.curation.clusters.warehouse import clustered_table
from pleinair.curation.curate import CurationConfig
from pleinair.curation.duplicates import codes, differ, keeper_order
from pleinair.curation.embeddings import Embedded, read_embeddings
from pleinair.curation.fetch import Outcome, Row
from pleinair.curation.pictures import decode
from pleinair.curation.stages import PASSED, STAGE_COLUMNS
from pleinair.curation.store import ObjectStore
from pleinair.krablet import Database, Progress, RunSummary, Stage, Table, run_workers
from pleinair.records.errors import ImageError, SourceError, require

PAIR_COLUMNS: Mapping[str, str] = {
    "pair": "text",
    "first_path": "text",
    "second_path": "text",
    "similarity": "real",
    "wanted": "boolean",
    "difference": "real",
    "overlap": "real",
    "shear": "real",
}
_MEASURED = ("difference", "overlap", "shear")
_FACTS = ("image_name", "image_path", "cluster", "colour_v2", "style", "concept", "held_out", "width", "height")
_JUDGED = f"{PASSED} AND cluster IS NOT NULL AND phash12_v2 IS NOT NULL"


@dataclass(frozen=True, kw_only=True)
class SemanticConfig:
    """How duplicates in meaning are found."""

    candidates: CandidateLimits = field(default_factory=CandidateLimits)
    alignment: AlignmentLimits = field(default_factory=AlignmentLimits)
    style_order: tuple[str, ...] = field(default_factory=lambda: CurationConfig().duplicates.style_order)
    """Styles whose pictures are kept first."""


@dataclass(frozen=True)
class SemanticRun:
    """What a run did."""

    run: RunSummary
    num_pairs: int
    """Candidates; those of earlier runs were not looked at again."""
    num_dropped: int
    num_changed: int
    """Rows of `images` whose verdict changed."""


def pairs_table(db: Database) -> Table:
    """The declared `semantic_pairs` table."""
    return db.table("semantic_pairs", key="pair", columns=PAIR_COLUMNS)


def confirm_stage(pairs: Table) -> Stage:
    """The stage that looks at pixels."""
    return pairs.stage(
        "confirm",
        ready="difference IS NULL AND wanted",
        writes=list(_MEASURED),
        reads=["first_path", "second_path"],
        batch=64,
        lease_seconds=120.0,
    )


def find_semantic_duplicates(
    db: Database,
    store: Path,
    config: SemanticConfig | None = None,
    *,
    processes: int = 2,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> SemanticRun:
    """Judge every clustered picture that passed the rest. Raises SourceError where nothing is embedded."""
    config, images, pairs = config or SemanticConfig(), clustered_table(db), pairs_table(db)
    embedded = read_embeddings(images, ObjectStore(store), where=_JUDGED)
    facts = _read_facts(images, embedded.names)
    found = find_candidates(embedded, facts, config.candidates)
    wanted = _pair_rows(found, facts)
    _want(pairs, wanted)
    spec = confirm_stage(pairs).spec("pleinair.curation.clusters.semantic_pairs:confirm", store=str(store.resolve()))
    run = run_workers(db, [spec], processes=processes, on_progress=on_progress)
    verdicts = _verdicts(found, facts, _measured(pairs), config)
    num_changed = images.update(_changed(images, verdicts))
    return SemanticRun(run, len(wanted), sum(bool(drop) for drop, _, _ in verdicts.values()), num_changed)


def find_candidates(embedded: Embedded, facts: Sequence[Mapping[str, Any]], limits: CandidateLimits) -> Candidates:
    """Pairs of one cluster above the leaves whose labels do not contradict each other and whose bytes differ."""
    cluster_N = codes([_above(fact["cluster"]) for fact in facts])
    found = candidates(embedded.unit(), _levels(facts), cluster_N, limits)
    first, second = found.pairs.T
    apart = np.zeros(len(found.pairs), np.bool_)
    for label in ("style", "concept"):
        numbers = codes([fact[label] for fact in facts])
        apart |= differ(numbers[first], numbers[second])
    files = codes([fact["image_path"] for fact in facts])
    apart |= files[first] == files[second]
    return Candidates(found.pairs[~apart], found.similarity[~apart])


def _above(cluster: str) -> str:
    """The cluster over a leaf: leaves are so small that a copy may fall beside its original."""
    return cluster.rpartition("/")[0]


def _levels(facts: Sequence[Mapping[str, Any]]) -> NDArray[np.int16]:
    return np.array([[int(level, 16) for level in fact["colour_v2"]] for fact in facts], dtype=np.int16)


def _read_facts(images: Table, names: Sequence[str]) -> list[dict[str, Any]]:
    found = {
        row["image_name"]: row
        for batch in images.read(where=_JUDGED, columns=list(_FACTS))
        for row in batch.to_pylist()
    }
    return [found[name] for name in names]


def _pair_name(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    contents = sorted(Path(fact["image_path"]).stem[:32] for fact in (first, second))
    return f"{VERSION}:{contents[0]}:{contents[1]}"


def _pair_rows(found: Candidates, facts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    rows = {}
    for (first, second), similarity in zip(found.pairs.tolist(), found.similarity.tolist(), strict=True):
        paths = sorted((facts[first]["image_path"], facts[second]["image_path"]))
        name = _pair_name(facts[first], facts[second])
        rows[name] = {"pair": name, "first_path": paths[0], "second_path": paths[1], "similarity": similarity}
    return rows


def _want(pairs: Table, wanted: Mapping[str, dict[str, Any]]) -> None:
    """Queue pairs that are new; those no longer asked for wait, as their pictures may be gone."""
    pairs.insert_missing({**row, "wanted": True} for row in wanted.values())
    pairs.update(_asked(pairs, wanted))


def _asked(pairs: Table, wanted: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    for batch in pairs.read(where="difference IS NULL", columns=["pair", "wanted"]):
        for row in batch.to_pylist():
            if row["wanted"] != (row["pair"] in wanted):
                yield {"pair": row["pair"], "wanted": row["pair"] in wanted}


def confirm(batch: Sequence[Row], *, store: str) -> list[Outcome]:
    """The stage's function: how the two pictures of each pair lie on each other."""
    require("cv2", "curate").setNumThreads(1)  # there are as many workers as cores
    objects = ObjectStore(Path(store))
    outcomes: list[Outcome] = []
    for row in batch:
        try:
            first, second = (decode(objects.get(row[path]), at_least=SIDE) for path in ("first_path", "second_path"))
            outcomes.append(asdict(align(first, second)))
        except (SourceError, ImageError) as error:
            outcomes.append(error)
    return outcomes


def _measured(pairs: Table) -> dict[str, Alignment]:
    found = pairs.read(where="difference IS NOT NULL", columns=["pair", *_MEASURED])
    return {row["pair"]: Alignment(*(row[name] for name in _MEASURED)) for batch in found for row in batch.to_pylist()}


def _verdicts(
    found: Candidates, facts: Sequence[Mapping[str, Any]], measured: Mapping[str, Alignment], config: SemanticConfig
) -> dict[str, tuple[str, str | None, str | None]]:
    """(drop, group, of) of every picture that was judged."""
    same = {}
    for (first, second), similarity in zip(found.pairs.tolist(), found.similarity.tolist(), strict=True):
        how = measured.get(_pair_name(facts[first], facts[second]))
        if how and how.same(config.alignment):
            same[first, second] = (similarity, how)
    order = sorted(range(len(facts)), key=lambda row: _keeper_order(facts[row], config.style_order))
    rank_N = np.empty(len(facts), np.int64)
    rank_N[order] = np.arange(len(facts))
    verdicts: dict[str, tuple[str, str | None, str | None]] = {fact["image_name"]: ("", None, None) for fact in facts}
    for judged in judge(len(facts), np.array(sorted(same), np.int64).reshape(-1, 2), rank_N):
        name, keeper = facts[judged.row]["image_name"], facts[judged.of]["image_name"]
        if judged.row == judged.of:
            verdicts[name] = ("", name, None)
            continue
        similarity, how = same[min(judged.row, judged.of), max(judged.row, judged.of)]
        reason = (
            f"semantic: cosine {similarity:.2f} with {keeper}, {how.difference:.0f} levels apart where they overlap"
        )
        verdicts[name] = (reason, keeper, keeper)
    return verdicts


def _keeper_order(fact: Mapping[str, Any], style_order: Sequence[str]) -> tuple[bool, int, int, str]:
    num_pixels = fact["width"] * fact["height"]
    return keeper_order(fact["image_name"], bool(fact["held_out"]), fact["style"], num_pixels, style_order)


def _changed(
    images: Table, verdicts: Mapping[str, tuple[str | None, str | None, str | None]]
) -> Iterator[dict[str, Any]]:
    columns = list(STAGE_COLUMNS["semantic"])
    for batch in images.read(columns=["image_name", *columns]):
        for row in batch.to_pylist():
            new = verdicts.get(row["image_name"], (None, None, None))
            if tuple(row[column] for column in columns) != new:
                yield {"image_name": row["image_name"], **dict(zip(columns, new, strict=True))}
