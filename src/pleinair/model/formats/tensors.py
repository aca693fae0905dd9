"""safetensors files that are larger than memory: looked into without reading, written header first, then data.

    list_tensors(file) -> {name: LazyTensor}          only the header is read
    write_tensors(file, {name: LazyTensor}, ...)      reads, converts and writes one tensor at a time

A file is opened anew for every lazy read, as an open one keeps every page it has touched in memory.
"""

from __future__ import annotations

import contextlib
import functools
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pleinair.records.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when it is needed."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def to(self, dtype: torch.dtype) -> LazyTensor:
        """The same in another dtype, converted when read."""
        return LazyTensor(dtype, self.shape, lambda: self.read().to(dtype))

    def reshape(self, shape: tuple[int, ...]) -> LazyTensor:
        """The same in another shape of as many entries."""
        return LazyTensor(self.dtype, shape, lambda: self.read().reshape(shape))


def in_memory(tensor: Tensor) -> LazyTensor:
    """A tensor that is here already; copied to the CPU when read."""
    return LazyTensor(tensor.dtype, tuple(tensor.shape), lambda: tensor.detach().cpu())


def list_tensors(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Every tensor of a file, unread, and its metadata. Raises CheckpointError for a file that is not safetensors."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        metadata: dict[str, str] = file.metadata() or {}
        return {
            name: LazyTensor(
                _dtype(part.get_dtype(), name, path), tuple(part.get_shape()), functools.partial(_read, path, name)
            )
            for name, part in slices.items()
        }, metadata


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Every tensor of a file; on the CPU its pages stay in the file until they are touched."""
    with _opened(path, device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _opened(path: Path, device: str | torch.device = "cpu") -> Iterator[Any]:
    """`safe_open`, whose refusals then name the file and the remedy."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except (SafetensorError, OSError) as damaged:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({damaged}): it is damaged or of another format, fetch it again"
        ) from damaged


def _read(path: Path, name: str) -> Tensor:
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def _dtype(name: str, tensor: str, path: Path) -> torch.dtype:
    if name not in _DTYPES:
        raise CheckpointError(
            f"{path} stores '{tensor}' as {name}, which is not read here: convert the file to one of {', '.join(_DTYPES)}"
        )
    return _DTYPES[name]


def header(tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> bytes:
    """What stands before the data of a safetensors file: a length, then JSON padded with spaces.

    The data follow in the mapping's order without gaps (https://github.com/huggingface/safetensors, format).
    """
    document: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.num_bytes
        document[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def write_tensors(path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, holding one tensor at a time. Raises OSError where the file system refuses.

    Wide dtypes come first, so that every tensor is aligned to its entries, as the library itself orders them.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    with path.open("wb") as file:
        file.write(header(ordered, metadata))
        for tensor in ordered.values():
            data = tensor.read().to(tensor.dtype).reshape(-1).contiguous()
            file.write(data.view(torch.uint8).numpy().data)
