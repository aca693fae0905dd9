"""Rows in Postgres' binary COPY format into Arrow arrays, a column at a time.

    row:   number of columns (2 bytes)  { length (4 bytes, -1 = NULL)  value } per column
    array: dimensions, has-NULLs, element type, size, lower bound (4 bytes each)  { length  value } per element

A row has no fixed width, so its columns cannot be sliced. But the place of column k+1 in *every* row follows from the
place and the length of column k, so one pass of numpy per column reads all rows at once. Measured on 150k rows of five
columns in one run: 0.09 s of processor time, as ADBC's Postgres driver (0.10), against 0.22 through Python objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pleinair.krablet.reading.requests import ReadError

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

_EPOCH_DAYS = 10_957  # Postgres counts from 2000-01-01, Arrow from 1970-01-01
_EPOCH_MICROSECONDS = _EPOCH_DAYS * 86_400_000_000
_LONG_TEXT_BYTES = 64  # above it, joining slices beats gathering single bytes


@dataclass(frozen=True)
class Field:
    """A column of a result: its name and the object id of its Postgres type."""

    name: str
    oid: int


@dataclass(frozen=True)
class Cells:
    """One column of a batch: where each value lies in `data`, how long it is, and which are there (None: all)."""

    name: str
    data: Bytes
    at: Places
    lengths: Places
    present: npt.NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.at)

    @property
    def validity(self) -> pa.Buffer | None:
        return None if self.present is None else pa.py_buffer(np.packbits(self.present, bitorder="little"))


Decoder = Callable[[Cells], pa.Array]


@dataclass(frozen=True)
class Kind:
    """How one Postgres type is decoded; `width` is None where values differ in length."""

    arrow: pa.DataType
    decode: Decoder
    width: int | None = None


def arrow_schema(fields: Sequence[Field]) -> pa.Schema:
    return pa.schema([pa.field(field.name, KINDS[field.oid].arrow) for field in fields])


def decode_rows(rows: Sequence[bytes], fields: Sequence[Field], schema: pa.Schema) -> pa.RecordBatch:
    """A batch from whole rows of COPY data, without header and trailer. Raises ReadError for what Arrow cannot hold."""
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    # Behind the last row a NULL is still "read", so that no branch is needed.
    data = np.frombuffer(b"".join([*rows, bytes(16)]), np.uint8)
    ends = np.cumsum(sizes)
    at = ends - sizes
    assert (_integers(data, at, ">i2") == len(fields)).all(), "every row has all columns"
    at = at + 2
    arrays = []
    for field in fields:
        cells = _cells(field.name, data, at)
        arrays.append(KINDS[field.oid].decode(cells))
        at = cells.at + cells.lengths
    assert (at == ends).all(), "every row ends behind its last column"
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _cells(name: str, data: Bytes, at: Places) -> Cells:
    lengths = _integers(data, at, ">i4").astype(np.int64)
    absent = lengths < 0
    if not absent.any():
        return Cells(name, data, at + 4, lengths, None)
    return Cells(name, data, at + 4, np.where(absent, 0, lengths), ~absent)


def _integers(data: Bytes, at: Places, type_: str) -> npt.NDArray[np.int64]:
    """The big-endian numbers of one width that start at `at`."""
    width = np.dtype(type_).itemsize
    gathered: npt.NDArray[np.int64] = data[at[:, None] + np.arange(width)].view(type_).ravel()
    return gathered


def _fixed(arrow: pa.DataType, wire: str) -> Kind:
    native = wire.replace(">", "<")

    def decode(cells: Cells) -> pa.Array:
        return _from_values(arrow, cells, _integers(cells.data, cells.at, wire).astype(native))

    return Kind(arrow, decode, np.dtype(wire).itemsize)


def _from_values(arrow: pa.DataType, cells: Cells, values: npt.NDArray[np.generic]) -> pa.Array:
    return pa.Array.from_buffers(arrow, len(cells), [cells.validity, pa.py_buffer(values)])


def _since_epoch(arrow: pa.DataType, wire: str, epoch: int) -> Kind:
    """Dates and times, moved from Postgres' epoch to Arrow's; infinity has no place in Arrow."""
    native = np.dtype(wire.replace(">", "<"))
    least, most = np.iinfo(native).min, np.iinfo(native).max - epoch

    def decode(cells: Cells) -> pa.Array:
        values = _integers(cells.data, cells.at, wire).astype(native)
        values[cells.lengths == 0] = 0
        if ((values == least) | (values > most)).any():
            raise ReadError(
                f"column {cells.name} holds a time that Arrow cannot (infinity, or after year 294246): "
                "leave it out with isfinite(...), or cast the column to text"
            )
        return _from_values(arrow, cells, values + native.type(epoch))

    return Kind(arrow, decode, native.itemsize)


def _boolean(cells: Cells) -> pa.Array:
    bits = np.packbits(cells.data[cells.at], bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(cells), [cells.validity, pa.py_buffer(bits)])


def _variable(arrow: pa.DataType) -> Kind:
    def decode(cells: Cells) -> pa.Array:
        offsets = _offsets(cells.lengths)
        buffers = [cells.validity, pa.py_buffer(offsets), pa.py_buffer(_joined(cells, offsets))]
        return pa.Array.from_buffers(arrow, len(cells), buffers)

    return Kind(arrow, decode)


def _offsets(lengths: Places) -> npt.NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _joined(cells: Cells, offsets: npt.NDArray[np.int32]) -> bytes | Bytes:
    """The values of a column one after the other."""
    if offsets[-1] > _LONG_TEXT_BYTES * len(cells):
        whole, ends = cells.data.data, cells.at + cells.lengths
        return b"".join([whole[start:end] for start, end in zip(cells.at.tolist(), ends.tolist(), strict=True)])
    gathered: Bytes = cells.data[np.repeat(cells.at - offsets[:-1], cells.lengths) + np.arange(offsets[-1])]
    return gathered


def _list_of(element: Kind) -> Kind:
    arrow = pa.list_(element.arrow)

    def decode(cells: Cells) -> pa.Array:
        there = cells.lengths >= 12
        dimensions, nulls = (np.where(there, _integers(cells.data, cells.at + skip, ">i4"), 0) for skip in (0, 4))
        if (dimensions > 1).any():
            raise ReadError(
                f"column {cells.name} holds an array of {dimensions.max()} dimensions and Arrow lists have one: "
                "cast the column to text"
            )
        # An empty array has no size; what would be read there is another value, or the padding.
        sized = np.minimum(cells.at + 12, len(cells.data) - 4)
        counts = np.where(dimensions == 1, _integers(cells.data, sized, ">i4"), 0).astype(np.int64)
        items = _items(replace(cells, at=cells.at + 20), counts, None if nulls.any() else element.width)
        buffers = [cells.validity, pa.py_buffer(_offsets(counts))]
        return pa.Array.from_buffers(arrow, len(cells), buffers, children=[element.decode(items)])

    return Kind(arrow, decode)


def _items(lists: Cells, counts: Places, width: int | None) -> Cells:
    """The elements of all lists of a column; at once if all have one width and none is NULL, else one by one."""
    if width is None:
        return _items_in_turn(lists, counts)
    offsets = np.cumsum(counts) - counts
    rank = np.arange(counts.sum()) - np.repeat(offsets, counts)
    at = np.repeat(lists.at, counts) + rank * (4 + width) + 4
    return Cells(lists.name, lists.data, at, np.full(len(at), width, np.int64), None)


def _items_in_turn(lists: Cells, counts: Places) -> Cells:
    whole, at, lengths = lists.data.data, [], []
    for start, count in zip(lists.at.tolist(), counts.tolist(), strict=True):
        for _ in range(count):
            length = int.from_bytes(whole[start : start + 4], "big", signed=True)
            at.append(start + 4)
            lengths.append(length)
            start += 4 + max(length, 0)
    known = np.array(lengths, np.int64)
    return Cells(lists.name, lists.data, np.array(at, np.int64), np.maximum(known, 0), known >= 0)


_TEXT = _variable(pa.string())
_SCALARS = {
    16: Kind(pa.bool_(), _boolean, 1),
    17: _variable(pa.binary()),
    20: _fixed(pa.int64(), ">i8"),
    21: _fixed(pa.int16(), ">i2"),
    23: _fixed(pa.int32(), ">i4"),
    25: _TEXT,
    1043: _TEXT,
    700: _fixed(pa.float32(), ">f4"),
    701: _fixed(pa.float64(), ">f8"),
    1082: _since_epoch(pa.date32(), ">i4", _EPOCH_DAYS),
    1114: _since_epoch(pa.timestamp("us"), ">i8", _EPOCH_MICROSECONDS),
    1184: _since_epoch(pa.timestamp("us", tz="UTC"), ">i8", _EPOCH_MICROSECONDS),
}
_ARRAYS = {16: 1000, 17: 1001, 20: 1016, 21: 1005, 23: 1007, 25: 1009, 1043: 1015, 700: 1021, 701: 1022}
_ARRAYS |= {1082: 1182, 1114: 1115, 1184: 1185}
KINDS = _SCALARS | {array: _list_of(_SCALARS[oid]) for oid, array in _ARRAYS.items()}
"""Postgres types that are read as they are, by object id; all others are cast to text in SQL."""
