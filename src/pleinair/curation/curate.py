"""From a source to curated rows: the two verbs of this part.

    ingest   a source lists its pictures  ->  new rows of `images`
    curate   workers run the queue stages to the end, then duplicates are found over all that passed

Both may be stopped anywhere and run again: rows are the only state, and a stage looks only at rows it has not judged.
Changed limits are applied to what was measured, and only where a verdict changes do later stages look again; a changed
caption file makes the captions look again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pleinair.config.overrides import to_document
from pleinair.curation.drops.reading import StageDrops, read_drops
from pleinair.curation.duplicates import DuplicateLimits, Picture, find_duplicates
from pleinair.curation.limits import LimitTable, Override
from pleinair.curation.pixels import PixelLimits
from pleinair.curation.probe import ProbeLimits
from pleinair.curation.replay import judge_where_limits_changed
from pleinair.curation.sources import STYLES, TRAINING_STYLES, PictureRow, Source
from pleinair.curation.sources.media import WORDING
from pleinair.curation.stages import (
    QUEUE_STAGES,
    SOURCE_COLUMNS,
    STAGE_COLUMNS,
    declare_stages,
    images_table,
    verdicts_from,
)
from pleinair.curation.store import ObjectStore
from pleinair.curation.takedowns import KIND as TAKEDOWN
from pleinair.curation.takedowns import enforce, read_takedowns, write_snapshot
from pleinair.curation.web import FetchPolicy
from pleinair.krablet import Database, Progress, RunSummary, StageSpec, Table, run_workers
from pleinair.records.errors import SourceError

_INGEST_BATCH = 1000
_SEARCHED = (
    "md5",
    "phash12_v2",
    "colour_v2",
    "thumb16_v2",
    "entropy",
    "width",
    "height",
    "held_out",
    "style",
    "concept",
)


def _drawing_duplicates() -> DuplicateLimits:
    renders = tuple((name, style.renders) for name, style in STYLES.items() if style.renders)
    return DuplicateLimits(style_order=TRAINING_STYLES, renders=renders)


@dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """Every limit of a curation; the defaults suit the drawings."""

    fetch: FetchPolicy = field(default_factory=FetchPolicy)
    """How pictures are fetched from the web; pictures already fetched are not fetched again when it changes."""
    probe: ProbeLimits = field(default_factory=ProbeLimits)
    """Broken files, sizes, aspect ratios."""
    pixels: PixelLimits = field(default_factory=PixelLimits)
    """Blank pictures, frames, flat backgrounds."""
    resolution: int = 256
    """Resolution stage of the training this is for: 256, 512 or 1024."""
    overrides: tuple[Override, ...] = ()
    """What differs from `probe` and `pixels` for some sources, styles or resolution stages."""
    duplicates: DuplicateLimits = field(default_factory=_drawing_duplicates)
    """Which pictures count as the same, and which of them stays."""

    def __post_init__(self) -> None:
        _ = self.filters

    @property
    def filters(self) -> LimitTable:
        """The limits of the probe and the pixels, for every picture."""
        return LimitTable(resolution=self.resolution, probe=self.probe, pixels=self.pixels, overrides=self.overrides)


@dataclass(frozen=True)
class Ingested:
    """What an ingest did: rows listed, rows new, rows whose source now says something else."""

    num_listed: int
    num_new: int
    num_changed: int
    notes: tuple[str, ...] = ()
    """What the source found that is no row, e.g. captions without a picture."""


@dataclass(frozen=True)
class Curated:
    """What a curation did: the workers' summary and the drops of every stage."""

    run: RunSummary
    drops: tuple[StageDrops, ...]


def ingest(db: Database, source: Source, *, on_progress: Callable[[Ingested], None] | None = None) -> Ingested:
    """List a source into `images`. Rows that are there stay as they are, unless the source now says otherwise.

    The source is listed twice: once to see that it can be read to its end and says nothing twice, then into the table,
    so a source that is refused leaves no row behind. Raises SourceError.
    """
    check_listing(source)
    images = images_table(db)
    total = Ingested(0, 0, 0)
    for rows in _batches(source.list(), _INGEST_BATCH):
        num_new = images.insert_missing(row.as_dict() for row in rows)
        num_changed = 0 if num_new == len(rows) else images.update(_changes(images, rows))
        total = Ingested(total.num_listed + len(rows), total.num_new + num_new, total.num_changed + num_changed)
        if on_progress:
            on_progress(total)
    return replace(total, notes=tuple(source.notes))


def check_listing(source: Source) -> int:
    """Read a listing to its end; the number of rows. Raises SourceError for a key that comes twice."""
    seen: dict[bytes, int] = {}
    for number, row in enumerate(source.list()):
        key = hashlib.blake2b(row.image_name.encode(), digest_size=12).digest()
        if (first := seen.setdefault(key, number)) != number:
            raise SourceError(
                f"{source.name} lists {row.image_name} twice, as picture {first + 1} and picture {number + 1}: "
                "rename or remove one"
            )
    return len(seen)


def _batches(rows: Iterable[PictureRow], size: int) -> Iterable[list[PictureRow]]:
    listed = iter(rows)
    while batch := list(itertools.islice(listed, size)):
        yield batch


