"""The only place of the loop that knows of other processes: what ranks must agree on, and how they do.

With one process nothing distributed is called. Ranks of one tensor group see the same rows, so a mean over all ranks is a
mean over the data ranks.
"""

from __future__ import annotations

from collections.abc import Iterable
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


def mean_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """Mean of a float tensor over all ranks, on all of them."""
    if ranks.world_size > 1:
        values = values.detach().clone()
        dist.all_reduce(values)
        values /= ranks.world_size
    return values


def any_rank(flag: bool, ranks: Ranks) -> bool:
    """Whether the flag is set on any rank; all ranks get the same answer."""
    if ranks.world_size == 1:
        return flag
    return bool(mean_over_ranks(torch.tensor(float(flag), device=ranks.device), ranks) > 0)


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
                parameter.grad.copy_(mean_over_ranks(parameter.grad, ranks))


def clip_gradients(modules: Iterable[nn.Module], largest_norm: float) -> float:
    """Scale all gradients together so that their norm is at most `largest_norm`; returns the norm before."""
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.grad is not None]
    norm: Any = nn.utils.clip_grad_norm_(parameters, largest_norm)
    whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return float(whole.item())
