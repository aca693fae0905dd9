"""Writing a pack as a stream: one row group in memory, finished shards kept when the writer is killed.

    rows --group_rows--> row group --shard_bytes--> shard (fsync, rename, journal) --finish--> PACK/ (rename)

Until `finish` all is in `.PACK.partial`: finished shards and `shards.jsonl`, which lists them. A writer with the same plan
finds them there and says how many rows of each shape are done; anything else in that folder is deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pleinair.config import from_document, to_document
from pleinair.packs.shards import digest_of
from pleinair.records.errors import ConfigError, PackError
from pleinair.records.packs import PackManifest, ShardEntry, empty_prompt_schema, shard_schema

SHARD_BYTES = 256 * 2**20
JOURNAL = "shards.jsonl"
WHOLE_PAGE = 2**31 - 1
"""One page for each column of a row group, whatever its size: see packs/shards.py."""


@dataclass(frozen=True)
class PackRow:
    """One picture as it is stored."""

    key: str
    data: bytes
    """Latents or pixels in C order, or an encoded picture."""
    width: int
    """Of the picture before resizing, in pixels."""
    height: int
    lost_share: float = 0.0
    """Share of its area that was cut off."""
    style: str | None = None
    concept: str | None = None
    captions: tuple[str, ...] = ()
    caption_weights: tuple[float, ...] = ()
    """Chance of each caption, in any unit."""
    text_features: tuple[bytes, ...] = ()
    """Tokens of each caption, (tokens, layers, dim) in C order."""
    repeat: int = 0
    """Which copy of the picture this is, when it is packed several times."""


def key_hash(key: str, repeat: int = 0) -> int:
    """64 bits that stand for a row in all draws."""
    return int.from_bytes(hashlib.blake2b(f"{repeat}/{key}".encode(), digest_size=8).digest(), "little")


class PackWriter:
    """Shards of a pack, one shape after the other."""

    def __init__(self, directory: Path, manifest: PackManifest, shard_bytes: int = SHARD_BYTES) -> None:
        self.directory, self.shard_bytes = directory, shard_bytes
        self.staging = directory.with_name(f".{directory.name}.partial")
        self.manifest = manifest
        self.done = self._finished_shards()
        self._buffer: list[PackRow] = []
        self._open: _OpenShard | None = None

    def rows_done(self, resolution: int, shape: tuple[int, ...]) -> int:
        """Rows of this shape in finished shards: where to go on."""
        return sum(entry.num_rows for entry in self.done if (entry.resolution, entry.shape) == (resolution, shape))

    def write(self, resolution: int, shape: tuple[int, ...], rows: Sequence[PackRow]) -> None:
        """Add rows of one shape, in their final order; call `end_shape` before another one. Raises PackError."""
        for row in rows:
            self._buffer.append(row)
            if len(self._buffer) == self.manifest.group_rows:
                self._flush(resolution, shape)

    def end_shape(self, resolution: int, shape: tuple[int, ...]) -> None:
        """Write what is buffered and close the shard."""
        if self._buffer:
            self._flush(resolution, shape)
        self._close_shard()

    def finish(self, files: Sequence[Path] = (), text_variance_kept: float = 0.0) -> PackManifest:
        """Add the manifest and let the pack appear; `files` lie in `staging` already. Returns the manifest."""
        others = {path.name: digest_of(path) for path in files}
        manifest = replace(self.manifest, shards=tuple(self.done), files=others, text_variance_kept=text_variance_kept)
        (self.staging / "pack.json").write_text(json.dumps(to_document(manifest), indent=1) + "\n")
        (self.staging / JOURNAL).unlink()
        _sync(self.staging / "pack.json")
        if self.directory.exists():  # two renames, so that no moment has half a pack
            old = self.directory.with_name(f".{self.directory.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            os.replace(self.directory, old)
            os.replace(self.staging, self.directory)
            shutil.rmtree(old)
        else:
            os.replace(self.staging, self.directory)
        return manifest

    def write_empty_prompt(self, features: bytes) -> Path:
        """Store the text features of the empty prompt."""
        schema, path = empty_prompt_schema(self.manifest), self.staging / "empty_prompt.parquet"
        width = schema.field("text_features").type.value_type.byte_width
        pq.write_table(pa.table([_tokens([features], width)], schema=schema), path)
        return path

    def _finished_shards(self) -> list[ShardEntry]:
        """Shards of a killed writer with the same plan; the staging folder holds nothing else afterwards."""
        kept: list[ShardEntry] = []
        journal = self.staging / JOURNAL
        lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
        if lines and lines[0] == self._heading():
            kept = _readable(lines[1:])
        else:
            shutil.rmtree(self.staging, ignore_errors=True)
            self.staging.mkdir(parents=True)
        for path in self.staging.glob(".*.parquet"):
            path.unlink()
        for path in self.staging.glob("*-*.parquet"):
            if path.name not in {entry.name for entry in kept}:
                path.unlink()
        staged = journal.with_name(f".{JOURNAL}")
        staged.write_text(self._heading() + "".join(json.dumps(to_document(entry)) + "\n" for entry in kept))
        os.replace(staged, journal)
        return kept

    def _heading(self) -> str:
        return json.dumps(to_document(self.manifest) | {"shard_bytes": self.shard_bytes}) + "\n"

    def _flush(self, resolution: int, shape: tuple[int, ...]) -> None:
        if self._open is None:
            number = sum((entry.resolution, entry.shape) == (resolution, shape) for entry in self.done)
            name = f"{resolution:04d}-{'x'.join(f'{side:02d}' for side in shape)}-{number:05d}.parquet"
            entry = ShardEntry(name=name, resolution=resolution, shape=shape, num_rows=0, num_bytes=0, sha256="")
            self._open = _OpenShard(self.staging, self.manifest, entry)
        self._open.write(self._buffer)
        self._buffer = []
        if self._open.size >= self.shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._open is None:
            return
        self.done.append(self._open.close())
        self._open = None
        with (self.staging / JOURNAL).open("a") as journal:
            journal.write(json.dumps(to_document(self.done[-1])) + "\n")
            journal.flush()
            os.fsync(journal.fileno())


def _readable(lines: Sequence[str]) -> list[ShardEntry]:
    """Entries of a journal, as far as it was written."""
    entries = []
    for line in lines:
        try:
            entries.append(from_document(ShardEntry, json.loads(line)))
        except (json.JSONDecodeError, ConfigError):
            break
    return entries


class _OpenShard:
    """A shard being written, under a hidden name."""

    def __init__(self, staging: Path, manifest: PackManifest, entry: ShardEntry) -> None:
        self.manifest, self.entry = manifest, entry
        self.path, self.hidden = staging / entry.name, staging / f".{entry.name}"
        self.schema = shard_schema(manifest, entry.shape, entry.name)
        self.num_rows, self.size = 0, 0
        self._writer = pq.ParquetWriter(
            self.hidden,
            self.schema,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            data_page_size=WHOLE_PAGE,
            data_page_version="1.0",
            max_rows_per_page=manifest.group_rows,
            store_schema=False,
        )

    def write(self, rows: Sequence[PackRow]) -> None:
        """One row group."""
        table = rows_table(rows, self.schema, self.manifest)
        self._writer.write_table(table, row_group_size=len(rows))
        self.num_rows += len(rows)
        self.size += table.nbytes

    def close(self) -> ShardEntry:
        """End the file and give it its name."""
        self._writer.add_key_value_metadata(
            self.schema.metadata
        )  # the schema is not stored, its metadata would be lost
        self._writer.close()
        _sync(self.hidden)
        os.replace(self.hidden, self.path)
        size = self.path.stat().st_size
        return replace(self.entry, num_rows=self.num_rows, num_bytes=size, sha256=digest_of(self.path))


def rows_table(rows: Sequence[PackRow], schema: pa.Schema, manifest: PackManifest) -> pa.Table:
    """Rows as the columns of a shard. Raises PackError for a row that does not fit them."""
    columns: dict[str, object] = {
        "key": [row.key for row in rows],
        "repeat": [row.repeat for row in rows],
        "key_hash": [key_hash(row.key, row.repeat) for row in rows],
        "style": [row.style for row in rows],
        "concept": [row.concept for row in rows],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "lost_share": [row.lost_share for row in rows],
        "captions": [row.captions for row in rows],
        "caption_weights": [row.caption_weights for row in rows],
        manifest.kind: [row.data for row in rows],
    }
    names = manifest.caption_names
    for row in rows:
        if not len(row.captions) == len(row.caption_weights) == len(names):
            raise PackError(
                f"{row.key} has {len(row.captions)} captions and {len(row.caption_weights)} weights: "
                f"give one for each of {', '.join(names)}"
            )
    if manifest.text_dim:
        width = schema.field("text_features").type.value_type.byte_width
        columns["num_tokens"] = [[len(tokens) // width for tokens in row.text_features] for row in rows]
        columns["text_features"] = _tokens([b"".join(row.text_features) for row in rows], width)
    try:
        return pa.table({name: columns[name] for name in schema.names}, schema=schema)
    except pa.ArrowException as unfit:
        raise PackError(f"a row from {rows[0].key} on does not fit the pack: {unfit}") from unfit


def _tokens(rows: Sequence[bytes], width: int) -> pa.Array:
    """A list of fixed-size binaries per row."""
    ends = np.cumsum([0, *(len(row) // width for row in rows)], dtype=np.int32)
    buffers = [None, pa.py_buffer(b"".join(rows))]
    values = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), int(ends[-1]), buffers)
    kind = pa.list_(pa.field("element", pa.binary(width), nullable=False))
    return pa.ListArray.from_arrays(pa.array(ends), values, type=kind)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
