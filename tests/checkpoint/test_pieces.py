"""Reading the parts of a tensor: the right bits, and no more bytes than needed, for any shape and any place in a mesh."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.testing._internal.distributed.fake_pg import FakeStore

from pleinair.checkpoint import store
from pleinair.checkpoint.pieces import (
    Box,
    Piece,
    TensorPieces,
    fill,
    index_from_document,
    index_to_document,
    local_box,
    merge_pieces,
)
from pleinair.checkpoint.shards import plan_shard, write_shard
from pleinair.records.errors import CheckpointError
from pleinair.tensor_files import tensor_bytes

NAME = "model.safetensors"
SHAPES = [(6, 5, 4), (7, 3, 5), (1, 9, 2), (2, 1, 1), (12, 40, 600)]
PLACEMENTS: list[tuple[Placement, ...]] = [
    (Shard(0), Shard(0)),
    (Shard(0), Shard(1)),
    (Shard(2), Replicate()),
    (Replicate(), Shard(1)),
    (Shard(1), Shard(0)),
]


@contextmanager
def as_rank(rank: int, world_size: int) -> Iterator[None]:
    """This process as one of several, without the others."""
    torch.distributed.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def empty_part(shape: tuple[int, ...], mesh: DeviceMesh, placements: tuple[Placement, ...]) -> DTensor:
    """This rank's part of a tensor, zeros."""
    local_shape, _ = compute_local_shape_and_global_offset(shape, mesh, placements)
    whole = torch.empty(shape, device="meta")
    return DTensor.from_local(
        torch.zeros(local_shape), mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def values(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(1.0, math.prod(shape) + 1).view(shape)


def cut(directory: Path, whole: Tensor, parts: int) -> TensorPieces:
    """Write a tensor as `parts` pieces per dimension, each in a file of its own, in no order."""
    ranges = [torch.tensor_split(torch.arange(size), parts) for size in whole.shape]
    pieces = []
    for number, chosen in enumerate(itertools.product(*ranges)):
        box = Box(tuple(int(part[0]) if len(part) else 0 for part in chosen), tuple(len(part) for part in chosen))
        if box.num_elements:
            piece = {
                "w": whole[tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))].contiguous()
            }
            write_shard(directory / f"{number}.safetensors", plan_shard(piece), [tensor_bytes(piece["w"])])
            pieces.append(Piece(f"{number}.safetensors", box))
    return TensorPieces(whole.dtype, tuple(whole.shape), tuple(reversed(pieces)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_rank_of_a_mesh_reads_its_own_part_of_any_pieces(tmp_path: Path, shape: tuple[int, ...]) -> None:
    whole, indexes = values(shape), []
    for parts in (1, 2, 3):
        (tmp_path / str(parts)).mkdir()
        indexes.append((tmp_path / str(parts), {"w": cut(tmp_path / str(parts), whole, parts)}))
    for rank in range(6):
        with as_rank(rank, 6):
            mesh = init_device_mesh("cpu", (2, 3))
            for placements in PLACEMENTS:
                for directory, index in indexes:
                    part = empty_part(shape, mesh, placements)
                    fill(directory, index, {"w": part})
                    box = local_box(part)
                    expected = whole[tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))]
                    assert torch.equal(part.to_local(), expected), (rank, placements, directory.name)


@pytest.mark.parametrize(
    ("shape", "placement", "share"),
    [
        ((64, 5000), Shard(0), 0.25),
        ((8, 262_144), Shard(1), 0.25),  # rows of 1 MiB: a quarter of each is worth a read of its own
        ((640, 400), Shard(1), 1.0),  # rows of 1600 bytes: read whole, as what lies between costs no more
        ((64, 5000), Replicate(), 1.0),
    ],
)
def test_a_rank_reads_only_the_bytes_of_its_part(
    tmp_path: Path, shape: tuple[int, ...], placement: Placement, share: float
) -> None:
    whole = values(shape)
    directory = store.save_checkpoint(tmp_path, 1, {NAME: {"w": whole}}, {}, config_digest="c")
    with as_rank(2, 4):
        part = empty_part(shape, init_device_mesh("cpu", (4,)), (placement,))
        assert store.load_into(directory, NAME, {"w": part}) == share * whole.nbytes
        box = local_box(part)
        assert torch.equal(part.to_local(), whole[tuple(map(slice, box.offset, map(sum, zip(box.offset, box.shape))))])  # noqa: B905


def test_a_target_that_is_not_contiguous_is_filled_too(tmp_path: Path) -> None:
    whole = values((6, 4))
    directory = store.save_checkpoint(tmp_path, 1, {NAME: {"w": whole}}, {}, config_digest="c")
    turned = torch.zeros(4, 6).t()
    store.load_into(directory, NAME, {"w": turned})
    assert torch.equal(turned, whole)


def test_a_part_of_a_sum_cannot_be_saved() -> None:
    with as_rank(0, 2):
        mesh = init_device_mesh("cpu", (2,))
        part = DTensor.from_local(torch.ones(2), mesh, (Partial(),), run_check=False)
        with pytest.raises(ValueError, match="holds a part of a sum: reduce it first"):
            local_box(part)


def pieces_of(*boxes: tuple[tuple[int, ...], tuple[int, ...]], file: str = "a") -> dict[str, dict[str, TensorPieces]]:
    return {NAME: {"w": TensorPieces(torch.float32, (4, 6), tuple(Piece(file, Box(*box)) for box in boxes))}}


def test_pieces_of_all_ranks_make_one_index_and_copies_count_once() -> None:
    top, bottom = ((0, 0), (2, 6)), ((2, 0), (2, 6))
    index = merge_pieces([pieces_of(top), pieces_of(bottom, top, file="b")])
    assert index[NAME]["w"].pieces == (Piece("a", Box(*top)), Piece("b", Box(*bottom)))
    assert index_from_document(index_to_document(index)) == index


def test_pieces_that_do_not_fill_the_tensor_are_no_checkpoint() -> None:
    with pytest.raises(CheckpointError, match=r"pieces of 'w' of model.safetensors hold 12 of 24 values"):
        merge_pieces([pieces_of(((0, 0), (2, 6)))])
    with pytest.raises(CheckpointError, match=r"hold 30 of 24 values: all ranks must save the same tensors"):
        merge_pieces([pieces_of(((0, 0), (3, 6)), ((2, 0), (2, 6)))])


def test_ranks_that_disagree_about_a_tensor_are_no_checkpoint() -> None:
    other = {NAME: {"w": TensorPieces(torch.float32, (4, 5), ())}}
    with pytest.raises(CheckpointError, match="different shapes or dtypes on different ranks"):
        merge_pieces([pieces_of(((0, 0), (4, 6))), other])


def test_an_index_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    document = index_to_document(pieces_of(((0, 0), (4, 6)), file="../elsewhere"))
    with pytest.raises(ValueError, match="lies outside of the checkpoint"):
        index_from_document(document)


def test_a_file_that_is_shorter_than_its_header_says_is_told(tmp_path: Path) -> None:
    directory = store.save_checkpoint(tmp_path, 1, {NAME: {"w": values((6, 4))}}, {}, config_digest="c")
    content = (directory / NAME).read_bytes()
    for length in (0, 7, 20, len(content) - 1):
        (directory / NAME).write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"model.safetensors is no safetensors file that can be read"):
            store.read_tensors(directory, NAME)
