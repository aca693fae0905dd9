"""Numbers that belong to a whole mesh, made from what each rank holds: losses, metrics, gradient norms, decisions.

    mean_metrics(metrics)         means over data ranks; ranks of a tensor group hold the same values already
    clip_gradients(parameters)    one norm over all shards, each counted once
    any_rank(flag)                one decision for all ranks, so that nobody waits in a collective alone
    from_rank_zero(make)          what one rank looked up, for all
    gather_keys(keys)             the pictures of a whole step
    gather_numbers(numbers)       some numbers of every rank, side by side

Every function is collective: call it on every rank, in the same order. With one process none communicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from pleinair.checkpoint.pieces import is_sharded, local_tensor

if TYPE_CHECKING:
    from pleinair.training.mesh import Mesh

Thing = TypeVar("Thing")


def mean_metrics(metrics: Mapping[str, float | Tensor], mesh: Mesh) -> dict[str, float]:
    """The mean of each metric over the data ranks, in one collective. Every rank must give the same names."""
    names = sorted(metrics)
    values = torch.tensor([float(metrics[name]) for name in names], dtype=torch.float64)
    # All ranks take part: a tensor group's equal values change no mean, and the sum has the same order on every rank.
    means = _all_reduce(values, distributed.ReduceOp.SUM, mesh) / mesh.world_size
    return {name: float(mean) for name, mean in zip(names, means, strict=True)}


def any_rank(flag: bool, mesh: Mesh) -> bool:
    """Whether any rank says yes, for example that its time is up or its loss is not finite."""
    return bool(_all_reduce(torch.tensor([float(flag)]), distributed.ReduceOp.MAX, mesh).item())


def from_rank_zero(make: Callable[[], Thing], mesh: Mesh) -> Thing:
    """What rank 0 makes, on every rank; it must survive pickling."""
    if mesh.device_mesh is None:
        return make()
    things: list[Any] = [make() if mesh.rank == 0 else None]
    distributed.broadcast_object_list(things, src=0)
    thing: Thing = things[0]
    return thing


def gather_keys(keys: list[str], mesh: Mesh) -> list[str]:
    """Keys of all ranks, each once, in order of rank."""
    if mesh.device_mesh is None:
        return keys
    gathered: list[list[str]] = [[] for _ in range(mesh.world_size)]
    distributed.all_gather_object(gathered, keys)
    return list(dict.fromkeys(key for part in gathered for key in part))


def gather_numbers(numbers: Sequence[float], mesh: Mesh) -> list[list[float]]:
    """Each number of all ranks, in order of rank; every rank must give as many."""
    own = torch.tensor(numbers, dtype=torch.float64, device=mesh.device)
    if mesh.device_mesh is None:
        return [[value] for value in own.tolist()]
    of_ranks = [torch.empty_like(own) for _ in range(mesh.world_size)]
    distributed.all_gather(of_ranks, own)
    table: list[list[float]] = torch.stack(of_ranks, dim=1).tolist()
    return table


def hold_gradients(model: nn.Module, hold: bool) -> None:
    """Let a sharded model keep its gradients to itself until the last micro-batch of a step."""
    sync: Any = getattr(model, "set_requires_gradient_sync", None)
    if sync is not None:
        sync(not hold)


def average_gradients(modules: Iterable[nn.Module], mesh: Mesh) -> None:
    """Average the gradients that no sharding has reduced yet: those of modules that every rank holds whole."""
    if mesh.device_mesh is None:
        return
    for module in modules:
        for parameter in module.parameters():
            if parameter.grad is not None and not is_sharded(parameter.grad):
                distributed.all_reduce(parameter.grad)
                parameter.grad /= mesh.world_size


def _all_reduce(values: Tensor, operation: distributed.ReduceOp.RedOpType, mesh: Mesh) -> Tensor:
    if mesh.device_mesh is None:
        return values
    moved = values.to(mesh.device)
    distributed.all_reduce(moved, operation)
    return moved.cpu()


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients so that their norm is at most `max_norm`; returns the norm before, equal on every rank."""
    kept = [parameter for parameter in parameters if parameter.grad is not None]
    norm = gradient_norm(kept)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
    locals_ = [local_tensor(parameter.grad) for parameter in kept if parameter.grad is not None]
    if locals_:
        torch._foreach_mul_(locals_, factor.to(locals_[0].device))
    return float(norm)


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all gradients, a float32 scalar; shards of DTensors are each counted once.

    Two small collectives at most per mesh axis, instead of one per parameter: squares are added up locally for each set
    of axes over which a gradient is split. Raises ValueError for a gradient that still has to be summed over ranks.
    """
    squares: dict[tuple[distributed.ProcessGroup, ...], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            squares.setdefault(_split_over(parameter.grad), []).append(local_tensor(parameter.grad))
    total: Tensor | None = None
    for groups in sorted(squares, key=lambda groups: [group.group_name for group in groups]):
        norms = torch._foreach_norm(squares[groups], 2, dtype=torch.float32)
        square = torch.stack(norms).square().sum()
        for group in groups:
            distributed.all_reduce(square, group=group)
        total = square if total is None else total + square
    return torch.zeros(()) if total is None else total.sqrt()


def _split_over(gradient: Tensor) -> tuple[distributed.ProcessGroup, ...]:
    """Groups of the mesh axes along which ranks hold different parts of `gradient`."""
    if not is_sharded(gradient):
        return ()
    sharded: Any = gradient
    if any(placement.is_partial() for placement in sharded.placements):
        raise ValueError(f"a gradient lies as {sharded.placements} on its mesh: reduce it before its norm is taken")
    mesh = sharded.device_mesh
    return tuple(
        mesh.get_group(axis)
        for axis, placement in enumerate(sharded.placements)
        if not placement.is_replicate() and mesh.size(axis) > 1
    )
