"""Rows of the warehouse as a pool: conditions, and one pass that keeps a few numbers of every picture.

    where: kept, of the mix's sources, not held out, within the limits, with a caption the mix wants
    batches of (key, cluster, entity ids) --luck of the key, numbers for names--> Pool, by rising luck

Names of pictures are not held: a picture is its luck, and a second pass finds the chosen ones by it. At 10^8 pictures that is
about 10 GB, 15 with clusters; every mention of an entity adds about 35 bytes (docs/packing.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pleinair.curation.entities.matching import Matches
from pleinair.curation.stages import kept_where
from pleinair.krablet import Table
from pleinair.packing.conditions import is_quality
from pleinair.packing.mix import CAPTION_KINDS, MAX_FLOOR_SHARE, Mix
from pleinair.packing.selection import Luck, Pool, luck_of
from pleinair.records.errors import ConfigError, SourceError

CAPTION_COLUMNS = ("caption_long", "caption_medium", "caption_short", "caption")
"""In the order of CAPTION_KINDS."""
_Number = TypeVar("_Number", bound=np.generic)
Tagged = tuple[int, pa.RecordBatch]
"""The place of a source in the mix, and rows of it."""


@dataclass(frozen=True)
class Step:
    """One condition on the way to the pool: what it is called, and its SQL."""

    name: str
    where: str


def pool_steps(mix: Mix, images: Table) -> list[Step]:
    """The conditions of a mix, in the order in which the datasheet counts them."""
    stage = mix.stage
    least = stage.resolution**2 / stage.max_enlarge**2
    wanted = [column for column, weight in zip(CAPTION_COLUMNS, mix.captions.weights, strict=True) if weight]
    kinds = [kind for kind, weight in zip(CAPTION_KINDS, mix.captions.weights, strict=True) if weight]
    steps = [
        Step("kept by every stage of curation", kept_where(images)),
        Step("in a source of the mix", " OR ".join(f"({source.where}) IS TRUE" for source in mix.sources)),
        Step("not held out", "held_out IS NOT TRUE"),
        Step(f"large enough for {stage.resolution} px", f"width::bigint * height >= {least!r}"),
    ]
    if stage.max_aspect is not None:
        longest = f"greatest(width, height) <= {stage.max_aspect!r} * least(width, height)"
        steps.append(Step(f"no longer than {stage.max_aspect:g} : 1", longest))
    for column, limit in stage.limits.items():
        if limit.min is not None:
            steps.append(Step(f"{column} at least {limit.min:g}", f"{column} >= {limit.min!r}"))
        if limit.max is not None:
            steps.append(Step(f"{column} at most {limit.max:g}", f"{column} <= {limit.max!r}"))
    has_caption = " OR ".join(f"coalesce({column}, '') <> ''" for column in wanted)
    return [*steps, Step(f"with a caption ({', '.join(kinds)})", has_caption)]


def together(steps: Iterable[Step]) -> str:
    """All conditions as one."""
    return " AND ".join(f"({step.where})" for step in steps)


def source_wheres(mix: Mix, steps: Sequence[Step]) -> list[str]:
    """The condition of every source's pictures in the pool; a picture that several would take is the first one's."""
    pool, conditions = together(steps), [source.where for source in mix.sources]
    return [
        " AND ".join([pool, f"({own}) IS TRUE", *(f"({before}) IS NOT TRUE" for before in conditions[:place])])
        for place, own in enumerate(conditions)
    ]


def check_limits(mix: Mix, images: Table, steps: Sequence[Step]) -> None:
    """Raises ConfigError for a limit on a column that nobody filled, or a floor under quality that cuts more than failures."""
    kept = together(steps[:3])
    for column in mix.stage.limits:
        if waiting := images.count(f"{kept} AND {column} IS NULL"):
            raise ConfigError(
                f"stage.limits.{column}: {waiting} kept pictures have no {column} yet; run the stage that writes it to the "
                "end, or remove the limit"
            )
    floors = [f"{column} >= {limit.min!r}" for column, limit in mix.stage.limits.items() if is_quality(column)]
    if floors:
        offered = images.count(kept)
        cut = offered - images.count(f"{kept} AND {' AND '.join(floors)}")
        if cut > MAX_FLOOR_SHARE * offered:
            raise ConfigError(
                f"the floors under quality cut {cut} of {offered} pictures, over {MAX_FLOOR_SHARE:.0%}: that is choosing, not "
                "removing failures; lower them"
            )


def read_rows(images: Table, wheres: Sequence[str], columns: Sequence[str]) -> Iterator[Tagged]:
    """The pool's rows, source by source, in whatever order the shards give them."""
    for place, where in enumerate(wheres):
        for batch in images.read(where=where, columns=list(columns)):
            yield place, batch


def pool_columns(mix: Mix) -> list[str]:
    """What the pass that makes the pool reads."""
    clusters = ["cluster"] if mix.clusters else []
    return ["image_name", *clusters, *(["entity_ids", "entities_version"] if mix.entities else [])]


