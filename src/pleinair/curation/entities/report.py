"""What the curated pictures cover, what a sample of them would cover, and the page that shows both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from pleinair.curation.entities.build import entities_table
from pleinair.curation.entities.coverage import (
    BINS,
    Counts,
    coverage_bins,
    pictures_per_entity,
    require_none_lost,
    sample_rare_first,
)
from pleinair.curation.entities.matching import Matches, load_matcher
from pleinair.curation.entities.stage import BATCH, CAPTIONS, declare, match_rows
from pleinair.curation.stages import kept_where
from pleinair.krablet import Database
from pleinair.pages import Html, Section, headline_figures, join, page, table
from pleinair.records.errors import SourceError

_LISTED = 60


@dataclass(frozen=True)
class Pool:
    """The kept pictures and the entities they name."""

    keys: list[str]
    matches: Matches
    entities: list[str]
    """Key of each entity, by number: the rank's order."""
    titles: list[str]
    kinds: list[str]

    @property
    def counts(self) -> Counts:
        """Pictures of each entity."""
        return pictures_per_entity(self.matches, len(self.entities))


@dataclass(frozen=True)
class SampleCoverage:
    """A sample and its own analysis, made anew from its captions."""

    keys: list[str]
    counts: Counts
    num_required: int
    keep: int


def read_pool(db: Database, names: Path) -> Pool:
    """The kept pictures with what the stage found. Raises SourceError while some are not matched with these names."""
    matcher, version = load_matcher(names)
    images, _ = declare(db)
    waiting = images.count(
        f"{kept_where(images)} AND entities_version IS DISTINCT FROM %(now)s", params={"now": version}
    )
    if waiting:
        raise SourceError(
            f"{waiting} kept pictures are not matched with the present names: run `pleinair entities match`"
        )
    number = {key: place for place, key in enumerate(matcher.keys)}
    keys: list[str] = []
    lengths: list[int] = []
    found: list[int] = []
    for batch in images.read(where=kept_where(images), columns=["image_name", "entity_ids"], order_by="image_name"):
        keys += batch.column("image_name").to_pylist()
        for entities in batch.column("entity_ids").to_pylist():
            lengths.append(len(entities))
            found += [number[entity] for entity in entities]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    titles, kinds = _described(db, version, number)
    return Pool(keys, Matches(offsets, np.array(found, np.int32)), list(matcher.keys), titles, kinds)


def _described(db: Database, version: str, number: Mapping[str, int]) -> tuple[list[str], list[str]]:
    titles, kinds = [""] * len(number), [""] * len(number)
    rows = entities_table(db).read(
        where="kept AND names_version = %(now)s", params={"now": version}, columns=["entity", "title", "kind"]
    )
    for row in chain.from_iterable(batch.to_pylist() for batch in rows):
        place = number[row["entity"]]
        titles[place], kinds[place] = row["title"], row["kind"] or ""
    return titles, kinds


def sampled(
    db: Database, names: Path, pool: Pool, size: int, *, keep: int = 1, power: float = 0.5, seed: int = 0
) -> SampleCoverage:
    """A rare-first sample of the pool, and the same analysis on it, from its captions. Raises CoverageError if one is lost.

    The second analysis does not reuse the first: it reads the sample's captions again and matches them anew.
    """
    sample = sample_rare_first(
        pool.keys, pool.matches, size, num_entities=len(pool.entities), keep=keep, power=power, seed=seed
    )
    keys = [pool.keys[place] for place in np.flatnonzero(sample.chosen).tolist()]
    counts = _counted_anew(db, names, keys)
    require_none_lost(pool.counts, counts, pool.titles, keep=keep)
    return SampleCoverage(keys, counts, sample.num_required, keep)


def _counted_anew(db: Database, names: Path, keys: list[str]) -> Counts:
    matcher, _ = load_matcher(names)
    counts = np.zeros(len(matcher.keys), np.int64)
    rows = _captions(db, keys)
    while batch := list(islice(rows, BATCH)):
        counts += pictures_per_entity(match_rows(matcher, batch), len(matcher.keys))
    return counts


