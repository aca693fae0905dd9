"""From a mix file to its folder: the list, a manifest and a datasheet, all there or nothing.

check -> first pass: Pool -> choose -> second pass: list.parquet, counts, entities counted again -> datasheet -> rename
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pleinair.config import from_document, to_document
from pleinair.curation.clusters.warehouse import clustered_table, clusters_table
from pleinair.curation.drops.reading import StageDrops, read_drops
from pleinair.curation.entities.build import entities_table
from pleinair.curation.entities.coverage import Counts, require_none_lost
from pleinair.curation.entities.matching import load_matcher
from pleinair.curation.entities.stage import CAPTIONS, declare, match_rows
from pleinair.curation.stages import images_table
from pleinair.curation.takedowns import takedowns_table
from pleinair.krablet import Database, Table
from pleinair.packing.lists import LIST_COLUMNS, Seen, list_digest, write_list
from pleinair.packing.mix import CAPTION_KINDS, Mix, check_against
from pleinair.packing.pool import (
    Step,
    Tagged,
    build_pool,
    check_limits,
    pool_columns,
    pool_digest,
    pool_steps,
    read_rows,
    source_wheres,
    together,
)
from pleinair.packing.selection import Choice, Pool, choose
from pleinair.packing.tallies import FACT_COLUMNS, UNKNOWN, Tallies, Tally, add_coverage
from pleinair.records.errors import PackError

MIX_VERSION = 1
"""Of the rules of choice and of the folder's form: lists of different versions may differ."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class MixManifest:
    """What a mix's folder says about itself."""

    version: int
    """`MIX_VERSION`."""
    name: str
    """Of the mix."""
    digest: str
    """SHA-256 of the list's rows, in its order."""
    pool_digest: str
    """SHA-256 of all that the choice looked at; the same pool and mix give the same list."""
    num_rows: int
    """Pictures in the list."""
    num_draws: int
    """The same, repeats counted."""
    num_offered: int
    """Pictures the mix could have taken."""
    resolution: int
    """Side of the stage's square in pixels."""
    caption_names: tuple[str, ...]
    """Meaning of the entries of `caption_weights`."""
    sources: dict[str, int]
    """Draws by source of the mix."""
    num_required: int
    """Pictures taken so that no entity vanished."""
    num_entities: int
    """Entities the offered pictures name; every one is named in the list. 0 when the mix has no entity priority."""
    matched_anew: bool
    """Whether the list's captions were read and matched again, rather than the stage's answers."""
    curation_limits: dict[str, str]
    """Limits of the last curation, by stage, as JSON."""
    code: str
    """Version of pleinair."""


@dataclass(frozen=True)
class MixRecord:
    """All that the datasheet tells."""

    mix: Mix
    text: str
    manifest: MixManifest
    pool: Pool
    choice: Choice
    tallies: Tallies
    funnel: tuple[tuple[str, int], ...]
    """Pictures left after each condition."""
    drops: Sequence[StageDrops]
    by_source: Mapping[str, tuple[int, int]]
    """Source of the warehouse to pictures ingested and kept."""
    kept_entities: Tally
    """Entities of all kept pictures, before the mix's own conditions; `tallies` has those after."""
    kept_clusters: Tally
    titles: Mapping[str, str]
    """Names of entities by key."""
    cluster_names: Mapping[str, str]
    """Names of clusters above the leaves, by path."""
    num_takedowns: int


