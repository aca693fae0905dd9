"""The `images` table and its queue stages: who reads and writes which column.

    fetch -> probe -> hashes -> pixels -> captions      queue stages, row by row, in worker processes
                         `--------`-> duplicates        a set operation after them

Every stage writes a verdict `<stage>_drop`: NULL until it has looked, '' when the picture stays, else the reason,
`kind: value and limit`. A stage is ready for rows the one before it kept, so the order above is nothing but conditions.
A function here is a thin coat around a pure one: it gets a batch of rows and gives columns, or the exception, per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from pleinair.config.overrides import from_document
from pleinair.curation import hashes as fingerprint
from pleinair.curation.fetch import Outcome, Row, fetch_rows
from pleinair.curation.filters import PIXEL_FILTERS, judge
from pleinair.curation.limits import LimitTable
from pleinair.curation.pictures import decode
from pleinair.curation.pixels import PixelStatistics, pixel_statistics
from pleinair.curation.probe import COLUMNS as PROBE_COLUMNS
from pleinair.curation.probe import from_columns, judged, measure
from pleinair.curation.store import ObjectStore
from pleinair.curation.takedowns import read_snapshot
from pleinair.curation.web import FetchPolicy
from pleinair.krablet import Database, Stage, Table
from pleinair.records.errors import ImageError, SourceError, require

IMAGES = "images"

SOURCE_COLUMNS: Mapping[str, str] = {
    "image_name": "text",
    "uri": "text",
    "source": "text",
    "style": "text",
    "concept": "text",
    "label": "text",
    "tags": "text[]",
    "group_name": "text",
    "licence": "text",
    "author": "text",
    "provenance": "text",
    "caption": "text",
    "caption_error": "text",
    "held_out": "boolean",
}
"""What a source says; the fields of PictureRow."""

STAGE_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "fetch": {
        "fetch_drop": "text",
        "image_path": "text",
        "md5": "text",
        "num_bytes": "bigint",
        "fetched_at": "timestamptz",
        "consent": "text",
        "consent_signal": "text",
        "consent_at": "timestamptz",
    },
    "probe": {
        "probe_drop": "text",
        "format": "text",
        "width": "integer",
        "height": "integer",
        "aspect": "real",
        "damage": "text",
    },
    "hashes": {"hashes_drop": "text", "phash12_v2": "text", "colour_v2": "text", "thumb16_v2": "bytea"},
    "pixels": {"pixels_drop": "text", **{field.name: "real" for field in fields(PixelStatistics)}},
    "captions": {"captions_drop": "text", "caption_long": "text", "caption_medium": "text", "caption_short": "text"},
    "duplicate": {"duplicate_drop": "text", "duplicate_group": "text", "duplicate_of": "text"},
    "semantic": {"semantic_drop": "text", "semantic_group": "text", "semantic_of": "text"},
    "ocr": {
        "ocr_drop": "text",
        "ocr_lines": "text[]",
        "ocr_share": "real",
        "camera": "text",
        "ocr_by": "text",
    },
    "describe": {"describe_drop": "text", "description": "text", "describe_by": "text"},
    "reformat": {
        "reformat_drop": "text",
        "caption_tags": "text[]",
        "caption_instruction": "text",
        "caption_json": "jsonb",
        "reformat_by": "text",
    },
    "check": {
        "check_drop": "text",
        "claims": "jsonb",
        "failing_claims": "text[]",
        "failed_rounds": "integer",
        "check_by": "text",
    },
}
"""What each stage writes, in the order of the stages; those after `duplicate` are run by captioning."""

QUEUE_STAGES = ("fetch", "probe", "hashes", "pixels", "captions")
PASSED = (
    "captions_drop = '' AND duplicate_drop = '' AND coalesce(describe_drop, '') = '' AND coalesce(check_drop, '') = ''"
)
"""SQL condition of the pictures that passed everything but the search for duplicates in meaning."""
KEPT = f"{PASSED} AND coalesce(semantic_drop, '') = ''"
"""SQL condition of the pictures that passed everything; captioning may have looked at them or not."""

MEASURES = tuple(field.name for field in fields(PixelStatistics))
"""The columns of the pixels stage that a verdict is made of."""

_READS: Mapping[str, Sequence[str]] = {
    "fetch": ("uri", "licence"),
    "probe": ("image_path", "source", "style", *PROBE_COLUMNS),
    "hashes": ("image_path",),
    "pixels": ("image_path", "source", "style", "ocr_share", *MEASURES),
    "captions": ("image_name", "source", "caption", "caption_error", "label", "tags", "style", "group_name"),
}
_BATCH: Mapping[str, int] = {"fetch": 32, "probe": 64, "hashes": 64, "pixels": 64, "captions": 256}


def images_table(db: Database) -> Table:
    """The declared `images` table."""
    columns = dict(SOURCE_COLUMNS)
    for stage_columns in STAGE_COLUMNS.values():
        columns.update(stage_columns)
    return db.table(IMAGES, key="image_name", columns=columns)


def kept_where(images: Table) -> str:
    """SQL condition of the pictures that no stage speaks against: `KEPT`, and the verdicts of detectors and reviews."""
    others = sorted(name for name in images.columns if name.endswith("_drop") and name not in KEPT)
    return " AND ".join([KEPT, *(f"coalesce({name}, '') = ''" for name in others)])


def declare_stages(images: Table) -> dict[str, Stage]:
    """The five queue stages, by name."""
    stages = {}
    for name, before in zip(QUEUE_STAGES, (None, *QUEUE_STAGES), strict=False):
        upstream = f" AND {before}_drop = ''" if before else ""
        # Rows that know only an older definition of the fingerprints are looked at again; what came after stands.
        to_do = "(hashes_drop IS NULL OR (hashes_drop = '' AND phash12_v2 IS NULL))" if name == "hashes" else None
        stages[name] = images.stage(
            name,
            ready=f"{to_do or f'{name}_drop IS NULL'}{upstream}",
            writes=list(STAGE_COLUMNS[name]),
            reads=list(_READS[name]),
            batch=_BATCH[name],
            lease_seconds=120.0,
        )
    return stages


def fetch(batch: Sequence[Row], *, cache: str, store: str, policy: Mapping[str, Any]) -> list[Outcome]:
    """Bytes from the source into the object store, vector drawings as PNG; pictures taken down stay out."""
    place = Path(store)
    return fetch_rows(
        batch, Path(cache), ObjectStore(place), from_document(FetchPolicy, dict(policy)), read_snapshot(place)
    )


def verdicts_from(stage: str) -> dict[str, None]:
    """Columns that make `stage` and all after it look again; from `fetch` on what was measured is forgotten as well."""
    names = list(STAGE_COLUMNS)
    taken_back = dict.fromkeys(f"{name}_drop" for name in names[names.index(stage) :])
    if stage == "fetch":
        taken_back |= dict.fromkeys((*PROBE_COLUMNS, *MEASURES, "ocr_share"))
    return taken_back


def probe(batch: Sequence[Row], *, store: str, limits: Mapping[str, Any]) -> list[Outcome]:
    """Format, size, and whether the picture decodes; from the columns where they are there."""
    table = from_document(LimitTable, dict(limits))

    def values(row: Row, read: Callable[[], bytes]) -> dict[str, object]:
        own = table.of(row["source"], row["style"]).probe
        found = asdict(from_columns(row, own) or judged(measure(read(), own.max_pixels), own))
        return {"probe_drop": found.pop("drop"), **found}

    return _each_row(batch, store, values)


def hashes(batch: Sequence[Row], *, store: str) -> list[Outcome]:
    """Fingerprints for the duplicate search; what looks like a picture taken down goes."""
    require("cv2", "curate").setNumThreads(1)  # there are as many workers as cores
    refusals = read_snapshot(Path(store))

    def values(data: bytes) -> dict[str, object]:
        found = fingerprint.fingerprints_of(data)
        drop = refusals.of_looks(found.phash12_v2, found.colour_v2, found.thumb16_v2) or refusals.of_old_looks(data)
        return {"hashes_drop": drop, **asdict(found)}

    return _each(batch, store, values)


def pixels(batch: Sequence[Row], *, store: str, limits: Mapping[str, Any]) -> list[Outcome]:
    """Statistics of pixels, and whether they speak against the picture; measured where the columns are not there."""
    table = from_document(LimitTable, dict(limits))

    def values(row: Row, read: Callable[[], bytes]) -> dict[str, object]:
        known = {name: row[name] for name in MEASURES}
        statistics = asdict(pixel_statistics(decode(read()))) if None in known.values() else known
        own = table.of(row["source"], row["style"]).pixels
        verdict = judge(PIXEL_FILTERS, {**statistics, "ocr_share": row["ocr_share"]}, own, table.resolution)
        return {"pixels_drop": verdict.reason, **statistics}

    return _each_row(batch, store, values)


def _each(batch: Sequence[Row], store: str, values: Callable[[bytes], dict[str, object]]) -> list[Outcome]:
    """`values` of each row's stored bytes; what a row raises is its own outcome."""
    return _each_row(batch, store, lambda _, read: values(read()))


def _each_row(
    batch: Sequence[Row], store: str, values: Callable[[Row, Callable[[], bytes]], dict[str, object]]
) -> list[Outcome]:
    """`values` of each row and of a function that reads its stored bytes; what a row raises is its own outcome."""
    # The probe has set the limit of pixels; Pillow's own would warn of pictures the limit allows.
    Image.MAX_IMAGE_PIXELS = None
    objects = ObjectStore(Path(store))
    outcomes: list[Outcome] = []
    for row in batch:
        try:
            outcomes.append(values(row, partial(objects.get, row["image_path"])))
        except (SourceError, ImageError) as error:
            outcomes.append(error)
    return outcomes
