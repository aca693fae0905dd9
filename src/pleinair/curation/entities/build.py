"""From concepts to the table `entities` and the file of names: rank, cut, and say which are kept and why.

concepts --PageRank--> order --top share--> minus what no picture can show --> kept
                                                              |--> names (one file, read by every worker)
                                                              `--> table `entities`, every concept a row
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pleinair.curation.entities.concepts import DISAMBIGUATION, Concepts
from pleinair.curation.entities.matching import Matcher, Name, build_matcher, save_matcher
from pleinair.curation.entities.pagerank import order_by_rank, pagerank
from pleinair.krablet import Database, Table
from pleinair.records.errors import ConfigError

COLUMNS = {
    "entity": "text",
    "names_version": "text",
    "title": "text",
    "kind": "text",
    "rank": "integer",
    "score": "double precision",
    "aliases": "text[]",
    "representable": "boolean",
    "reason": "text",
    "kept": "boolean",
}
"""`names_version` is that of the names built with the row: rows of another version are of an earlier build."""
_SLICE = 100_000


@dataclass(frozen=True)
class Ranked:
    """Concepts in order, and which stay."""

    scores: npt.NDArray[np.float64]
    rank: npt.NDArray[np.int64]
    """Place of each node, 0 for the highest score."""
    kept: npt.NDArray[np.int64]
    """Nodes that stay, by rank: the entity numbers of the matcher."""


@dataclass(frozen=True)
class Built:
    """What a build made."""

    num_concepts: int
    num_links: int
    num_top: int
    num_kept: int
    num_names: int
    """Distinct names the matcher looks for."""
    reasons: dict[str, int]
    """Concepts of the top share that no picture can show, by reason."""
    num_sweeps: int
    version: str


def entities_table(db: Database) -> Table:
    """The declared `entities` table."""
    return db.table("entities", key="entity", columns=COLUMNS)


def rank_concepts(
    concepts: Concepts, *, share: float = 0.9, on_sweep: Callable[[int, float], None] = lambda sweep, change: None
) -> tuple[Ranked, int]:
    """The concepts by PageRank, the top `share` of them without what no picture can show; and the sweeps it took."""
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}: give the part of concepts to keep, above 0 and at most 1")
    found = pagerank(concepts.graph, on_sweep=on_sweep)
    order = order_by_rank(found.scores)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    top = order[: math.ceil(share * len(order))]
    visible = ~concepts.reasons.is_valid().to_numpy(zero_copy_only=False)
    return Ranked(found.scores, rank, top[visible[top]]), found.num_sweeps


def matcher_of(concepts: Concepts, ranked: Ranked) -> Matcher:
    """A matcher for the names of the concepts that stay; entity numbers are places in `ranked.kept`.

    Concepts that do not stay hold on to their names, but for pages that only list the meanings of a word.
    """
    number = len(ranked.kept) + ranked.rank
    number[ranked.kept] = np.arange(len(ranked.kept))
    number[pc.equal(concepts.reasons, DISAMBIGUATION).fill_null(False).to_numpy(zero_copy_only=False)] = -1
    keys = concepts.keys.take(pa.array(ranked.kept)).to_pylist()
    return build_matcher(_names(concepts, number), keys, common=_common_words(concepts))


def _common_words(concepts: Concepts) -> frozenset[str]:
    """Words written small of all concepts: of those dropped too, or `red` would be the Red River."""
    texts = concepts.name_texts.filter(pa.array(concepts.name_proper == 0)).to_pylist()
    return frozenset(text.casefold() for text in texts if text.isalpha())


def _names(concepts: Concepts, number: npt.NDArray[np.int64]) -> Iterator[Name]:
    entities = number[concepts.name_nodes]
    for first in range(0, len(entities), _SLICE):
        rows = slice(first, first + _SLICE)
        texts = concepts.name_texts[rows].to_pylist()
        numbers, priorities = entities[rows].tolist(), concepts.name_priorities[rows].tolist()
        for text, entity, priority, proper in zip(
            texts, numbers, priorities, concepts.name_proper[rows].tolist(), strict=True
        ):
            if entity >= 0:
                yield Name(priority, entity, text, None if proper < 0 else bool(proper))


def build(
    db: Database,
    concepts: Concepts,
    names: Path,
    *,
    share: float = 0.9,
    on_sweep: Callable[[int, float], None] = lambda sweep, change: None,
    on_rows: Callable[[int], None] | None = None,
) -> Built:
    """Rank the concepts, write the file of names, and fill the table `entities`. Repeating it changes nothing.

    The names come first and the rows say their version: stopped in between, the next build writes the rows.
    """
    ranked, num_sweeps = rank_concepts(concepts, share=share, on_sweep=on_sweep)
    matcher = matcher_of(concepts, ranked)
    version = save_matcher(matcher, names)
    entities_table(db).load(_rows(concepts, ranked, version), on_progress=on_rows)
    top = ranked.rank < math.ceil(share * len(ranked.rank))
    reasons = concepts.reasons.filter(pa.array(top)).drop_null().to_pylist()
    return Built(
        num_concepts=len(top),
        num_links=concepts.graph.num_edges,
        num_top=int(top.sum()),
        num_kept=len(ranked.kept),
        num_names=matcher.num_names,
        reasons=dict(Counter(reasons).most_common()),
        num_sweeps=num_sweeps,
        version=version,
    )


def _rows(concepts: Concepts, ranked: Ranked, version: str) -> Iterator[pa.RecordBatch]:
    kept = np.zeros(len(ranked.rank), bool)
    kept[ranked.kept] = True
    order = np.argsort(concepts.name_nodes, kind="stable")
    starts = np.searchsorted(concepts.name_nodes[order], np.arange(len(kept) + 1))
    for first in range(0, len(kept), _SLICE):
        rows = slice(first, first + _SLICE)
        edges = starts[first : min(first + _SLICE, len(kept)) + 1]
        texts = concepts.name_texts.take(pa.array(order[edges[0] : edges[-1]]))
        aliases = pa.ListArray.from_arrays(pa.array((edges - edges[0]).astype(np.int32)), texts)
        reasons = concepts.reasons[rows]
        columns = {
            "entity": concepts.keys[rows],
            "names_version": pa.array([version] * len(reasons)),
            "title": concepts.titles[rows],
            "kind": concepts.kinds[rows],
            "rank": pa.array(ranked.rank[rows].astype(np.int32)),
            "score": pa.array(ranked.scores[rows]),
            "aliases": aliases,
            "representable": reasons.is_null(),
            "reason": reasons,
            "kept": pa.array(kept[rows]),
        }
        yield pa.RecordBatch.from_pydict(columns)
