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
from pleinair.curation.sources.rows import PictureRow, short_hash
from pleinair.curation.sources.sidecars import MAX_SIDECAR_BYTES, Facts, json_facts, mapping_facts, text_facts
from pleinair.records.errors import ImageError, SourceError
from pleinair.records.names import slug

PICTURE_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "png", "webp", "path", "image_path", "file_name")
FACT_COLUMNS = (
    *("caption", "text", "prompt", "description", "label", "tags", "style", "concept", "group", "group_name"),
    *("licence", "license", "author"),
)
_MAX_MEMBER_BYTES = 256 * 2**20
# Pictures are compressed already: a row group that unpacks to many times its size is a bomb.
_MAX_RATIO, _SMALL_GROUP_BYTES = 16, 64 * 2**20
_BLOCK_BYTES = 512  # of a tar


def shard_source_name(path: Path) -> str:
    """Source name of a shard or a folder of shards."""
    return f"{slug(path.stem) or 'shards'}-{short_hash(str(path))}"


class ShardSource:
    """Rows of one or more Parquet files or WebDataset tars, told apart from other sources by `name`."""

    def __init__(self, files: Sequence[Path], name: str, style: str | None = None) -> None:
        self._files = [path.resolve() for path in files]
        self._style = style
        self.name = name
        self.notes: list[str] = []

    def list(self) -> Iterator[PictureRow]:
        """Rows in the order of the files. Raises SourceError naming the file and what is wrong with it."""
        self.notes = []
        for path in self._files:
            if path.suffix == ".tar":
                self.notes += orphans(path)
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
    with opened_parquet(path) as file:
        column = _picture_column(file.schema_arrow, path)
        facts = [name for name in file.schema_arrow.names if name in FACT_COLUMNS]
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


def opened_parquet(path: Path) -> pq.ParquetFile:
    """The file, its footer read. Raises SourceError when it is no complete Parquet."""
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path} is not readable as Parquet ({error}): give a complete .parquet file") from error


def _picture_column(schema: pa.Schema, path: Path) -> str:
    for name in PICTURE_COLUMNS:
        if name in schema.names:
            _check_picture_type(schema.field(name).type, name, path)
            return name
    raise SourceError(
        f"{path} has no column of pictures among {', '.join(schema.names)}: "
        f"name one of {', '.join(PICTURE_COLUMNS)}, with bytes or a path"
    )


def _check_picture_type(kind: pa.DataType, name: str, path: Path) -> None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    fits = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    is_struct = pa.types.is_struct(kind) and any(kind.get_field_index(part) >= 0 for part in ("bytes", "path"))
    if not is_struct and not any(fit(kind) for fit in fits):
        raise SourceError(f"{path} has {kind} in column {name}: store bytes, a path, or a struct of bytes and path")


def read_parquet_picture(path: Path, column: str, number: int) -> bytes:
    """Bytes of the picture in row `number`. Raises SourceError or ImageError."""
    group, offset = _place(str(path), path.stat().st_mtime_ns, number)
    value = _row_group(str(path), path.stat().st_mtime_ns, column, group)[offset].as_py()
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value:
        raise ImageError(f"broken: no picture in column {column} of row {number}; remove the row")
    return _inside(path.parent, value).read_bytes() if isinstance(value, str) else bytes(value)


def _inside(folder: Path, relative: str) -> Path:
    """A path below `folder`, or ImageError: a table from elsewhere must not read this machine's other files."""
    place = (folder / relative).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise ImageError(f"outside: {relative!r} leads out of the folder of its table; put the picture below it")
    return place


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
    with opened_parquet(Path(path)) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


# Workers take rows roughly in file order, so the last groups read serve most of the next rows.
@lru_cache(maxsize=2)
def _row_group(path: str, modified_ns: int, column: str, group: int) -> pa.ChunkedArray:
    with opened_parquet(Path(path)) as file:
        described = file.metadata.row_group(group)
        for number in range(described.num_columns):
            part = described.column(number)
            if part.path_in_schema.partition(".")[0] == column:
                _check_ratio(part.total_uncompressed_size, part.total_compressed_size, f"{path} row group {group}")
        try:
            return file.read_row_group(group, columns=[column]).column(0)
        except (OSError, pa.ArrowInvalid) as error:
            raise SourceError(f"{path} row group {group} is damaged ({error}): copy the file again") from error


def _check_ratio(unpacked: int, packed: int, where: str) -> None:
    if unpacked > _SMALL_GROUP_BYTES and unpacked > _MAX_RATIO * packed:
        raise ImageError(f"bomb: {where} unpacks {packed} bytes to {unpacked}; no pictures compress so well")


@lru_cache(maxsize=256)
def tar_members(path: str, modified_ns: int) -> dict[str, tuple[int, int]]:
    """Member -> (offset, size) of the data, in archive order.

    Raises SourceError for a tar that is cut, compressed, or holds anything but files and folders with plain names.
    """
    members: dict[str, tuple[int, int]] = {}
    try:
        # "r:" alone takes no compression: in a compressed tar a member cannot be reached without reading all before it.
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.name in members and not member.isdir():
                    raise SourceError(f"{path} holds {printable(member.name)} twice: remove one")
                _check_member(member, path)
                if member.isreg():
                    members[member.name] = (member.offset_data, member.size)
            _check_end(path, archive.offset)
    except (tarfile.TarError, OSError, EOFError, UnicodeError) as error:
        raise SourceError(f"{path} is not a complete uncompressed tar ({error}): unpack or copy it again") from error
    return members


def _check_member(member: tarfile.TarInfo, path: str) -> None:
    """Nothing is ever unpacked, but a name is a key, and who writes such members has other plans than pictures."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise SourceError(
            f"{path} holds {printable(member.name)}, which leads out of it: pack it anew with plain names"
        )
    if not (member.isreg() or member.isdir()):
        kind = "link" if member.issym() or member.islnk() else "device or pipe"
        raise SourceError(f"{path} holds {printable(member.name)}, a {kind}: pack it anew with plain files only")


def _check_end(path: str, offset: int) -> None:
    """`tarfile` takes a damaged header for the end; the end is a block of zeros. Raises ReadError."""
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
            raise tarfile.ReadError(f"no end mark at byte {offset}")


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
            where = f"{printable(path.name)} {printable(stem + suffix)}"
            offset, size = members[stem + suffix]
            if size > MAX_SIDECAR_BYTES:
                return Facts(
                    caption_error=f"caption file {where} has {size} bytes, over {MAX_SIDECAR_BYTES}: shorten it"
                )
            return read(_read_at(file, offset, size), where, os.path.basename(member))
    return Facts()


def orphans(path: Path) -> Iterator[str]:
    """Sentences on captions of a tar that no picture shares a stem with."""
    members = tar_members(str(path), path.stat().st_mtime_ns)
    stems = {_stem(member) for member in members if is_picture(os.path.basename(member))}
    for member in members:
        if member.endswith((".json", ".txt")) and _stem(member) not in stems:
            yield f"{printable(path.name)} {printable(member)} belongs to no picture"


def _stem(member: str) -> str:
    """WebDataset's key: the path up to the first dot of the file name."""
    folder, name = os.path.split(member)
    return os.path.join(folder, name.split(".", 1)[0])
