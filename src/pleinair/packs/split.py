"""One pack as two with no row in common: what a model trains on, and what it is tested with.

Text features, latents and the text projection stay as they are, so what both packs hold is comparable; neither pictures
nor encoders are needed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate, groupby, islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pleinair.config import config_digest
from pleinair.packs.pack import Pack
from pleinair.packs.writer import PackRow, PackWriter
from pleinair.records.errors import PackError
from pleinair.records.packs import ShardEntry

Takes = Callable[[PackRow], bool]


def split_pack(pack: Pack, takes: Takes, name: str, *, kept: Path, taken: Path) -> None:
    """Write the rows that `takes` chooses to the pack `taken` and the others to `kept`, in their order.

    `name` says what was chosen: packs split alike have equal plans. Raises PackError when one side would be empty.
    """
    for directory, wanted in ((taken, True), (kept, False)):
        plan = config_digest([pack.manifest.plan, name, wanted])
        writer = PackWriter(directory, replace(pack.manifest, plan=plan, shards=(), files={}))
        _write_side(pack, takes if wanted else lambda row: not takes(row), writer)
        if not writer.done:
            shutil.rmtree(writer.staging)
            raise PackError(f"{name} leaves no picture of {pack.directory} for {directory.name}: choose another share")
        files = [shutil.copyfile(pack.directory / other, writer.staging / other) for other in pack.manifest.files]
        writer.finish(files, pack.manifest.text_variance_kept)


def share_of_pairs(share: float, use: str) -> Takes:
    """Chooses about so many of the (concept, style) pairs, by their names alone; `use` makes the choice another one."""

    def takes(row: PackRow) -> bool:
        digest = hashlib.sha256(f"{use}/{row.concept or row.key}/{row.style}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64

    return takes


def _write_side(pack: Pack, takes: Takes, writer: PackWriter) -> None:
    """All shapes; of one that a killed writer had begun, the rows that are missing."""
    for (resolution, shape), entries in groupby(
        pack.manifest.shards, key=lambda entry: (entry.resolution, entry.shape)
    ):
        chosen = (row for entry in entries for row in read_rows(pack, entry) if takes(row))
        for row in islice(chosen, writer.rows_done(resolution, shape), None):
            writer.write(resolution, shape, [row])
        writer.end_shape(resolution, shape)


def read_rows(pack: Pack, entry: ShardEntry) -> Iterator[PackRow]:
    """The rows of a shard as they were written, a row group in memory at a time."""
    file = pq.ParquetFile(pack.directory / entry.name)
    for number in range(file.num_row_groups):
        for row in file.read_row_group(number).to_pylist():
            yield _row(row, pack.manifest.kind)


def _row(row: dict[str, Any], kind: str) -> PackRow:
    tokens = row.get("text_features") or []
    edges = [0, *accumulate(row.get("num_tokens") or [])]
    return PackRow(
        key=row["key"],
        data=row[kind],
        width=row["width"],
        height=row["height"],
        lost_share=row["lost_share"],
        style=row["style"],
        concept=row["concept"],
        captions=tuple(row["captions"]),
        caption_weights=tuple(row["caption_weights"]),
        text_features=tuple(b"".join(tokens[first:last]) for first, last in pairwise(edges)),
        repeat=row["repeat"],
    )
