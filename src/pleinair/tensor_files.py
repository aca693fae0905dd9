"""safetensors files that are larger than memory: looked into without reading, read and written a tensor at a time.

    8 bytes: length of the header | header, JSON, padded with spaces | tensors, the widest dtype first, without gaps

    list_tensors(file)  -> {name: LazyTensor}, metadata     only the header is read
    write_tensors(file, {name: LazyTensor}, metadata)       reads, converts and writes one tensor at a time

The library holds a whole file, and maps what it reads: pages once touched stay in memory. It is still used to read a file
as a whole, which for a model that is loaded is right.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

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
METADATA = "__metadata__"
HEADER_ALIGNMENT = 8
LARGEST_HEADER = 100 << 20


@dataclass(frozen=True, kw_only=True)
class Span:
    """Where one tensor lies in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Bytes from the start of the file's body, or of the file where a reader says so."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when it is needed."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * self.dtype.itemsize

    def to(self, dtype: torch.dtype) -> LazyTensor:
        """The same in another dtype, converted when read."""
        return LazyTensor(dtype, self.shape, lambda: self.read().to(dtype))

    def reshape(self, shape: tuple[int, ...]) -> LazyTensor:
        """The same in another shape of as many entries."""
        return LazyTensor(self.dtype, shape, lambda: self.read().reshape(shape))


def in_memory(tensor: Tensor) -> LazyTensor:
    """A tensor that is here already; copied to the CPU when read."""
    return LazyTensor(tensor.dtype, tuple(tensor.shape), lambda: tensor.detach().cpu())


def lay_out(tensors: Mapping[str, Tensor | LazyTensor]) -> dict[str, Span]:
    """Where each tensor will lie, in the order of the file; `begin` counts from the body.

    Wide dtypes come first, so that every tensor is aligned to its entries, as the library itself orders them. Raises
    ValueError for a dtype that safetensors does not know.
    """
    spans: dict[str, Span] = {}
    begin = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        if tensor.dtype not in DTYPE_NAMES:
            raise ValueError(f"'{name}' is {tensor.dtype}, which safetensors cannot hold: convert it before saving")
        spans[name] = Span(dtype=tensor.dtype, shape=tuple(tensor.shape), begin=begin)
        begin += spans[name].num_bytes
    return spans


def header(spans: Mapping[str, Span], metadata: Mapping[str, str] | None = None) -> bytes:
    """What stands before the body of a file (https://github.com/huggingface/safetensors, format)."""
    document: dict[str, Any] = {} if metadata is None else {METADATA: dict(metadata)}
    for name, span in spans.items():
        document[name] = {
            "dtype": DTYPE_NAMES[span.dtype],
            "shape": list(span.shape),
            "data_offsets": [span.begin, span.begin + span.num_bytes],
        }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, without a copy."""
    flat: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)


def write_tensors(path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file, durable at return, holding one tensor at a time. Raises OSError where the file system refuses."""
    spans = lay_out(tensors)
    with path.open("wb") as file:
        file.write(header(spans, metadata))
        for name, span in spans.items():
            file.write(tensor_bytes(tensors[name].read().to(span.dtype).contiguous()))
        file.flush()
        os.fsync(file.fileno())


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """The same of tensors that are here."""
    write_tensors(path, {name: in_memory(tensor) for name, tensor in tensors.items()}, metadata)


def read_header(path: Path) -> tuple[dict[str, Span], dict[str, str]]:
    """Where each tensor of a file lies, in bytes from the start of the file, and the metadata.

    Raises CheckpointError when the file is missing, too short for what its header says, or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= LARGEST_HEADER:
                raise ValueError(f"its header would be {length} bytes long")
            document = json.loads(file.read(length))
            size = os.fstat(file.fileno()).st_size
        metadata: dict[str, str] = document.pop(METADATA, {})
        spans = {name: _span(name, entry, 8 + length) for name, entry in document.items()}
        if (end := max((span.begin + span.num_bytes for span in spans.values()), default=0)) > size:
            raise ValueError(f"it ends after {size} of {end} bytes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as unreadable:
        raise _unreadable(path, unreadable) from unreadable
    return spans, metadata


def _span(name: str, entry: Mapping[str, object], body: int) -> Span:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPES or not isinstance(shape, list) or not isinstance(offsets, list):
        raise ValueError(f"it holds '{name}' of dtype {dtype} and shape {shape}")
    span = Span(dtype=DTYPES[str(dtype)], shape=tuple(int(size) for size in shape), begin=body + int(offsets[0]))
    if offsets[1] - offsets[0] != span.num_bytes or offsets[0] < 0 or min(span.shape, default=0) < 0:
        raise ValueError(f"'{name}' of shape {shape} lies at {offsets}")
    return span


def list_tensors(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Every tensor of a file, unread, and its metadata. Raises CheckpointError for a file that is not safetensors."""
    spans, metadata = read_header(path)
    return {
        name: LazyTensor(span.dtype, span.shape, functools.partial(_read, path, span)) for name, span in spans.items()
    }, metadata


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Every tensor of a file; on the CPU its pages stay in the file until they are touched."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as unreadable:
        raise _unreadable(path, unreadable) from unreadable


def _read(path: Path, span: Span) -> Tensor:
    tensor = torch.empty(span.shape, dtype=span.dtype)
    try:
        with path.open("rb") as file:
            file.seek(span.begin)
            if file.readinto(tensor_bytes(tensor)) != span.num_bytes:
                raise OSError(f"it ends before byte {span.begin + span.num_bytes}")
    except OSError as unreadable:
        raise _unreadable(path, unreadable) from unreadable
    return tensor


def _unreadable(path: Path, why: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is no safetensors file that can be read ({why}): fetch it again, or use the checkpoint before it"
    )
