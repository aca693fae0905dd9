"""The list of a mix as a file: chosen rows spilled by their place, sorted part by part, written as one Parquet.

    rows of the warehouse --luck, search--> parts on disk, by place in the list --sort each--> list.parquet, digest

Only one part is in memory at a time, so a list may be longer than memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pleinair.packing.mix import CAPTION_KINDS, CaptionMix, Mix
from pleinair.packing.pool import CAPTION_COLUMNS, Tagged
from pleinair.packing.selection import Choice, Pool, luck_of
from pleinair.records.errors import SourceError

LIST_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("repeats", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("caption_weights", pa.list_(pa.float32(), len(CAPTION_KINDS)), nullable=False),
    ]
)
LIST_COLUMNS = ("image_name", "width", "height", *CAPTION_COLUMNS)
PART_ROWS = 1 << 19
_PLACED = LIST_SCHEMA.insert(0, pa.field("place", pa.int64(), nullable=False))


@dataclass(frozen=True)
class Seen:
    """A batch of the pool as the second pass reads it."""

    source: int
    """Place of the source in the mix."""
    batch: pa.RecordBatch
    place_N: npt.NDArray[np.int64]
    """Place of each row in the list, -1 where it was not chosen."""
    repeats_N: npt.NDArray[np.int64]
    """How often each row comes; 0 where it was not chosen."""

    @property
    def hit(self) -> npt.NDArray[np.int64]:
        """Rows that were chosen."""
        return np.flatnonzero(self.repeats_N)


def write_list(
    path: Path,
    rows: Iterable[Tagged],
    pool: Pool,
    choice: Choice,
    mix: Mix,
    *,
    watchers: Sequence[Callable[[Seen], None]] = (),
) -> str:
    """Write the chosen rows by rising luck, and return the digest of the list.

    `watchers` get every batch, chosen or not. Raises SourceError when the rows are no
    longer those the pool was made of.
    """
    spill = path.with_name("parts")
    spill.mkdir()
    places = np.flatnonzero(choice.repeats_N)
    luck = pool.luck_N[places]
    parts = _Parts(spill)
    found = 0
    for source, batch in rows:
        own = luck_of(batch.column("image_name").to_pylist(), mix.seed)
        at = np.searchsorted(luck, own)
        chosen_N = luck[np.minimum(at, len(luck) - 1)] == own
        place_N = np.where(chosen_N, at, -1)
        seen = Seen(
            source, batch, place_N, np.where(chosen_N, choice.repeats_N[places[np.minimum(at, len(luck) - 1)]], 0)
        )
        if len(seen.hit):
            parts.add(_placed(seen, mix))
        for watch in watchers:
            watch(seen)
        found += len(seen.hit)
    if found != len(places):
        raise SourceError(
            f"{len(places)} pictures were chosen and {found} of them read again: the warehouse changed meanwhile; "
            "run the same command again"
        )
    return parts.merge(path)


def _placed(seen: Seen, mix: Mix) -> pa.Table:
    batch = seen.batch.take(pa.array(seen.hit))
    weights = caption_weights(batch, mix.captions)
    columns = [
        pa.array(seen.place_N[seen.hit]),
        batch.column("image_name"),
        pa.array([mix.sources[seen.source].name] * batch.num_rows, pa.string()),
        pa.array(seen.repeats_N[seen.hit].astype(np.int32)),
        batch.column("width").cast(pa.int32()),
        batch.column("height").cast(pa.int32()),
        pa.FixedSizeListArray.from_arrays(pa.array(weights.ravel()), len(CAPTION_KINDS)),
    ]
    return pa.Table.from_arrays(columns, schema=_PLACED)


def caption_weights(batch: pa.RecordBatch, captions: CaptionMix) -> npt.NDArray[np.float32]:
    """Chance of each caption, (N, 4); those a picture lacks leave their share to those it has."""
    there = [
        pc.fill_null(pc.not_equal(batch.column(column), ""), False).to_numpy(zero_copy_only=False)
        for column in CAPTION_COLUMNS
    ]
    weights = np.stack(there, axis=1) * np.array(captions.weights)
    shares: npt.NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


class _Parts:
    """Rows on disk, each in the part its place belongs to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writers: dict[int, pa.RecordBatchFileWriter] = {}

    def add(self, rows: pa.Table) -> None:
        """Append rows to their parts."""
        part_N = rows.column("place").to_numpy() // PART_ROWS
        for part in np.unique(part_N).tolist():
            if part not in self.writers:
                self.writers[part] = pa.ipc.new_file(self.folder / f"{part}.arrow", _PLACED)
            self.writers[part].write_table(rows.take(pa.array(np.flatnonzero(part_N == part))))

    def merge(self, path: Path) -> str:
        """Sort part after part into one file, remove them, and return the digest over all."""
        digest = hashlib.sha256()
        with pq.ParquetWriter(path, LIST_SCHEMA) as writer:
            for part in sorted(self.writers):
                self.writers[part].close()
                file = self.folder / f"{part}.arrow"
                with pa.OSFile(str(file)) as opened:
                    rows = pa.ipc.open_file(opened).read_all().sort_by("place").drop_columns("place")
                file.unlink()
                add_to_digest(digest, rows)
                writer.write_table(rows.cast(LIST_SCHEMA))
        self.folder.rmdir()
        return digest.hexdigest()


def add_to_digest(digest: hashlib._Hash, rows: pa.Table) -> None:
    """The rows as bytes that depend on no library's version: texts by line, numbers in little-endian."""
    for name in ("key", "source"):
        digest.update("".join(f"{text}\n" for text in rows.column(name).to_pylist()).encode())
    for name in ("repeats", "width", "height"):
        digest.update(rows.column(name).to_numpy().astype("<i4").tobytes())
    weights = rows.column("caption_weights").combine_chunks().flatten()
    digest.update(weights.to_numpy(zero_copy_only=False).astype("<f4").tobytes())


def list_digest(path: Path) -> str:
    """The digest of a list that is there."""
    digest = hashlib.sha256()
    file = pq.ParquetFile(path)
    table = file.read()
    for start in range(0, table.num_rows, PART_ROWS):
        add_to_digest(digest, table.slice(start, PART_ROWS))
    return digest.hexdigest()
