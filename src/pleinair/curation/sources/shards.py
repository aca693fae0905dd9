"""Pictures packed by the thousand: Parquet tables and WebDataset tars.

Parquet     one row per picture: a column with the bytes (binary, or Hugging Face's {bytes, path} struct) or with a
            path relative to the file, and any of the columns a JSON sidecar may have
WebDataset  000.jpg + 000.txt or 000.json in one uncompressed .tar; what shares a stem belongs together
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from pleinair.curation.sources.files import is_picture, path_uri, picture_row, printable
from pleinair.curation.sources.rows import PictureRow, short_hash, slug
from pleinair.curation.sources.sidecars import Facts, json_facts, mapping_facts, text_facts
from pleinair.records.errors import ImageError, SourceError

_PICTURE_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "png", "webp", "path", "image_path", "file_name")
_FACT_COLUMNS = (
    *("caption", "text", "prompt", "description", "label", "tags", "style", "concept", "group", "group_name"),
    *("licence", "license", "author"),
)
_MAX_MEMBER_BYTES = 256 * 2**20


def shard_source_name(path: Path) -> str:
    """Source name of a shard or a folder of shards."""
    return f"{slug(path.stem) or 'shards'}-{short_hash(str(path))}"


class ShardSource:
    """Rows of one or more Parquet files or WebDataset tars, told apart from other sources by `name`."""

    def __init__(self, files: Sequence[Path], name: str, style: str | None = None) -> None:
        self._files = [path.resolve() for path in files]
        self._style = style
        self.name = name

    def list(self) -> Iterator[PictureRow]:
        """Rows in the order of the files. Raises SourceError naming the file and what is wrong with it."""
        for path in self._files:
            for row in SHARD_ROWS[path.suffix](path):
                yield picture_row(
                    row.facts,
                    image_name=f"{self.name}/{printable(path.stem)}/{row.name}",
                    uri=row.uri,
                    source=self.name,
                    provenance=row.provenance,
                    style=self._style,
                )


@dataclass(frozen=True)
class ShardRow:
    """One picture of a shard: its name in the shard, where its bytes are, and what is said of it."""

    name: str
    uri: str
    provenance: str
    facts: Facts


def parquet_rows(path: Path) -> Iterator[ShardRow]:
    """Rows of a Parquet file, numbered. Raises SourceError naming the column it lacks."""
    uri = f"parquet{path_uri(path).removeprefix('file')}"
    with _opened_parquet(path) as file:
        column = _picture_column(file.schema_arrow, path)
        facts = [name for name in file.schema_arrow.names if name in _FACT_COLUMNS]
        number = 0
        for batch in file.iter_batches(1024, columns=facts):
            for values in batch.to_pylist() if facts else [{}] * batch.num_rows:
                where = f"{printable(path.name)} row {number}"
                yield ShardRow(f"{number:08d}", f"{uri}#{quote(column)}={number}", where, mapping_facts(values, where))
                number += 1


def webdataset_rows(path: Path) -> Iterator[ShardRow]:
    """Pictures of a tar with their sidecars, in archive order. Raises SourceError when it is no tar."""
    uri = f"tar{path_uri(path).removeprefix('file')}"
    members = tar_members(str(path), path.stat().st_mtime_ns)
    with open(path, "rb") as file:
        for member in members:
            if is_picture(os.path.basename(member)):
                where = f"{printable(path.name)} {printable(member)}"
                facts = _sidecar(file, members, member, path)
                yield ShardRow(printable(member), f"{uri}#{quote(os.fsencode(member))}", where, facts)


SHARD_ROWS: Mapping[str, Callable[[Path], Iterator[ShardRow]]] = {".parquet": parquet_rows, ".tar": webdataset_rows}
"""How the shards of each suffix are read."""


def _opened_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path} is not readable as Parquet ({error}): give a complete .parquet file") from error


def _picture_column(schema: pa.Schema, path: Path) -> str:
    for name in _PICTURE_COLUMNS:
        if name in schema.names:
            return name
    raise SourceError(
        f"{path} has no column of pictures among {', '.join(schema.names)}: "
        f"name one of {', '.join(_PICTURE_COLUMNS)}, with bytes or a path"
    )


def read_parquet_picture(path: Path, column: str, number: int) -> bytes:
    """Bytes of the picture in row `number`. Raises SourceError or ImageError."""
    group, offset = _place(str(path), path.stat().st_mtime_ns, number)
    value = _row_group(str(path), path.stat().st_mtime_ns, column, group)[offset].as_py()
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value:
        raise ImageError(f"broken: no picture in column {column} of row {number}; remove the row")
    return (path.parent / value).read_bytes() if isinstance(value, str) else bytes(value)


def _place(path: str, modified_ns: int, number: int) -> tuple[int, int]:
    """(row group, row within it) of row `number` of the file."""
    offset = number
    for group, size in enumerate(_group_sizes(path, modified_ns)):
        if offset < size:
            return group, offset
        offset -= size
    raise SourceError(f"{path} has no row {number}: it changed since it was ingested; ingest it again")


@lru_cache(maxsize=64)
def _group_sizes(path: str, modified_ns: int) -> list[int]:
    with _opened_parquet(Path(path)) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


# Workers take rows roughly in file order, so the last groups read serve most of the next rows.
@lru_cache(maxsize=2)
def _row_group(path: str, modified_ns: int, column: str, group: int) -> pa.ChunkedArray:
    with _opened_parquet(Path(path)) as file:
        return file.read_row_group(group, columns=[column]).column(0)


@lru_cache(maxsize=256)
def tar_members(path: str, modified_ns: int) -> dict[str, tuple[int, int]]:
    """Member -> (offset, size) of the data, in archive order. Raises SourceError when the file is no complete tar."""
    try:
        # "r:" alone takes no compression: in a compressed tar a member cannot be reached without reading all before it.
        with tarfile.open(path, "r:") as archive:
            return {member.name: (member.offset_data, member.size) for member in archive if member.isreg()}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(f"{path} is not a complete uncompressed tar ({error}): unpack or copy it again") from error


def read_tar_picture(path: Path, member: str) -> bytes:
    """Bytes of one member. Raises SourceError."""
    members = tar_members(str(path), path.stat().st_mtime_ns)
    if member not in members:
        raise SourceError(f"{path} has no member {member}: it changed since it was ingested; ingest it again")
    with open(path, "rb") as file:
        return _read_at(file, *members[member])


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    if size > _MAX_MEMBER_BYTES:
        raise ImageError(f"broken: a member of {size} bytes, over {_MAX_MEMBER_BYTES}; remove it from the tar")
    file.seek(offset)
    return file.read(size)


def _sidecar(file: BinaryIO, members: Mapping[str, tuple[int, int]], member: str, path: Path) -> Facts:
    stem = _stem(member)
    for suffix, read in ((".json", json_facts), (".txt", text_facts)):
        if stem + suffix in members:
            return read(_read_at(file, *members[stem + suffix]), f"{printable(path.name)} {printable(stem + suffix)}")
    return Facts()


def _stem(member: str) -> str:
    """WebDataset's key: the path up to the first dot of the file name."""
    folder, name = os.path.split(member)
    return os.path.join(folder, name.split(".", 1)[0])