def make_mix(
    db: Database,
    mix: Mix,
    text: str,
    folder: Path,
    *,
    code: str,
    names: Path | None = None,
    write_sheet: Callable[[Path, MixRecord], None] = lambda path, record: None,
    on_progress: Progress = lambda what, done, total: None,
) -> MixManifest:
    """Choose, write and prove a mix; `folder` appears whole, by rename, in the place of an older one.

    `code` is the version of the program. `names` are the names entities are matched with; given, the list's captions are
    matched anew for the proof.
    Raises ConfigError, SourceError or CoverageError, and then leaves what was there.
    """
    images = declared_images(db, mix)
    check_against(mix, images.columns)
    steps = pool_steps(mix, images)
    check_limits(mix, images, steps)
    wheres = source_wheres(mix, steps)
    total = images.count(together(steps))
    pool = build_pool(_watched(read_rows(images, wheres, pool_columns(mix)), "pictures read", total, on_progress), mix)
    choice = choose(pool, mix)
    tallies, proof = Tallies(mix), EntityProof(pool, names if mix.entities else None)
    with staged(folder) as unfinished:
        digest = write_list(
            unfinished / "list.parquet",
            _watched(read_rows(images, wheres, second_columns(images)), "pictures written", total, on_progress),
            pool,
            choice,
            mix,
            watchers=(tallies.add, proof.add),
        )
        record = _record(db, images, mix, text, code, digest, pool, choice, tallies, proof, steps)
        (unfinished / "mix.toml").write_text(text, encoding="utf-8")
        (unfinished / "manifest.json").write_text(json.dumps(to_document(record.manifest), indent=2) + "\n")
        write_sheet(unfinished / "datasheet.html", record)
    return record.manifest


def declared_images(db: Database, mix: Mix) -> Table:
    """`images` with the columns of the parts that the mix uses."""
    images = clustered_table(db) if mix.clusters else images_table(db)
    return declare(db)[0] if mix.entities else images


def second_columns(images: Table) -> list[str]:
    """What the pass that writes the list reads."""
    return [*LIST_COLUMNS, *FACT_COLUMNS, *coverage_columns(images)]


def coverage_columns(images: Table) -> list[str]:
    """Columns of entities and clusters, as far as there are any."""
    return [column for column in ("cluster", "entity_ids") if column in images.columns]


