"""The only place of the loop that knows of other processes: what ranks must agree on, and how they do.

With one process nothing distributed is called. Ranks of one tensor group see the same rows, so a mean over all ranks is a
mean over the data ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks(Protocol):
    """What the loop reads of a mesh (`training.mesh.Mesh`)."""

    @property
    def rank(self) -> int:
        """This process among all; 0 writes records."""
        ...

    @property
    def world_size(self) -> int:
        """Number of processes."""
        ...

    @property
    def data_rank(self) -> int:
        """Which part of the global batch this process computes."""
        ...

    @property
    def num_data_ranks(self) -> int:
        """Number of parts."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...


@dataclass(frozen=True, kw_only=True)
class OneRank:
    """A run of one process."""

    rank: int = 0
    world_size: int = 1
    data_rank: int = 0
    num_data_ranks: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def mean_metrics(metrics: Mapping[str, float | Tensor], mesh: Ranks) -> dict[str, float]:
    """The mean of each metric over all ranks, in one collective. Every rank must give the same names."""
    given = [torch.as_tensor(value, dtype=torch.float32, device=mesh.device) for value in metrics.values()]
    values = torch.stack(given)
    if mesh.world_size > 1:
        dist.all_reduce(values)
        values /= mesh.world_size
    return dict(zip(metrics, values.tolist(), strict=True))


def any_rank(flag: bool, mesh: Ranks) -> bool:
    """Whether the flag is set on any rank; all ranks get the same answer."""
    return flag if mesh.world_size == 1 else mean_metrics({"flag": float(flag)}, mesh)["flag"] > 0


def gather_keys(keys: list[str], ranks: Ranks) -> list[str]:
    """Keys of all ranks, each once, in order of rank."""
    if ranks.world_size == 1:
        return keys
    gathered: list[list[str]] = [[] for _ in range(ranks.world_size)]
    dist.all_gather_object(gathered, keys)
    return list(dict.fromkeys(key for part in gathered for key in part))


def hold_gradients(model: nn.Module, hold: bool) -> None:
    """Let a sharded model keep its gradients to itself until the last micro-batch of a step."""
    sync: Any = getattr(model, "set_requires_gradient_sync", None)
    if sync is not None:
        sync(not hold)


def average_gradients(modules: Iterable[nn.Module], ranks: Ranks) -> None:
    """Average the gradients that no sharding has reduced yet."""
    if ranks.world_size == 1:
        return
    from torch.distributed.tensor import DTensor

    for module in modules:
        for parameter in module.parameters():
            if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
                dist.all_reduce(parameter.grad)
                parameter.grad /= ranks.world_size


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients together so that their norm is at most `max_norm`; returns the norm before."""
    norm: Any = nn.utils.clip_grad_norm_(parameters, max_norm)
    whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return float(whole.item())
