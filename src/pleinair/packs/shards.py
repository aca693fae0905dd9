"""One shard, memory-mapped: rows by number without reading the others.

A shard is plain Parquet that any tool reads, written so that each column of a row group is one uncompressed page of
plain values. Such a page is the values themselves behind a short header, so a row is an address: rows are read in any
order, nothing is decoded, and what is not asked for is not read.

    row group: | header key key .. | header width .. | ... | header latents latents .. | header levels token token .. |
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pleinair.records.errors import PackError
from pleinair.records.packs import PackManifest, ShardEntry, shard_schema

Bytes: TypeAlias = npt.NDArray[np.uint8]
Ints: TypeAlias = npt.NDArray[np.int64]
MAX_HEADER_BYTES = 128


class Group:
    """The columns of one row group, as views of the file."""

    def __init__(self, num_rows: int, page_of: Callable[[str], Bytes]) -> None:
        self.num_rows, self._page_of = num_rows, page_of
        self._pages: dict[str, Bytes] = {}
        self._tokens: tuple[Bytes, Ints] | None = None
        self._found_starts: dict[str, list[int]] = {}

    def fixed(self, name: str, dtype: npt.DTypeLike, per_row: int = 1) -> npt.NDArray[Any]:
        """A column with `per_row` numbers in each row, as (rows, per_row)."""
        kind = np.dtype(dtype)
        return self._last(name, self.num_rows * per_row * kind.itemsize).view(kind).reshape(self.num_rows, per_row)

    def values(self, name: str, width: int) -> Bytes:
        """A column of binaries of one width, as (rows, width)."""
        return self._last(name, self.num_rows * width).reshape(self.num_rows, width)

    def variable(self, name: str, places: Ints) -> list[bytes]:
        """Binaries of any length, those of some rows."""
        page, starts = self._page(name), self._starts(name)
        return [page[starts[place] + 4 : starts[place + 1]].tobytes() for place in places.tolist()]

    def tokens(self, width: int, num_captions: int) -> tuple[Bytes, Ints]:
        """All tokens of `width` bytes, and where those of each caption start, (rows, num_captions)."""
        if self._tokens is None:
            counts = self.fixed("num_tokens", np.int32, num_captions).ravel()
            starts = np.cumsum(counts, dtype=np.int64) - counts
            values = self._last("text_features", int(counts.sum(dtype=np.int64)) * width).reshape(-1, width)
            self._tokens = values, starts.reshape(self.num_rows, num_captions)
        return self._tokens

    def _page(self, name: str) -> Bytes:
        if name not in self._pages:
            self._pages[name] = self._page_of(name)
        return self._pages[name]

    def _last(self, name: str, size: int) -> Bytes:
        """The last bytes of a page: its values, behind the levels of a list."""
        page = self._page(name)
        if size > len(page):
            raise PackError(f"column {name} has {len(page)} bytes where {size} are needed")
        return page[len(page) - size :]

    def _starts(self, name: str) -> list[int]:
        """Where each value begins in its page; a value follows its length, four bytes."""
        if name not in self._found_starts:
            page, starts = self._page(name).data, [0]
            for _ in range(self.num_rows):
                last = starts[-1]
                starts.append(last + 4 + int.from_bytes(page[last : last + 4], "little"))
            self._found_starts[name] = starts
        return self._found_starts[name]


class Shard:
    """An open shard. Raises PackError naming the file when it is missing, cut, of another pack or of another layout."""

    def __init__(self, directory: Path, manifest: PackManifest, entry: ShardEntry) -> None:
        self.path = directory / entry.name
        self.entry = entry
        try:
            check_size(self.path, entry.num_bytes)
            with self.path.open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._bytes: Bytes = np.frombuffer(self._mapped, np.uint8)
            self._metadata = pq.read_metadata(self.path)
            self._check(shard_schema(manifest, entry.shape, entry.name))
        except (OSError, ValueError, pa.ArrowException) as damaged:
            raise self._refusal(str(damaged)) from damaged
        self._places = {name: place for place, name in enumerate(self._metadata.schema.to_arrow_schema().names)}

    def _check(self, expected: pa.Schema) -> None:
        found = self._metadata.schema.to_arrow_schema()
        if not found.equals(expected):
            raise ValueError(f"its columns are {', '.join(found.names)}, not {', '.join(expected.names)} as packed")
        if {**(self._metadata.metadata or {}), **(expected.metadata or {})} != (self._metadata.metadata or {}):
            raise ValueError("it belongs to another pack or another place in this one")
        if self._metadata.num_rows != self.entry.num_rows:
            raise ValueError(f"it has {self._metadata.num_rows} rows, not {self.entry.num_rows}")

    def _refusal(self, why: str) -> PackError:
        return PackError(f"pack {self.path.parent} is damaged: {self.path.name}: {why}; pack again")

    def group(self, number: int) -> Group:
        """A row group, by its number in the shard."""
        group = self._metadata.row_group(number)
        return Group(group.num_rows, lambda name: self._page(group.column(self._places[name])))

    def _page(self, column: pq.ColumnChunkMetaData) -> Bytes:
        """The only page of a column of a row group, without its header."""
        start, whole = column.data_page_offset, column.total_compressed_size
        try:
            size = page_size(self._mapped[start : start + MAX_HEADER_BYTES])
        except ValueError as damaged:
            raise self._refusal(f"column {column.path_in_schema}: {damaged}") from damaged
        if column.has_dictionary_page or not 0 < whole - size <= MAX_HEADER_BYTES:
            raise self._refusal(f"column {column.path_in_schema} is not one page of plain values")
        return self._bytes[start + whole - size : start + whole]

    def will_need(self, number: int) -> None:
        """Tell the system that a row group is read next, so that it comes in one piece."""
        group = self._metadata.row_group(number)
        columns = [group.column(place) for place in range(group.num_columns)]
        start = columns[0].data_page_offset // mmap.PAGESIZE * mmap.PAGESIZE
        end = columns[-1].data_page_offset + columns[-1].total_compressed_size
        self._mapped.madvise(mmap.MADV_WILLNEED, start, end - start)


def check_size(path: Path, expected: int) -> None:
    """Raises ValueError when a file is missing or of another size: mapped, a cut file would end the process."""
    found = path.stat().st_size if path.exists() else None
    if found != expected:
        raise ValueError("it is missing" if found is None else f"it has {found} bytes, not {expected}")


def digest_of(path: Path) -> str:
    """SHA-256 of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def page_size(header: bytes) -> int:
    """Size of a data page from its header (Thrift's compact protocol: type, size, compressed size, ...).

    Raises ValueError for anything but an uncompressed data page of version 1.
    """
    numbers, place = [], 0
    for _ in range(3):
        if header[place] != 0x15:
            raise ValueError("a column does not begin with a page")
        number, place = _varint(header, place + 1)
        numbers.append(number)
    kind, size, compressed = numbers
    if kind != 0 or size != compressed:
        raise ValueError("a column does not begin with an uncompressed page")
    return size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while data[place] & 0x80:
        value, shift, place = value | (data[place] & 0x7F) << shift, shift + 7, place + 1
    value |= data[place] << shift
    return value >> 1 ^ -(value & 1), place + 1