def coverage_of(images: Table, where: str) -> tuple[Tally, Tally]:
    """Entities and clusters of all pictures that match."""
    entities, clusters = Tally(), Tally()
    if columns := coverage_columns(images):
        for batch in images.read(where=where, columns=columns):
            add_coverage(entities, clusters, batch, np.zeros(batch.num_rows, np.int64))
    return entities, clusters


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when all went well, and is gone when not."""
    unfinished, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    for leftover in (unfinished, old):
        shutil.rmtree(leftover, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if folder.exists():
            os.replace(folder, old)
        os.replace(unfinished, folder)
    finally:
        for leftover in (unfinished, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _watched(rows: Iterable[Tagged], what: str, total: int, on_progress: Progress) -> Iterator[Tagged]:
    done = 0
    for place, batch in rows:
        yield place, batch
        done += batch.num_rows
        on_progress(what, done, total)


class EntityProof:
    """Counts the entities of chosen rows again: from their captions when the names are there, else from their column."""

    def __init__(self, pool: Pool, names: Path | None) -> None:
        self.number = {key: place for place, key in enumerate(pool.entities)}
        self.counts: Counts = np.zeros(len(pool.entities), np.int64)
        self.matcher = load_matcher(names)[0] if names is not None and names.exists() else None

    def add(self, seen: Seen) -> None:
        """Count the chosen rows of a batch."""
        if not self.number or not len(seen.hit):
            return
        chosen = seen.batch.take(pa.array(seen.hit))
        found = self._matched(chosen) if self.matcher else pc.list_flatten(chosen.column("entity_ids")).to_pylist()
        np.add.at(self.counts, [self.number[key] for key in found if key in self.number], 1)

    def _matched(self, chosen: pa.RecordBatch) -> list[str]:
        assert self.matcher is not None
        matches = match_rows(self.matcher, chosen.select(list(CAPTIONS)).to_pylist())
        return [self.matcher.keys[entity] for entity in matches.entities.tolist()]


def _record(
    db: Database,
    images: Table,
    mix: Mix,
    text: str,
    code: str,
    digest: str,
    pool: Pool,
    choice: Choice,
    tallies: Tallies,
    proof: EntityProof,
    steps: Sequence[Step],
) -> MixRecord:
    kept_entities, kept_clusters = coverage_of(images, steps[0].where)
    titles = entity_titles(db, sorted(kept_entities.offered)) if kept_entities.offered else {}
    if mix.entities:
        names = [titles.get(key, key) for key in pool.entities]
        require_none_lost(pool.counts, proof.counts, names, keep=mix.entities.keep)
    manifest = MixManifest(
        version=MIX_VERSION,
        name=mix.name,
        digest=digest,
        pool_digest=pool_digest(pool),
        num_rows=int((choice.repeats_N > 0).sum()),
        num_draws=int(choice.repeats_N.sum()),
        num_offered=len(pool.luck_N),
        resolution=mix.stage.resolution,
        caption_names=CAPTION_KINDS,
        sources=dict(zip((source.name for source in mix.sources), choice.targets, strict=True)),
        num_required=choice.num_required,
        num_entities=int((pool.counts > 0).sum()),
        matched_anew=proof.matcher is not None,
        curation_limits=curation_limits(db),
        code=code,
    )
    return MixRecord(
        mix=mix,
        text=text,
        manifest=manifest,
        pool=pool,
        choice=choice,
        tallies=tallies,
        funnel=funnel_of(images, steps),
        drops=read_drops(images),
        by_source=by_source(db, steps[0].where),
        kept_entities=kept_entities,
        kept_clusters=kept_clusters,
        titles=titles,
        cluster_names=cluster_names(db) if kept_clusters.offered else {},
        num_takedowns=takedowns_table(db).count(),
    )


def funnel_of(images: Table, steps: Sequence[Step]) -> tuple[tuple[str, int], ...]:
    """How many pictures are left after each condition, from all that were ingested."""
    counted = [(step.name, images.count(together(steps[: place + 1]))) for place, step in enumerate(steps)]
    return (("ingested", images.count()), *counted)


def by_source(db: Database, kept: str) -> dict[str, tuple[int, int]]:
    """Pictures ingested and kept by source of the warehouse."""
    found: dict[str, list[int]] = {}
    for place, where in enumerate(("TRUE", kept)):
        rows = db.scan("images", where=where, group_by="source", aggregate={"pictures": "count(*)"}).to_table()
        for row in rows.to_pylist():
            found.setdefault(row["source"] or UNKNOWN, [0, 0])[place] = row["pictures"]
    return {source: (ingested, kept_) for source, (ingested, kept_) in sorted(found.items())}


def curation_limits(db: Database) -> dict[str, str]:
    """Limits of the last curation, by stage, as JSON."""
    table = db.table("curation_limits", key="stage", columns={"stage": "text", "limits": "text"})
    rows = [row for batch in table.read() for row in batch.to_pylist()]
    return {row["stage"]: row["limits"] for row in sorted(rows, key=lambda row: row["stage"])}


def entity_titles(db: Database, keys: Sequence[str]) -> dict[str, str]:
    """The title of each entity that has one."""
    return {
        row["entity"]: row["title"]
        for start in range(0, len(keys), 10_000)
        for batch in entities_table(db).read(
            where="entity = ANY(%(keys)s)",
            params={"keys": list(keys[start : start + 10_000])},
            columns=["entity", "title"],
        )
        for row in batch.to_pylist()
        if row["title"]
    }


def cluster_names(db: Database) -> dict[str, str]:
    """The name of each cluster above the leaves of the last run, by path."""
    rows = clusters_table(db).read(where="level > 0", columns=["cluster", "name"])
    return {row["cluster"]: row["name"] for batch in rows for row in batch.to_pylist()}


def read_manifest(folder: Path) -> MixManifest:
    """The manifest of a mix's folder. Raises PackError for what is no mix, or whose list was changed."""
    try:
        manifest = from_document(MixManifest, json.loads((folder / "manifest.json").read_text()))
    except (OSError, ValueError) as error:
        raise PackError(f"{folder} is not the folder of a mix ({error}): make one with 'pleinair mix FILE'") from error
    if list_digest(folder / "list.parquet") != manifest.digest:
        raise PackError(f"{folder}/list.parquet is not the list that its manifest tells of: run 'pleinair mix' again")
    return manifest
