"""The ranks of a run: one process group, a mesh over it, and two separate timeouts.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT     (as torchrun sets them)
       -> rendezvous and connections   init_timeout_seconds: long, ranks start at different times
       -> Mesh                         collective_timeout_seconds: short, a hung rank must be noticed
       -> close                        the group is destroyed, also at exit

One timeout for both is a trap: short enough to notice a hung rank, it also governs the rendezvous, and on a busy
machine the restarted group then fails to form. So the group is opened with the long one, which is shortened afterwards.

With one process there is no group and nothing of torch.distributed is called.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from pleinair.model.parallelize import MeshConfig
from pleinair.records.errors import ConfigError

__all__ = ["MESH_AXES", "Mesh", "MeshConfig", "check_world_size", "open_mesh", "set_deterministic"]

MESH_AXES = ("replicate", "shard", "tensor")
"""Axes of the device mesh, slowest first."""
INIT_TIMEOUT_SECONDS = 900.0
"""Default wait for all ranks to arrive."""
COLLECTIVE_TIMEOUT_SECONDS = 120.0
"""Default wait inside one collective."""


@dataclass(frozen=True)
class Mesh:
    """This process's place among the ranks; close it, or leave its `with` block, before the process ends."""

    rank: int = 0
    """Number of this process."""
    world_size: int = 1
    """Number of processes."""
    data_rank: int = 0
    """Which share of every batch this rank reads; equal within a tensor group."""
    num_data_ranks: int = 1
    """Shares every batch is cut into."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this rank computes."""
    device_mesh: DeviceMesh | None = None
    """Mesh with axes replicate, shard and tensor; None with one process."""

    def close(self) -> None:
        """Destroy the process group; a second call does nothing."""
        if self.device_mesh is not None:
            _destroy()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_mesh(
    config: MeshConfig,
    *,
    init_timeout_seconds: float = INIT_TIMEOUT_SECONDS,
    collective_timeout_seconds: float = COLLECTIVE_TIMEOUT_SECONDS,
    device_type: str | None = None,
    deterministic: bool = False,
) -> Mesh:
    """Join the other ranks and take this one's place; NCCL on CUDA, Gloo on CPUs.

    `device_type` is "cuda" or "cpu"; None takes CUDA where there is one. `deterministic` asks torch for the same bits
    in every run (`set_deterministic`). Raises ConfigError, before any rank is waited for, when the mesh needs another
    number of processes or the launcher's variables are missing.
    """
    world_size = _variable("WORLD_SIZE", default=1)
    check_world_size(config, world_size)
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    if config.async_tensor and device_type != "cuda":
        raise ConfigError(f"async_tensor needs CUDA, this run is on {device_type}: leave async_tensor off")
    if deterministic:
        set_deterministic()
    if world_size == 1:
        return Mesh(device=torch.device(device_type))
    rank, device = _variable("RANK"), torch.device(device_type)
    if device_type == "cuda":
        device = torch.device("cuda", _variable("LOCAL_RANK"))
        torch.cuda.set_device(device)
    _open_group(device, init_timeout_seconds)
    device_mesh = init_device_mesh(
        device_type, (config.replicate, config.shard, config.tensor), mesh_dim_names=MESH_AXES
    )
    for group in (distributed.group.WORLD, *device_mesh.get_all_groups()):
        _set_pg_timeout(timedelta(seconds=collective_timeout_seconds), group)
    return Mesh(rank, world_size, rank // config.tensor, config.num_data_ranks, device, device_mesh)


def check_world_size(config: MeshConfig, world_size: int) -> None:
    """Raise ConfigError when `world_size` processes cannot form the mesh; the message names a mesh they can form."""
    if config.num_ranks == world_size:
        return
    axes = f"replicate {config.replicate} x shard {config.shard} x tensor {config.tensor}"
    per_shard = config.replicate * config.tensor
    remedy = f"start {config.num_ranks} processes"
    if world_size % per_shard == 0:
        remedy += f", or set shard={world_size // per_shard}"
    raise ConfigError(f"the mesh {axes} needs {config.num_ranks} processes, this run has {world_size}: {remedy}")


def set_deterministic() -> None:
    """Ask torch for kernels that give the same bits in every run; operators without one warn (they are slower)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def _variable(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None:
        if default is not None:
            return default
        raise ConfigError(f"WORLD_SIZE is set but {name} is not: start the ranks with torchrun, or set both")
    if not text.isdigit():
        raise ConfigError(f"{name} is {text!r}: the launcher must set a whole number")
    return int(text)


def _open_group(device: torch.device, init_timeout_seconds: float) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise ConfigError(f"WORLD_SIZE is set but {name} is not: start the ranks with torchrun, or set both")
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=timedelta(seconds=init_timeout_seconds),
        device_id=device if device.type == "cuda" else None,
    )
    # Threads of a group that is still open when the interpreter ends abort the process (exit code -6).
    atexit.register(_destroy)


def _destroy() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
    atexit.unregister(_destroy)
