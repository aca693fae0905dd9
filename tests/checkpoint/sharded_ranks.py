"""What a rank of the tests of sharded checkpoints does, and what it finds.

Two ranks save and load; four ranks load what two saved, on a mesh of two dimensions, and save again.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from pleinair.checkpoint.store import load_into
from pleinair.checkpoint.writer import CheckpointWriter
from pleinair.records.checkpoint import Saved

NAME = "transformer.safetensors"
FSDP = {"even": (Shard(0),), "odd": (Shard(0),), "narrow": (Shard(0),), "half": (Shard(0),), "copied": (Replicate(),)}
TENSOR_PARALLEL = {
    "even": (Shard(1),),
    "odd": (Shard(1),),
    "narrow": (Replicate(),),
    "half": (Shard(2),),
    "copied": (Shard(0),),
}
BOTH = {
    "even": (Shard(0), Shard(1)),
    "odd": (Replicate(), Shard(0)),
    "narrow": (Shard(0), Shard(0)),
    "half": (Shard(1), Shard(2)),
    "copied": (Replicate(), Replicate()),
}


def whole_tensors() -> dict[str, Tensor]:
    """What is saved: sizes that no number of ranks divides, one value only, half precision, a plain scalar."""
    random = torch.Generator().manual_seed(0)
    return {
        "even": torch.randn(48, 1100, generator=random),
        "odd": torch.randn(7, 5, generator=random),
        "narrow": torch.randn(1, 9, generator=random),
        "half": torch.randn(3, 4, 6, generator=random).bfloat16(),
        "copied": torch.arange(11),
        "plain": torch.tensor(42.0),
    }


def sharded(mesh: DeviceMesh, placements: Mapping[str, tuple[Placement, ...]], scale: int = 1) -> dict[str, Tensor]:
    """Those, `scale` times, placed on a mesh; what has no placement stays plain."""
    return {
        name: distribute_tensor(tensor * scale, mesh, placements[name]) if name in placements else tensor * scale
        for name, tensor in whole_tensors().items()
    }


def loads_as(directory: Path, mesh: DeviceMesh, placements: Mapping[str, tuple[Placement, ...]]) -> bool:
    """Whether loading into tensors placed so gives each rank the bits of its part."""
    expected, state = sharded(mesh, placements), sharded(mesh, placements, scale=0)
    load_into(directory, NAME, state)
    return all(torch.equal(_local(state[name]), _local(tensor)) for name, tensor in expected.items())


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def save(writer: CheckpointWriter, step: int, state: Mapping[str, Tensor]) -> str:
    """The checkpoint's name, or why there is none."""
    writer.save(step, {NAME: state, "projection.safetensors": {"p": torch.ones(3)}}, {"c.json": {}}, config_digest="c")
    writer.wait()
    (end,) = writer.finished()
    return end.directory if isinstance(end, Saved) else end.reason


def two_ranks(root: Path, rank: int) -> dict[str, object]:
    mesh = init_device_mesh("cpu", (2,))
    writer = CheckpointWriter(root, keep=5, rank=rank, world_size=2, peer_timeout_seconds=30)
    found: dict[str, object] = {
        "fsdp": save(writer, 1, sharded(mesh, FSDP)),
        "tensor_parallel": save(writer, 2, sharded(mesh, TENSOR_PARALLEL)),
    }
    found["fsdp_as_tensor_parallel"] = loads_as(root / "step-00000001", mesh, TENSOR_PARALLEL)
    found["tensor_parallel_as_fsdp"] = loads_as(root / "step-00000002", mesh, FSDP)
    if rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    found["refused"] = save(writer, 3, sharded(mesh, FSDP))
    return found


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)


def four_ranks(root: Path, rank: int) -> dict[str, object]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    found: dict[str, object] = {
        "two_as_four": loads_as(root / "step-00000001", mesh, BOTH),
        "two_as_four_flat": loads_as(root / "step-00000002", init_device_mesh("cpu", (4,)), FSDP),
    }
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    model = fully_shard(parallelize_module(Layers(), mesh["tensor"], plan), mesh=mesh["shard"])
    expected = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
    writer = CheckpointWriter(root, keep=5, rank=rank, world_size=4, staging="update", peer_timeout_seconds=30)
    found["model"] = save(writer, 4, model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_into(root / "step-00000004", NAME, model.state_dict())
    found["model_again"] = all(
        torch.equal(expected[name], tensor.full_tensor()) for name, tensor in model.state_dict().items()
    )
    return found


def as_rank(root: Path, ports: Sequence[int]) -> dict[str, object]:
    """All that a rank of this world size has to do; see `tests.training.ranks`."""
    os.environ["MASTER_PORT"] = str(ports[0])
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo")
    found = two_ranks(root, rank) if world_size == 2 else four_ranks(root, rank)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return found
