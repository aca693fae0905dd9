"""A set as a file: its pictures in their order, with licence and author, to be named by a mix."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from pleinair.curation.picks.candidates import pickable
from pleinair.curation.picks.events import Picks, checked_domain, picks_table, read_events
from pleinair.krablet import Database, Table
from pleinair.records.errors import ConfigError

_FROM_IMAGES = {
    "image_name": pa.string(),
    "image_path": pa.string(),
    "md5": pa.string(),
    "source": pa.string(),
    "uri": pa.string(),
    "licence": pa.string(),
    "author": pa.string(),
    "provenance": pa.string(),
    "label": pa.string(),
    "style": pa.string(),
    "caption_long": pa.string(),
}
SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("domain", pa.string()),
        *_FROM_IMAGES.items(),
        ("person", pa.string()),
        ("decided_at", pa.timestamp("us", "UTC")),
    ]
)


@dataclass(frozen=True)
class Exported:
    """What was written, and what a person chose that may no longer be trained on."""

    num_pictures: int
    left_out: tuple[str, ...]
    """Names of pictures gone, dropped or held out since they were picked."""


def export_set(db: Database, images: Table, domain: str, path: Path) -> Exported:
    """Write the set of a domain to a .parquet or .jsonl file, which is there whole or not at all.

    Raises ConfigError for an empty set or another suffix.
    """
    if path.suffix not in (".parquet", ".jsonl"):
        raise ConfigError(f"{path} is neither .parquet nor .jsonl: give a file name that ends in one of them")
    picks = Picks(read_events(picks_table(db)))
    chosen = picks.chosen(checked_domain(domain))
    if not chosen:
        known = ", ".join(sorted(name for name in picks.by_domain if picks.chosen(name))) or "none"
        raise ConfigError(f"the set {domain!r} is empty; sets with pictures: {known}")
    facts = _facts(images, chosen)
    rows = [
        {
            "position": place,
            "domain": domain,
            **facts[name],
            "person": picks.pick(domain, name).person,
            "decided_at": picks.pick(domain, name).decided[0],
        }
        for place, name in enumerate(name for name in chosen if name in facts)
    ]
    _write(path, rows)
    return Exported(len(rows), tuple(name for name in chosen if name not in facts))


def _facts(images: Table, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    where = f"{pickable(images)} AND image_name = ANY(%(names)s)"
    found = images.read(where=where, params={"names": list(names)}, columns=list(_FROM_IMAGES))
    return {row["image_name"]: row for batch in found for row in batch.to_pylist()}


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".parquet":
            parquet.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), unfinished)
        else:
            lines = (json.dumps({**row, "decided_at": row["decided_at"].isoformat()}) for row in rows)
            unfinished.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): give another place") from error
    finally:
        unfinished.unlink(missing_ok=True)