def _changes(images: Table, rows: Sequence[PictureRow]) -> Iterable[dict[str, Any]]:
    """Updates for rows that differ from what is stored, with the verdicts that no longer stand taken back."""
    given = {row.image_name: row.as_dict() for row in rows}
    stored = images.read(
        where="image_name = ANY(%(names)s)", params={"names": list(given)}, columns=[*SOURCE_COLUMNS, "fetch_drop"]
    )
    for batch in stored:
        for old in batch.to_pylist():
            new = given[old["image_name"]]
            # What was taken down stays empty, unless another address now stands under its name.
            taken_down = (old.pop("fetch_drop") or "").startswith(f"{TAKEDOWN}:") and old["uri"] == new["uri"]
            if old != new and not taken_down:
                yield {**new, **verdicts_from("fetch" if old["uri"] != new["uri"] else "captions")}


def curate(
    db: Database,
    config: CurationConfig | None = None,
    *,
    cache: Path,
    store: Path,
    processes: int = 2,
    fetch_again: bool = False,
    give_up_after: int = 4,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Curated:
    """Run every stage to the end and mark duplicates.

    `cache` is where the sources keep packages, `store` the object store. Rows that failed `give_up_after`
    times do not hold up the rest: they are in `run.stuck`, and the next curation tries them again.
    """
    config = config or CurationConfig()
    images = images_table(db)
    stages = declare_stages(images)
    arguments = _stage_arguments(config, cache, store)
    judge_where_limits_changed(db, images, config.filters)
    if fetch_again:
        _look_again(images, "fetch")
    _check_web_policy(images, config.fetch)
    write_snapshot(store, read_takedowns(db))
    specs = [_spec(stages[name].spec, name, arguments[name]) for name in QUEUE_STAGES]
    run = run_workers(db, specs, processes=processes, give_up_after=give_up_after, on_progress=on_progress)
    enforce(db, images, ObjectStore(store))
    mark_duplicates(images, config.duplicates)
    return Curated(run, tuple(read_drops(images)))


def _check_web_policy(images: Table, policy: FetchPolicy) -> None:
    """Nothing is fetched from the web without a name. Raises ConfigError, before any worker starts."""
    if images.count("fetch_drop IS NULL AND (uri LIKE 'http://%' OR uri LIKE 'https://%')"):
        _ = policy.user_agent


def _stage_arguments(config: CurationConfig, cache: Path, store: Path) -> dict[str, dict[str, Any]]:
    """What each stage's function is called with; must survive JSON."""
    place = str(store.resolve())
    limits = to_document(config.filters)
    return {
        "fetch": {"cache": str(cache.resolve()), "store": place, "policy": asdict(config.fetch)},
        "probe": {"store": place, "limits": limits},
        "hashes": {"store": place},
        "pixels": {"store": place, "limits": limits},
        "captions": {"wording": WORDING.to_document()},
    }


def _spec(spec: Callable[..., StageSpec], name: str, arguments: Mapping[str, Any]) -> StageSpec:
    # The captions function is named, not imported: captioning is a part of its own, beside this one.
    module = "pleinair.captioning.stages" if name == "captions" else "pleinair.curation.stages"
    return spec(f"{module}:{name}", **arguments)


def _look_again(images: Table, stage: str) -> None:
    verdicts = verdicts_from(stage)
    for batch in images.read(where=f"{stage}_drop IS NOT NULL", columns=["image_name"]):
        images.update({"image_name": name, **verdicts} for name in batch.column("image_name").to_pylist())


def mark_duplicates(images: Table, limits: DuplicateLimits) -> int:
    """Judge all pictures that passed the pixel stage, all at once; the number of rows whose verdict changed.

    The verdict on a picture depends on the others, so it is made anew each time; only what changed is written.
    """
    pictures = []
    for batch in images.read(where="pixels_drop = '' AND phash12_v2 IS NOT NULL", columns=["image_name", *_SEARCHED]):
        pictures += [_picture(row) for row in batch.to_pylist()]
    verdicts = {picture.name: ("", None, None) for picture in pictures} | {
        found.name: (found.drop, found.group, found.of) for found in find_duplicates(pictures, limits)
    }
    columns = list(STAGE_COLUMNS["duplicate"])
    return images.update(_changed_verdicts(images, columns, verdicts))


def _picture(row: Mapping[str, Any]) -> Picture:
    values = {name: row[name] for name in _SEARCHED if name not in ("width", "height")}
    return Picture(name=row["image_name"], num_pixels=row["width"] * row["height"], **values)


def _changed_verdicts(
    images: Table, columns: Sequence[str], verdicts: Mapping[str, tuple[str | None, str | None, str | None]]
) -> Iterable[dict[str, Any]]:
    for batch in images.read(columns=["image_name", *columns]):
        for row in batch.to_pylist():
            old = tuple(row[column] for column in columns)
            new = verdicts.get(row["image_name"], (None, None, None))
            if old != new:
                yield {"image_name": row["image_name"], **dict(zip(columns, new, strict=True))}
