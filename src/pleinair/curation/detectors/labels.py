"""Labelled examples for a detector: pictures of the warehouse, and who says what they show.

    a sample of `images`, as many of each source --+--> plant       each picture without and with the flaw (planted)
                                                   +--> model       yes or no by a vision-language model   (vlm)
                                                   +--> tower       fits the text best, or hardly          (tower)
                                                   `--> rule        a SQL condition                        (rule)

Labels on pictures themselves are events in `detector_labels`, under their origin; people's (origin human) are asked for by
`pleinair.curation.detectors.checks` and only measure. Planted pictures are made and forgotten: the seed makes them again.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from pleinair.curation.detectors.features import feature_set
from pleinair.curation.detectors.fitting import Examples
from pleinair.curation.detectors.planted import Plant, planted_pair
from pleinair.curation.detectors.vlm import Opinion
from pleinair.curation.pictures import Pixels, decode
from pleinair.curation.store import ObjectStore
from pleinair.krablet import Database, Table
from pleinair.records.errors import ConfigError, ImageError, SourceError

Origin = Literal["human", "planted", "vlm", "tower", "rule"]
OnProgress = Callable[[int, int], None]
LABEL_COLUMNS: Mapping[str, str] = {
    "label": "uuid",
    "detector": "text",
    "image_name": "text",
    "shows": "boolean",
    "confidence": "double precision",
    "origin": "text",
    "labelled_by": "text",
    "labelled_at": "timestamptz",
}
TO_LOOK_AT = "pixels_drop = '' AND coalesce(duplicate_drop, '') = ''"
"""SQL condition of the pictures a detector looks at: those the cheap stages keep."""
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class LabelEvent:
    """Somebody's word on one picture."""

    detector: str
    image_name: str
    shows: bool
    confidence: float
    origin: Origin
    labelled_by: str
    labelled_at: datetime


@dataclass(frozen=True)
class Sampled:
    """A picture of the warehouse to be labelled."""

    name: str
    source: str
    image_path: str


