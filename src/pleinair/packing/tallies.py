"""What a mix holds, counted while its rows stream by: pictures offered and chosen by every fact a machine knows of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pleinair.packing.lists import Seen, caption_weights
from pleinair.packing.mix import CAPTION_KINDS, Mix
from pleinair.packing.pool import CAPTION_COLUMNS

SHORT_SIDES = (0, 64, 128, 256, 384, 512, 768, 1024, 2048)
ASPECTS = (
    ("portrait, over 2 : 1", 0.0, 0.5),
    ("portrait, 3 : 2 to 2 : 1", 0.5, 0.667),
    ("portrait, to 3 : 2", 0.667, 0.95),
    ("square, within 5 %", 0.95, 1.0527),
    ("landscape, to 3 : 2", 1.0527, 1.5),
    ("landscape, 3 : 2 to 2 : 1", 1.5, 2.0),
    ("landscape, over 2 : 1", 2.0, np.inf),
)
_SCRIPTS = (
    ("Chinese or Japanese", r"[\p{Han}\p{Hiragana}\p{Katakana}]"),
    ("Korean", r"\p{Hangul}"),
    ("Cyrillic", r"\p{Cyrillic}"),
    ("Arabic", r"\p{Arabic}"),
    ("Hebrew", r"\p{Hebrew}"),
    ("Greek", r"\p{Greek}"),
    ("Devanagari", r"\p{Devanagari}"),
    ("Thai", r"\p{Thai}"),
    ("Latin", r"\p{Latin}"),
)
"""Writing systems by the first pattern that is found in a caption."""
UNKNOWN = "unknown"
SHOWN_PICTURES = 14
FACT_COLUMNS = ("source", "licence", "author", "style", "group_name", "label", "image_path", "consent")


@dataclass
class Tally:
    """Pictures by one fact."""

    offered: Counter[str] = field(default_factory=Counter)
    chosen: Counter[str] = field(default_factory=Counter)
    draws: Counter[str] = field(default_factory=Counter)
    """Chosen pictures, repeats counted."""

    def add(self, values: pa.Array, repeats_N: npt.NDArray[np.int64]) -> None:
        """Count a batch."""
        coded = pc.dictionary_encode(pc.fill_null(values, UNKNOWN))
        code_N = coded.indices.to_numpy(zero_copy_only=False)
        names, size = coded.dictionary.to_pylist(), len(coded.dictionary)
        for counter, weights_N in (
            (self.offered, np.ones(len(code_N))),
            (self.chosen, repeats_N > 0),
            (self.draws, repeats_N),
        ):
            sums = np.bincount(code_N, weights_N, minlength=size).astype(int).tolist()
            counter.update({name or UNKNOWN: count for name, count in zip(names, sums, strict=True) if count})


@dataclass
class CaptionTally:
    """Captions of one kind among the chosen pictures."""

    pictures: int = 0
    words: int = 0
    share: float = 0.0
    """Sum of its chances, repeats counted."""


@dataclass
class Shown:
    """One picture of a sample sheet."""

    place: int
    row: Mapping[str, Any]


@dataclass
class Tallies:
    """All counts of a mix; give `add` every batch of the second pass."""

    mix: Mix
    facets: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in FACETS})
    captions: dict[str, CaptionTally] = field(default_factory=lambda: {kind: CaptionTally() for kind in CAPTION_KINDS})
    shown: list[list[Shown]] = field(init=False)
    """By source of the mix, the first of the list."""
    entities: Tally = field(default_factory=Tally)
    """By key; empty where no stage looked for entities."""
    clusters: Tally = field(default_factory=Tally)
    """By the path of the finest cluster; empty where nothing is clustered."""

    def __post_init__(self) -> None:
        self.shown = [[] for _ in self.mix.sources]

    def add(self, seen: Seen) -> None:
        """Count a batch."""
        for name, facet in FACETS.items():
            self.facets[name].add(facet(seen.batch), seen.repeats_N)
        add_coverage(self.entities, self.clusters, seen.batch, seen.repeats_N)
        if len(seen.hit):
            chosen = seen.batch.take(pa.array(seen.hit))
            self._add_captions(chosen, seen.repeats_N[seen.hit])
            self._add_shown(seen, chosen)

    def _add_captions(self, chosen: pa.RecordBatch, repeats_N: npt.NDArray[np.int64]) -> None:
        shares = repeats_N @ caption_weights(chosen, self.mix.captions).astype(np.float64)
        for kind, column, share in zip(CAPTION_KINDS, CAPTION_COLUMNS, shares.tolist(), strict=True):
            words = pc.count_substring_regex(pc.fill_null(chosen.column(column), ""), r"\S+")
            tally = self.captions[kind]
            tally.pictures += int(pc.sum(pc.greater(words, 0)).as_py() or 0)
            tally.words += int(pc.sum(words).as_py() or 0)
            tally.share += share

    def _add_shown(self, seen: Seen, chosen: pa.RecordBatch) -> None:
        places = seen.place_N[seen.hit]
        first = np.argsort(places, kind="stable")[:SHOWN_PICTURES]
        rows = chosen.take(pa.array(first)).to_pylist()
        mine = [*self.shown[seen.source], *map(Shown, places[first].tolist(), rows)]
        self.shown[seen.source] = sorted(mine, key=lambda shown: shown.place)[:SHOWN_PICTURES]


def add_coverage(entities: Tally, clusters: Tally, batch: pa.RecordBatch, repeats_N: npt.NDArray[np.int64]) -> None:
    """Count what a batch says of entities and clusters, where it says something."""
    if "cluster" in batch.schema.names:
        in_one = pc.is_valid(batch.column("cluster"))
        clusters.add(batch.column("cluster").filter(in_one), repeats_N[in_one.to_numpy(zero_copy_only=False)])
    if "entity_ids" in batch.schema.names:
        lists = batch.column("entity_ids")
        owners_M = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
        entities.add(pc.list_flatten(lists), repeats_N[owners_M])


def _column(name: str) -> Callable[[pa.RecordBatch], pa.Array]:
    return lambda batch: batch.column(name)


def short_side(batch: pa.RecordBatch) -> pa.Array:
    """Bins of the short side in pixels."""
    side_N = np.minimum(_numbers(batch, "width"), _numbers(batch, "height"))
    return _binned(np.searchsorted(SHORT_SIDES, side_N, side="right") - 1, side_names())


def side_names() -> list[str]:
    """What the bins of the short side are called."""
    return [*(f"{low} to {high - 1} px" for low, high in pairwise(SHORT_SIDES)), f"{SHORT_SIDES[-1]} px and more"]


def aspect(batch: pa.RecordBatch) -> pa.Array:
    """Bins of width over height."""
    aspect_N = _numbers(batch, "width") / np.maximum(_numbers(batch, "height"), 1)
    return _binned(
        np.searchsorted([low for _, low, _ in ASPECTS], aspect_N, side="right") - 1, [name for name, _, _ in ASPECTS]
    )


def script(batch: pa.RecordBatch) -> pa.Array:
    """Writing system of the longest caption there is."""
    text = pc.coalesce(*(batch.column(column).cast(pa.string()) for column in CAPTION_COLUMNS))
    found = pa.nulls(batch.num_rows, pa.string())
    for name, pattern in _SCRIPTS:
        here = pc.and_(pc.is_null(found), pc.fill_null(pc.match_substring_regex(text, pattern), False))
        found = pc.if_else(here, name, found)
    return found


def _numbers(batch: pa.RecordBatch, column: str) -> npt.NDArray[np.float64]:
    numbers: npt.NDArray[np.float64] = batch.column(column).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return numbers


def _binned(bin_N: npt.NDArray[np.int64], names: Sequence[str]) -> pa.Array:
    return pa.array(names, pa.string()).take(pa.array(bin_N))


FACETS: Mapping[str, Callable[[pa.RecordBatch], pa.Array]] = {
    "source": _column("source"),
    "licence": _column("licence"),
    "author": _column("author"),
    "style": _column("style"),
    "group": _column("group_name"),
    "consent": _column("consent"),
    "writing": script,
    "short side": short_side,
    "aspect": aspect,
}
"""Facts by which pictures are counted."""
