"""The bytes of a safetensors file: planned before they are there, written beside their hash, read in ranges.

    8 bytes: length of the header | header, JSON, padded with spaces | tensors, the widest dtype first, without gaps

The library writes from tensors only and whole; here the bytes come from buffers that a later training step cannot change,
the hash is taken in a second thread meanwhile, and the disk is set to work every 64 MiB instead of at the end.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pleinair.records.checkpoint import FileDigest
from pleinair.records.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK_BYTES = 8 << 20
FLUSH_BYTES = 64 << 20
"""Written between two calls that set the disk to work. Beside a hash, 1 GiB took 2.3 s so, 3.0 s with one `fsync` at the end and
3.3 s with an `fdatasync` each time, which waits for what others write (medians of 4 rounds on a busy machine)."""
LARGEST_HEADER = 100 << 20


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where one tensor lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Bytes from the start of the file's body, or of the file where `read_spans` says so."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ShardLayout:
    """A file before it is written: which tensor comes where."""

    spans: Mapping[str, Span]
    """In the order of the file; `begin` counts from the body."""

    @property
    def num_bytes(self) -> int:
        """Size of the body."""
        return sum(span.num_bytes for span in self.spans.values())

    @cached_property
    def header(self) -> bytes:
        """The first bytes of the file, up to the body."""
        entries = {
            name: {
                "dtype": DTYPE_NAMES[span.dtype],
                "shape": list(span.shape),
                "data_offsets": [span.begin, span.begin + span.num_bytes],
            }
            for name, span in self.spans.items()
        }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def plan_shard(tensors: Mapping[str, Tensor]) -> ShardLayout:
    """The layout of a file with these tensors. Raises ValueError for a dtype that safetensors does not know."""
    spans: dict[str, Span] = {}
    begin = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if tensor.dtype not in DTYPE_NAMES:
            raise ValueError(f"'{name}' is {tensor.dtype}, which safetensors cannot hold: convert it before saving")
        spans[name] = Span(dtype=tensor.dtype, shape=tuple(tensor.shape), begin=begin)
        begin += spans[name].num_bytes
    return ShardLayout(spans)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, without a copy."""
    flat: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def write_shard(path: Path, layout: ShardLayout, body: Sequence[memoryview]) -> FileDigest:
    """Write a new file, durable at return, and hash it meanwhile in another thread. Raises OSError."""
    return write_durably(path, [memoryview(layout.header), *body])


def write_durably(path: Path, parts: Sequence[memoryview]) -> FileDigest:
    """A new file of these bytes, fsynced, and its size and SHA-256. Raises OSError, FileExistsError among them."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with ThreadPoolExecutor(1, "hash") as pool:
            digest = pool.submit(_hash, parts)
            written = _write(descriptor, parts)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileDigest(num_bytes=written, sha256=digest.result())


def _hash(parts: Iterable[memoryview]) -> str:
    digest = hashlib.sha256()  # 1.1 GB/s where the processor has SHA instructions; blake2b 0.9 GB/s
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _write(descriptor: int, parts: Iterable[memoryview]) -> int:
    """Bytes written."""
    at = flushed = 0
    for part in parts:
        begin = 0
        while begin < len(part):
            done = os.pwrite(descriptor, part[begin : begin + CHUNK_BYTES], at)
            begin, at = begin + done, at + done
            if at - flushed >= FLUSH_BYTES and sys.platform == "linux":
                # begins writing and waits for nothing
                os.posix_fadvise(descriptor, flushed, at - flushed, os.POSIX_FADV_DONTNEED)
                flushed = at
    return at


def read_spans(path: Path) -> dict[str, Span]:
    """Where each tensor of a file lies, in bytes from the start of the file.

    Raises CheckpointError when the file is missing, too short for what its header says, or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= LARGEST_HEADER:
                raise ValueError(f"its header would be {length} bytes long")
            header = json.loads(file.read(length))
            size = os.fstat(file.fileno()).st_size
        spans = {name: _span(entry, 8 + length) for name, entry in header.items() if name != "__metadata__"}
        if (end := max((span.begin + span.num_bytes for span in spans.values()), default=0)) > size:
            raise ValueError(f"it ends after {size} of {end} bytes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as unreadable:
        raise CheckpointError(
            f"{path} is no safetensors file that can be read ({unreadable}): use the checkpoint before it"
        ) from unreadable
    return spans


def _span(entry: Mapping[str, object], body: int) -> Span:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES or not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"it holds a tensor of dtype {dtype} and shape {shape}")
    span = Span(dtype=DTYPES[str(dtype)], shape=tuple(int(size) for size in shape), begin=body + int(offsets[0]))
    if offsets[1] - offsets[0] != span.num_bytes or offsets[0] < 0 or min(span.shape, default=0) < 0:
        raise ValueError(f"a tensor of shape {shape} lies at {offsets}")
    return span
