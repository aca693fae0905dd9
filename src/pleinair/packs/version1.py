"""Packs of format version 1 (rows.parquet and captions.parquet, squares only) made into packs of today.

Latents and text features are copied bit for bit; the order of rows stays, that of batches is the new loader's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pleinair.packs.shards import digest_of
from pleinair.packs.writer import PackRow, PackWriter
from pleinair.records.errors import PackError
from pleinair.records.packs import PackManifest

CAPTION_WEIGHTS = (0.5, 0.25, 0.25)
"""What the loader of version 1 drew captions with, unless told otherwise."""
GROUP_ROWS = 64


def convert(old: Path, new: Path) -> PackManifest:
    """Write the version 1 pack `old` as `new` and return its manifest. Raises PackError when it is damaged or no such pack."""
    document = _manifest(old)
    captions = pq.read_table(old / "captions.parquet")
    features = captions["features"].to_pylist()
    manifest = PackManifest(
        plan=digest_of(old / "pack.json"),
        group_rows=GROUP_ROWS,
        **{name: document[name] for name in ("downscale", "autoencoder_sha256", "text_encoder", "text_dim")},
        text_layers=tuple(document["text_layers"]),
        caption_names=tuple(document["caption_names"]),
    )
    writer = PackWriter(new, manifest)
    for resolution in document["resolutions"]:
        side = resolution // document["downscale"]
        shape = (document["latent_channels"], side, side)
        done = writer.rows_done(resolution, shape)
        for place, row in enumerate(_rows(old, resolution)):
            if place >= done:
                writer.write(resolution, shape, [_converted(row, captions["caption"], features)])
        writer.end_shape(resolution, shape)
    projection = writer.staging / "feature_projection.safetensors"
    shutil.copyfile(old / projection.name, projection)
    files = [projection, writer.write_empty_prompt(features[0])]
    return writer.finish(files, text_variance_kept=document["text_variance_kept"])


def _manifest(old: Path) -> dict[str, Any]:
    """The old manifest, its files verified."""
    try:
        document: dict[str, Any] = json.loads((old / "pack.json").read_text())
        version, files = document["version"], document["files"]
    except (OSError, ValueError, KeyError, TypeError) as unreadable:
        raise PackError(f"{old} is not a pack: pack.json cannot be read ({unreadable})") from unreadable
    if version != 1:
        raise PackError(f"pack {old} has format version {version}: only version 1 is converted")
    for name, expected in files.items():
        if not (old / name).exists() or digest_of(old / name) != expected:
            raise PackError(f"pack {old} is damaged: {name} is missing or does not match its hash; pack again")
    return document


def _rows(old: Path, resolution: int) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(old / "rows.parquet").iter_batches(1024):
        yield from (row for row in batch.to_pylist() if row["resolution"] == resolution)


def _converted(row: dict[str, Any], captions: Any, features: list[bytes]) -> PackRow:
    """A row with the captions its ids stand for. Its size before resizing was not kept: the pack's stands there."""
    numbers = row["caption_ids"]
    return PackRow(
        key=row["key"],
        data=row["latents"],
        width=row["resolution"],
        height=row["resolution"],
        style=row["style"],
        concept=row["concept"],
        captions=tuple(captions[number].as_py() for number in numbers),
        caption_weights=CAPTION_WEIGHTS[: len(numbers)],
        text_features=tuple(features[number] for number in numbers),
    )