class Pictures(Protocol):
    """Named pictures that can be gone through more than once: a list, or `StoredPictures`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Sampled, Pixels]]: ...


_Example = tuple[Sampled, Pixels, bool]


def labels_table(db: Database) -> Table:
    """The declared `detector_labels` table."""
    return db.table("detector_labels", key="label", columns=LABEL_COLUMNS)


def record_labels(db: Database, events: Sequence[LabelEvent]) -> None:
    """Append events; durable on return."""
    labels_table(db).upsert({"label": str(uuid.uuid4()), **vars(event)} for event in events)


def read_labels(db: Database, detector: str, origin: Origin | None = None) -> list[LabelEvent]:
    """Events of a detector, oldest first."""
    columns = [name for name in LABEL_COLUMNS if name != "label"]
    where = "detector = %(name)s" + (" AND origin = %(origin)s" if origin else "")
    found = labels_table(db).read(where=where, params={"name": detector, "origin": origin}, columns=columns)
    events = [LabelEvent(**row) for batch in found for row in batch.to_pylist()]
    return sorted(events, key=lambda event: event.labelled_at)


def latest(events: Sequence[LabelEvent]) -> dict[str, LabelEvent]:
    """The last word on each picture."""
    return {event.image_name: event for event in events}


def events_of(detector: str, origin: Origin, opinions: Mapping[str, Opinion]) -> list[LabelEvent]:
    """Opinions as events of now."""
    now = datetime.now(UTC)
    return [
        LabelEvent(
            detector=detector,
            image_name=name,
            shows=told.shows,
            confidence=told.confidence,
            origin=origin,
            labelled_by=told.by,
            labelled_at=now,
        )
        for name, told in opinions.items()
    ]


def sample_pictures(images: Table, num: int, *, where: str = "TRUE", seed: int = 0) -> list[Sampled]:
    """Pictures to label, as many of each source as there are; the same rows give the same sample.

    The source is that of the row, or its style where all rows have one source. Raises SourceError when there is none.
    """
    columns = ["image_name", "image_path", "source", "style"]
    found = images.read(where=f"({where}) AND {TO_LOOK_AT}", columns=columns)
    rows = sorted(
        (row for batch in found for row in batch.to_pylist()), key=lambda row: _order(row["image_name"], seed)
    )
    if not rows:
        raise SourceError("no kept picture matches: run 'pleinair curate' first, or widen --where")
    by = "source" if len({row["source"] for row in rows}) > 1 else "style"
    place: Counter[str] = Counter()
    ranked = list[tuple[int, int, Sampled]]()
    for row in rows:
        source = row[by] or "unknown"
        ranked.append((place[source], len(ranked), Sampled(row["image_name"], source, row["image_path"])))
        place[source] += 1
    return [sampled for _, _, sampled in sorted(ranked, key=lambda one: one[:2])[:num]]


def _order(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


@dataclass(frozen=True)
class StoredPictures:
    """Sampled pictures, decoded one at a time, again in every pass: photographs by the thousand do not fit in memory."""

    sampled: Sequence[Sampled]
    store: ObjectStore

    def __len__(self) -> int:
        return len(self.sampled)

    def __iter__(self) -> Iterator[tuple[Sampled, Pixels]]:
        """Each picture that can be read; those that cannot are left out, their stage says why."""
        for one in self.sampled:
            try:
                yield one, decode(self.store.get(one.image_path))
            except (SourceError, ImageError):
                continue


def planted_examples(
    pictures: Pictures,
    plant: Plant,
    feature_names: Sequence[str],
    cache: Path,
    *,
    seed: int = 0,
    on_progress: OnProgress = lambda done, total: None,
) -> Examples:
    """Each picture twice, without and with the flaw."""

    def pairs() -> Iterator[_Example]:
        for one, picture in pictures:
            pair = planted_pair(plant, picture, np.random.default_rng(list(_order(one.name, seed)[:8])))
            yield from ((one, side, flawed) for side, flawed in zip(pair, (False, True), strict=True))

    return _examples(pairs(), 2 * len(pictures), "planted", feature_names, cache, on_progress)


def labelled_examples(
    pictures: Pictures,
    opinions: Mapping[str, Opinion],
    origin: Origin,
    feature_names: Sequence[str],
    cache: Path,
    *,
    min_confidence: float = 0.0,
    on_progress: OnProgress = lambda done, total: None,
) -> Examples:
    """Pictures with an opinion of at least that confidence. Raises ConfigError when there is none."""
    sure = {name: one.shows for name, one in opinions.items() if one.confidence >= min_confidence}
    if not sure:
        raise ConfigError(f"none of {len(pictures)} pictures has a label of confidence {min_confidence:g} or more")
    chosen = ((one, picture, sure[one.name]) for one, picture in pictures if one.name in sure)
    return _examples(chosen, len(sure), origin, feature_names, cache, on_progress)


def _examples(
    stream: Iterator[_Example],
    total: int,
    origin: Origin,
    names: Sequence[str],
    cache: Path,
    on_progress: OnProgress,
) -> Examples:
    """Features of a stream, a batch of pictures in memory at a time."""
    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    labels, known = list[bool](), list[Sampled]()
    while batch := list(islice(stream, _BATCH)):
        for name in names:
            parts[name].append(feature_set(name, cache)([picture for _, picture, _ in batch]))
        labels += [label for *_, label in batch]
        known += [one for one, *_ in batch]
        on_progress(len(labels), total)
    if not known:
        raise SourceError(f"none of the {total} pictures can be read: run 'pleinair curate --fetch-again'")
    features = {name: np.concatenate(of_set) for name, of_set in parts.items()}
    return Examples(
        features, np.array(labels), [one.name for one in known], [one.source for one in known], [origin] * len(known)
    )


def opinions_of_scores(scores: Mapping[str, float], text: str, *, positive_share: float = 0.02) -> dict[str, Opinion]:
    """Weak labels: the pictures that fit a text best, and the half that fits it worst; those between say nothing.

    A cosine is no probability: `positive_share` is the caller's guess at how many show it.
    """
    if not 0 < positive_share < 0.5:
        raise ConfigError(f"positive_share is {positive_share}: give the share of pictures that may show it, under 0.5")
    if any(math.isnan(score) for score in scores.values()):
        raise ConfigError(f"the text {text!r} has no word that can be looked for: give words")
    ordered = sorted(scores, key=lambda name: (-scores[name], name))
    num_yes = max(1, round(positive_share * len(ordered)))
    by = f"text {text!r}"
    yes = {name: Opinion(True, 0.5, by) for name in ordered[:num_yes]}
    return {**yes, **{name: Opinion(False, 0.5, by) for name in ordered[len(ordered) // 2 :] if name not in yes}}