@dataclass
class _Names:
    """Numbers for strings, in the order in which they came."""

    numbers: dict[str, int] = field(default_factory=dict)

    def encode(self, values: pa.Array) -> npt.NDArray[np.int32]:
        """The number of each value; a missing one is the empty string."""
        coded = pc.dictionary_encode(pc.fill_null(values.cast(pa.string()), ""))
        of_batch = [self.numbers.setdefault(name, len(self.numbers)) for name in coded.dictionary.to_pylist()]
        numbers: npt.NDArray[np.int32] = np.array(of_batch, np.int32)[coded.indices.to_numpy(zero_copy_only=False)]
        return numbers

    def sorted(self) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
        """The strings in their order, and the place there of each number given."""
        names = sorted(self.numbers)
        places = np.empty(len(names), np.int32)
        places[[self.numbers[name] for name in names]] = np.arange(len(names), dtype=np.int32)
        return tuple(names), places


@dataclass
class _Reading:
    """The pool's columns as the rows come, in pieces."""

    mix: Mix
    luck: list[Luck] = field(default_factory=list)
    source: list[npt.NDArray[np.int16]] = field(default_factory=list)
    leaf: list[npt.NDArray[np.int32]] = field(default_factory=list)
    length: list[npt.NDArray[np.int64]] = field(default_factory=list)
    mention: list[npt.NDArray[np.int32]] = field(default_factory=list)
    clusters: _Names = field(default_factory=_Names)
    entities: _Names = field(default_factory=_Names)
    versions: set[str | None] = field(default_factory=set)

    def add(self, place: int, batch: pa.RecordBatch) -> None:
        """Keep what counts of a batch."""
        self.luck.append(luck_of(batch.column("image_name").to_pylist(), self.mix.seed))
        self.source.append(np.full(batch.num_rows, place, np.int16))
        if self.mix.clusters:
            self.leaf.append(self.clusters.encode(batch.column("cluster")))
        if self.mix.entities:
            self.versions |= set(pc.unique(batch.column("entities_version")).to_pylist())
            lists = batch.column("entity_ids")
            lengths = pc.fill_null(pc.list_value_length(lists), 0)
            self.length.append(lengths.to_numpy(zero_copy_only=False).astype(np.int64))
            self.mention.append(self.entities.encode(pc.list_flatten(lists)))


def build_pool(rows: Iterable[Tagged], mix: Mix) -> Pool:
    """The pool of these rows; their order does not matter. Raises SourceError for entities that were not looked for."""
    reading = _Reading(mix)
    for place, batch in rows:
        reading.add(place, batch)
    _check_versions(reading.versions)
    luck_N = _joined(reading.luck, np.uint64)
    order = np.argsort(luck_N, kind="stable")
    luck_N = luck_N[order]
    if (luck_N[1:] == luck_N[:-1]).any():
        raise ConfigError(f"two pictures have the same luck with seed = {mix.seed}: choose another seed")
    leaves, leaf_N = _clustered(reading, order)
    entities, place_of_entity = reading.entities.sorted()
    mention_M = place_of_entity[_joined(reading.mention, np.int32)]
    matches = _ordered(_joined(reading.length, np.int64), mention_M, order)
    return Pool(luck_N, _joined(reading.source, np.int16)[order], leaf_N, leaves, matches, entities)


def _clustered(reading: _Reading, order: npt.NDArray[np.int64]) -> tuple[tuple[str, ...], npt.NDArray[np.int32]]:
    """Paths of clusters, and the place among them of each picture."""
    if not reading.mix.clusters or not len(order):
        return ("",), np.zeros(len(order), np.int32)
    leaves, place_of_leaf = reading.clusters.sorted()
    if not any(leaves):
        raise SourceError(
            "[clusters]: no picture of the mix is in a cluster: run 'pleinair cluster', or remove [clusters]"
        )
    return leaves, place_of_leaf[_joined(reading.leaf, np.int32)][order]


def _check_versions(versions: set[str | None]) -> None:
    if None in versions or len(versions) > 1:
        raise SourceError(
            "[entities]: not every picture of the mix is matched with the present names: run 'pleinair entities match', "
            "or remove [entities]"
        )


def _joined(parts: Sequence[npt.NDArray[_Number]], dtype: type[_Number]) -> npt.NDArray[_Number]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _ordered(
    lengths_N: npt.NDArray[np.int64], mentions_M: npt.NDArray[np.int32], order: npt.NDArray[np.int64]
) -> Matches:
    """Mentions of the pictures in another order; pictures without lengths mention nothing."""
    if not len(lengths_N):
        return Matches(np.zeros(len(order) + 1, np.int64), np.empty(0, np.int32))
    starts_N = np.cumsum(lengths_N) - lengths_N
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_N[order])])
    shift_N = starts_N[order] - offsets[:-1]
    return Matches(offsets, mentions_M[np.arange(offsets[-1]) + np.repeat(shift_N, lengths_N[order])])


def pool_digest(pool: Pool) -> str:
    """SHA-256 of everything the choice looks at: equal pools and equal mixes give equal lists."""
    digest = hashlib.sha256("\n".join([*pool.leaves, "", *pool.entities]).encode())
    for values in (pool.luck_N, pool.source_N, pool.leaf_N, pool.matches.offsets, pool.matches.entities):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
