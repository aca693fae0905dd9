"""Which pictures a person is shown, and in which order."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pleinair.curation.stages import kept_where
from pleinair.krablet import Table
from pleinair.records.errors import ConfigError, QueueError

_COLUMNS = ("image_name", "image_path", "label", "caption_long", "licence", "author", "source", "width", "height")


@dataclass(frozen=True)
class Candidate:
    """What the page shows of a picture."""

    image_name: str
    image_path: str
    label: str | None
    caption_long: str | None
    licence: str | None
    author: str | None
    source: str | None
    width: int | None
    height: int | None


def pickable(images: Table) -> str:
    """SQL condition of the pictures that may enter a set: kept, and not held out from training."""
    return f"{kept_where(images)} AND NOT coalesce(held_out, FALSE)"


def candidates(images: Table, where: str, most: int, names: Sequence[str] | None = None) -> list[Candidate]:
    """At most `most` pictures that satisfy `where`: in the order of `names`, or mixed, always in the same way.

    Raises ConfigError when there are none, or `where` cannot be read.
    """
    try:
        chosen = list(_mixed(images, where, most)) if names is None else _listed(images, where, names)[:most]
    except QueueError as error:
        raise ConfigError(f"these pictures cannot be read: {error}; see 'pleinair sql' for the columns") from error
    if not chosen:
        raise ConfigError(f"no picture satisfies {where}: curate first, or give another --where or list")
    found = {one.image_name: one for one in look_up(images, chosen)}
    return [found[name] for name in chosen if name in found]


def look_up(images: Table, names: Iterable[str]) -> Iterator[Candidate]:
    """The pictures of these names that have bytes in the store."""
    where = "image_name = ANY(%(names)s) AND image_path IS NOT NULL"
    for batch in images.read(where=where, params={"names": list(names)}, columns=_COLUMNS):
        for row in batch.to_pylist():
            yield Candidate(**row)


def _mixed(images: Table, where: str, most: int) -> list[str]:
    """Sources and styles mixed: a person who sees three hundred of one kind in a row stops judging."""
    names = _names(images.read(where=f"({where}) AND image_path IS NOT NULL", columns=["image_name"]))
    return heapq.nsmallest(most, names, key=lambda name: hashlib.sha256(name.encode()).digest())


def _listed(images: Table, where: str, names: Sequence[str]) -> list[str]:
    condition = f"({where.replace('%', '%%')}) AND image_name = ANY(%(names)s) AND image_path IS NOT NULL"
    there = set(_names(images.read(where=condition, params={"names": list(names)}, columns=["image_name"])))
    return [name for name in dict.fromkeys(names) if name in there]


def _names(batches: Iterable[object]) -> Iterator[str]:
    for batch in batches:
        yield from batch.column("image_name").to_pylist()  # type: ignore[attr-defined]


def read_names(path: Path) -> list[str]:
    """Names of pictures from a file: Parquet or JSON lines with `image_name`, or text with one name a line."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as parquet

            return [str(name) for name in parquet.read_table(path, columns=["image_name"])["image_name"].to_pylist()]
        lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
        return [str(json.loads(line)["image_name"]) for line in lines] if path.suffix == ".jsonl" else lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "has no image_name" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"{path} is no list of pictures ({what}): give Parquet or JSON lines with image_name, or one name a line"
        ) from error