def _captions(db: Database, keys: list[str]) -> Iterator[Mapping[str, Any]]:
    images, _ = declare(db)
    for first in range(0, len(keys), 10_000):
        wanted = {"keys": keys[first : first + 10_000]}
        for batch in images.read(where="image_name = ANY(%(keys)s)", params=wanted, columns=list(CAPTIONS)):
            yield from batch.to_pylist()


def coverage_text(pool: Pool, sample: SampleCoverage | None = None) -> str:
    """Entities by how many pictures they have, as lines of text."""
    before = coverage_bins(pool.counts)
    after = coverage_bins(sample.counts) if sample else {}
    lines = [f"{'pictures':<14} {'entities':>9}" + (f" {'in the sample':>14}" if sample else "")]
    for name, count in before.items():
        lines.append(f"{name:<14} {count:>9}" + (f" {after[name]:>14}" if sample else ""))
    return "\n".join(lines)


def coverage_page(pool: Pool, sample: SampleCoverage | None = None) -> str:
    """The coverage as one self-contained page."""
    counts = pool.counts
    present, total = int((counts > 0).sum()), len(counts)
    figures = [
        (f"{len(pool.keys):,}", "pictures", ""),
        (f"{present:,}", "entities named", f"of {total:,} looked for"),
        (f"{int((np.diff(pool.matches.offsets) == 0).sum()):,}", "pictures without any", ""),
    ]
    if sample:
        lost = int(((counts > 0) & (sample.counts == 0)).sum())
        figures.append((f"{lost:,}", "entities lost", f"in a sample of {len(sample.keys):,}, matched anew"))
    sections = [
        Section(heading="Coverage", body=_bins_table(counts, sample), lead="Entities by how many pictures name them."),
        Section(heading="Kinds", body=_kinds_table(pool, sample), lead="Where the gaps are."),
        Section(heading="Commonest", body=_entities_table(pool, sample, np.argsort(-counts, kind="stable"))),
        Section(heading="Rarest", body=_entities_table(pool, sample, _rarest(counts))),
        Section(
            heading="Missing",
            body=_entities_table(pool, sample, np.flatnonzero(counts == 0)),
            lead="The highest ranked entities that no picture names.",
        ),
    ]
    return page("Entity coverage", headline_figures(figures), sections)


def _rarest(counts: Counts) -> Counts:
    order = np.argsort(counts, kind="stable")
    return order[counts[order] > 0]


def _bins_table(counts: Counts, sample: SampleCoverage | None) -> Html:
    before = coverage_bins(counts)
    after = coverage_bins(sample.counts) if sample else {}
    head = ["pictures", "entities", *(["in the sample"] if sample else [])]
    return table(head, [[name, f"{before[name]:,}", *([f"{after[name]:,}"] if sample else [])] for name, _, _ in BINS])


def _kinds_table(pool: Pool, sample: SampleCoverage | None) -> Html:
    kinds = np.array([kind or "not known" for kind in pool.kinds])
    counts = pool.counts
    rows = []
    for kind in np.unique(kinds).tolist():
        of_kind = kinds == kind
        named = int((counts[of_kind] > 0).sum())
        row = [kind, int(of_kind.sum()), named, f"{100 * named / of_kind.sum():.1f} %", int(counts[of_kind].sum())]
        rows.append(row + ([int((sample.counts[of_kind] > 0).sum())] if sample else []))
    head = ["kind", "entities", "named", "share", "mentions", *(["named in the sample"] if sample else [])]
    return table(head, rows)


def _entities_table(pool: Pool, sample: SampleCoverage | None, order: Counts) -> Html:
    counts = pool.counts
    rows = [
        [
            pool.titles[place],
            pool.kinds[place],
            pool.entities[place],
            place + 1,
            int(counts[place]),
            *([int(sample.counts[place])] if sample else []),
        ]
        for place in order[:_LISTED].tolist()
    ]
    head = ["entity", "kind", "key", "rank", "pictures", *(["in the sample"] if sample else [])]
    return join([table(head, rows)])
