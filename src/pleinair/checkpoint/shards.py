"""The bytes of a safetensors file: planned before they are there, written beside their hash.

The library writes from tensors only and whole; here the bytes come from buffers that a later training step cannot change,
the hash is taken in a second thread meanwhile, and the disk is set to work every 64 MiB instead of at the end.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from pleinair.records.checkpoint import FileDigest
from pleinair.tensor_files import Span, header, lay_out

CHUNK_BYTES = 8 << 20
FLUSH_BYTES = 64 << 20
"""Written between two calls that set the disk to work. Beside a hash, 1 GiB took 2.3 s so, 3.0 s with one `fsync` at the end and
3.3 s with an `fdatasync` each time, which waits for what others write (medians of 4 rounds on a busy machine)."""


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
        return header(self.spans)


def plan_shard(tensors: Mapping[str, Tensor]) -> ShardLayout:
    """The layout of a file with these tensors. Raises ValueError for a dtype that safetensors does not know."""
    return ShardLayout(lay_out(tensors))


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
