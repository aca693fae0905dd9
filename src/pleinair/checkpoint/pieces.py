"""Tensors in pieces: which process writes which part, where the parts lie, and reading them under any other sharding.

    DTensor on ranks 0..N-1  --local_piece-->  name.rank-00000.safetensors ...  + `pieces.json`: offset and shape of each
    a tensor or DTensor of any other sharding  <--fill--  the byte ranges of the pieces that meet it

A piece is a box of the whole tensor. Offsets and shapes count elements per dimension.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pleinair.records.errors import CheckpointError
from pleinair.tensor_files import DTYPE_NAMES, DTYPES, Span, read_header, tensor_bytes

INDEX = "pieces.json"
SMALLEST_RUN = 64 << 10
"""Bytes; shorter runs are read with what lies between them: a read from a disk costs about as much as these."""


@dataclass(frozen=True)
class Box:
    """A part of a tensor: where it begins and how large it is, per dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    def meet(self, other: Box) -> Box | None:
        """What both hold, or None."""
        begins = tuple(map(max, self.offset, other.offset))
        ends = tuple(
            min(a + m, b + n) for a, m, b, n in zip(self.offset, self.shape, other.offset, other.shape, strict=True)
        )
        if any(end <= begin for begin, end in zip(begins, ends, strict=True)):
            return None
        return Box(begins, tuple(end - begin for begin, end in zip(begins, ends, strict=True)))

    def within(self, outer: Box) -> tuple[slice, ...]:
        """Slices that take this box out of a tensor that holds `outer`."""
        return tuple(
            slice(begin - base, begin - base + size)
            for begin, base, size in zip(self.offset, outer.offset, self.shape, strict=True)
        )


@dataclass(frozen=True)
class Piece:
    """A box of a tensor and the file that holds it, under the tensor's name."""

    file: str
    box: Box


@dataclass(frozen=True)
class TensorPieces:
    """Where a whole tensor lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


Index = dict[str, dict[str, TensorPieces]]
"""Per file name asked for (`transformer.safetensors`), per tensor."""


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor; torch.distributed is imported only where somebody made one."""
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def local_box(tensor: Tensor) -> Box:
    """The box of the whole tensor that this process holds. Raises ValueError for partial sums, which no box is."""
    if not is_sharded(tensor):
        return Box((0,) * tensor.ndim, tuple(tensor.shape))
    sharded: Any = tensor
    if any(placement.is_partial() for placement in sharded.placements):
        raise ValueError(f"a tensor placed as {sharded.placements} holds a part of a sum: reduce it first")
    (chunk,) = sharded.__create_chunk_list__()  # as torch's own distributed checkpoints ask
    return Box(tuple(chunk.offsets), tuple(chunk.sizes))


def local_tensor(tensor: Tensor) -> Tensor:
    """This process's part, sharing memory."""
    if not is_sharded(tensor):
        return tensor.detach()
    sharded: Any = tensor
    local: Tensor = sharded.to_local()
    return local.detach()


def written_here(tensor: Tensor, rank: int) -> bool:
    """Whether this process writes its part: of equal copies the first, of what is not sharded rank 0."""
    if not is_sharded(tensor):
        return rank == 0
    sharded: Any = tensor
    coordinate = sharded.device_mesh.get_coordinate()
    if coordinate is None:
        return False
    return all(
        place == 0 for place, placement in zip(coordinate, sharded.placements, strict=True) if placement.is_replicate()
    )


def merge_pieces(parts: Iterable[Mapping[str, Mapping[str, TensorPieces]]]) -> Index:
    """One index of what all processes wrote. Raises CheckpointError where the pieces do not make up a tensor.

    A box that several wrote is taken from the first.
    """
    gathered: dict[str, dict[str, dict[Box, str]]] = {}
    kinds: dict[tuple[str, str], tuple[torch.dtype, tuple[int, ...]]] = {}
    for part in parts:
        for name, tensors in part.items():
            for key, tensor in tensors.items():
                boxes = gathered.setdefault(name, {}).setdefault(key, {})
                if kinds.setdefault((name, key), (tensor.dtype, tensor.shape)) != (tensor.dtype, tensor.shape):
                    raise CheckpointError(f"'{key}' of {name} has different shapes or dtypes on different ranks")
                for piece in tensor.pieces:
                    boxes.setdefault(piece.box, piece.file)
    for (name, key), (_, shape) in kinds.items():
        _check_cover(f"'{key}' of {name}", gathered[name][key], shape)
    return {
        name: {
            key: TensorPieces(*kinds[name, key], tuple(Piece(file, box) for box, file in boxes.items()))
            for key, boxes in tensors.items()
        }
        for name, tensors in gathered.items()
    }


def _check_cover(what: str, boxes: Iterable[Box], shape: tuple[int, ...]) -> None:
    """Boxes of one grid that fill the shape: none twice, none missing."""
    held = sum(box.num_elements for box in boxes)
    if held != math.prod(shape):
        raise CheckpointError(
            f"the pieces of {what} hold {held} of {math.prod(shape)} values: all ranks must save the same tensors"
        )


def index_to_document(index: Mapping[str, Mapping[str, TensorPieces]]) -> dict[str, Any]:
    """The index as JSON values."""
    return {
        name: {
            key: {
                "dtype": DTYPE_NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "pieces": [[piece.file, list(piece.box.offset), list(piece.box.shape)] for piece in tensor.pieces],
            }
            for key, tensor in tensors.items()
        }
        for name, tensors in index.items()
    }


