"""The queue stage `entities`: which entities a picture's captions name, as an array column of `images`.

`entities_version` is the version of the names looked for; a picture matched with other names is looked at again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pleinair.curation.entities.matching import Matcher, Matches, load_matcher
from pleinair.curation.stages import IMAGES, images_table
from pleinair.krablet import Database, Progress, RunSummary, Stage, Table, run_workers

CAPTIONS = ("caption_long", "caption_medium", "caption_short")
COLUMNS = {"entity_ids": "text[]", "entities_version": "text"}
BATCH = 1024


def declare(db: Database) -> tuple[Table, Stage]:
    """The `images` table with this stage's columns, and the stage: ready for captioned pictures that stay."""
    images_table(db)
    images = db.table(IMAGES, key="image_name", columns={"image_name": "text", **COLUMNS})
    stage = images.stage(
        "entities",
        ready="entity_ids IS NULL AND captions_drop = ''",
        writes=list(COLUMNS),
        reads=list(CAPTIONS),
        batch=BATCH,
        lease_seconds=120.0,
    )
    return images, stage


def match_all(
    db: Database, names: Path, *, processes: int = 2, on_progress: Callable[[Progress], None] = lambda progress: None
) -> RunSummary:
    """Run the stage to the end; pictures matched with other names than these are matched again."""
    _, version = load_matcher(names)
    images, stage = declare(db)
    for batch in images.read(where="entities_version <> %(now)s", params={"now": version}, columns=["image_name"]):
        images.update({"image_name": name, "entity_ids": None} for name in batch.column("image_name").to_pylist())
    spec = stage.spec("pleinair.curation.entities.stage:entities", names=str(names.resolve()))
    return run_workers(db, [spec], processes=processes, on_progress=on_progress)


def entities(batch: Sequence[Mapping[str, Any]], *, names: str) -> list[dict[str, object]]:
    """Keys of the entities that each row's captions name."""
    matcher, version = _loaded(names)
    found = match_rows(matcher, batch)
    return [
        {"entity_ids": [matcher.keys[entity] for entity in found.of(row)], "entities_version": version}
        for row in range(len(batch))
    ]


@lru_cache(maxsize=1)
def _loaded(names: str) -> tuple[Matcher, str]:
    return load_matcher(Path(names))


def match_rows(matcher: Matcher, rows: Iterable[Mapping[str, Any]]) -> Matches:
    """The entities of each row, over all its distinct captions."""
    texts: list[str] = []
    owners: list[int] = []
    num_rows = 0
    for row in rows:
        for text in dict.fromkeys(row[name] for name in CAPTIONS if row.get(name)):
            texts.append(text)
            owners.append(num_rows)
        num_rows += 1
    by_text = matcher.match(texts)
    row_of = np.repeat(np.array(owners, np.int64), np.diff(by_text.offsets))
    found = np.unique(row_of << 32 | by_text.entities)
    offsets = np.searchsorted(found, np.arange(num_rows + 1, dtype=np.int64) << 32)
    return Matches(offsets, (found & 0xFFFFFFFF).astype(np.int32))
