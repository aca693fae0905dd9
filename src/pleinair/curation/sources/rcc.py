"""Qt's compiled resources (`.rcc`): a tree of files in one binary, some of them compressed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import pyarrow as pa

_DIRECTORY, _ZLIB, _ZSTD = 2, 1, 4  # flags of a node
_HEADER = struct.Struct(">4sIIII")  # magic, version, offsets of tree, data and names
_NODE = struct.Struct(">IH")  # offset of the name, flags


def rcc_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(path without a leading slash, bytes) of every file. Raises ValueError when it is no rcc of version 1 to 3."""
    try:
        magic, version, tree, payload, names = _HEADER.unpack_from(data)
        if magic != b"qres" or not 1 <= version <= 3:
            raise ValueError(f"no Qt resources: it begins {data[:8]!r}")
        # From version 2 on a node ends with the file's time.
        size = 14 if version == 1 else 22
        waiting = [(0, "")]
        while waiting:
            number, folder = waiting.pop()
            at = tree + number * size
            name_at, flags = _NODE.unpack_from(data, at)
            path = f"{folder}/{_name(data, names + name_at)}".lstrip("/") if number else ""
            if flags & _DIRECTORY:
                count, first = struct.unpack_from(">II", data, at + 6)
                waiting += [(child, path) for child in reversed(range(first, first + count))]
            else:
                (offset,) = struct.unpack_from(">I", data, at + 10)
                yield path, _content(data, payload + offset, flags)
    except (struct.error, zlib.error, pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"damaged Qt resources ({error})") from error


def _name(data: bytes, at: int) -> str:
    (length,) = struct.unpack_from(">H", data, at)
    # A hash of the name stands between its length and its UTF-16.
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")


def _content(data: bytes, at: int, flags: int) -> bytes:
    (length,) = struct.unpack_from(">I", data, at)
    packed = data[at + 4 : at + 4 + length]
    if flags & _ZLIB:
        return zlib.decompress(packed[4:])
    if flags & _ZSTD:
        content: bytes = pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read()
        return content
    return packed