def index_from_document(document: Mapping[str, Any]) -> Index:
    """The index again. Raises KeyError, TypeError or ValueError for another document."""
    return {
        name: {
            key: TensorPieces(
                DTYPES[entry["dtype"]],
                tuple(entry["shape"]),
                tuple(Piece(_plain(file), Box(tuple(offset), tuple(shape))) for file, offset, shape in entry["pieces"]),
            )
            for key, entry in tensors.items()
        }
        for name, tensors in document.items()
    }


def _plain(name: str) -> str:
    if os.path.basename(name) != name:
        raise ValueError(f"'{name}' lies outside of the checkpoint")
    return name


def read_index(directory: Path, name: str) -> dict[str, TensorPieces]:
    """Where the tensors of one file name lie, whether it is one file or several. Raises CheckpointError."""
    if (directory / INDEX).exists():
        try:
            index = index_from_document(json.loads((directory / INDEX).read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as unreadable:
            raise CheckpointError(f"checkpoint {directory} has no readable {INDEX} ({unreadable})") from unreadable
        if name in index:
            return index[name]
    if not (directory / name).exists():
        raise CheckpointError(f"checkpoint {directory} has no {name}: it belongs to another kind of training")
    return {
        key: TensorPieces(span.dtype, span.shape, (Piece(name, Box((0,) * len(span.shape), span.shape)),))
        for key, span in read_header(directory / name)[0].items()
    }


def tensor_files(directory: Path, files: Iterable[str]) -> list[str]:
    """The names that tensors were saved under, of a checkpoint's files: those of pieces are not among them."""
    stored = {name for name in files if name.endswith(".safetensors")}
    if not (directory / INDEX).exists():
        return sorted(stored)
    index = index_from_document(json.loads((directory / INDEX).read_text()))
    pieces = {piece.file for state in index.values() for tensor in state.values() for piece in tensor.pieces}
    return sorted(stored - pieces | set(index))


def fill(directory: Path, index: Mapping[str, TensorPieces], state: Mapping[str, Tensor]) -> int:
    """Copy into every tensor of `state` what its process holds of it; returns the bytes read.

    Only the byte ranges that are needed are read, file by file. Raises CheckpointError; tensors may then be half filled.
    """
    parts: dict[str, list[tuple[str, Box, Box, Tensor]]] = {}
    for key, target in state.items():
        wanted, local = local_box(target), local_tensor(target)
        for piece in index[key].pieces:
            if (common := wanted.meet(piece.box)) is not None:
                place = local[common.within(wanted)]
                parts.setdefault(piece.file, []).append((key, piece.box, common, place))
    num_read = 0
    for file, of_file in parts.items():
        path = directory / file
        spans, _ = read_header(path)
        with path.open("rb") as opened:
            for key, box, common, place in of_file:
                if key not in spans or (spans[key].dtype, spans[key].shape) != (index[key].dtype, box.shape):
                    raise CheckpointError(
                        f"{path} does not hold the piece of '{key}' it should: use the checkpoint before it"
                    )
                num_read += _copy(opened.fileno(), spans[key], box, common, place)
    return num_read


def _copy(descriptor: int, span: Span, box: Box, common: Box, target: Tensor) -> int:
    """Read the part `common` of a piece into `target`, a view of its shape; returns the bytes read."""
    direct = target.is_contiguous() and target.device.type == "cpu"
    part = target if direct else torch.empty(common.shape, dtype=span.dtype)
    inside = common.within(box)
    whole = len(inside)  # dimensions from here on are taken whole: they and the one before are one run of bytes
    while whole and common.shape[whole - 1] == box.shape[whole - 1]:
        whole -= 1
    run_bytes = math.prod(common.shape[max(whole - 1, 0) :]) * span.dtype.itemsize
    strides = [math.prod(box.shape[dim + 1 :]) * span.dtype.itemsize for dim in range(len(box.shape))]
    if run_bytes >= SMALLEST_RUN or run_bytes == part.nbytes:
        _read_runs(descriptor, _starts(span.begin, inside, strides, whole), run_bytes, tensor_bytes(part))
        num_read = part.nbytes
    else:
        rows = torch.empty((common.shape[0], *box.shape[1:]), dtype=span.dtype)
        begin = span.begin + inside[0].start * strides[0]
        _read_runs(descriptor, [begin], rows.nbytes, tensor_bytes(rows))
        part.copy_(rows[(slice(None), *inside[1:])])
        num_read = rows.nbytes
    if not direct:
        target.copy_(part)
    return num_read


def _starts(begin: int, inside: Sequence[slice], strides: Sequence[int], whole: int) -> Iterator[int]:
    """Where each run of bytes begins, in the order of the part's own memory."""
    first = begin + sum(part.start * stride for part, stride in zip(inside, strides, strict=True))
    outer = inside[: max(whole - 1, 0)]
    for steps in product(*(range(part.stop - part.start) for part in outer)):
        yield first + sum(step * stride for step, stride in zip(steps, strides, strict=False))


def _read_runs(descriptor: int, starts: Iterable[int], run_bytes: int, into: memoryview) -> None:
    at = 0
    for start in starts:
        end = at + run_bytes
        while at < end:
            done = os.preadv(descriptor, [into[at:end]], start + run_bytes - (end - at))
            if done == 0:
                raise CheckpointError(f"a file of the checkpoint ends at byte {start}: use the checkpoint before it")
            at += done
