"""Megatron-style tensor parallelism: every rank of a group holds some heads of attention and some columns of the MLP.

    x (same on every rank) --> q, k, v, gate of own heads --> attention --> own rows of the output matrix --sum--> x
                           '-> own columns of gate, up ----------------> own rows of down ----------------sum--> x

The sum is one all-reduce in the forward pass; its mirror image is one all-reduce of the input's gradient in the
backward pass (Shoeybi et al. 2019, section 3). Everything else is computed by every rank alike.

Parameters are stored as DTensors on the group's mesh, so that checkpoints, sharding on top and gradient norms know what
each rank holds; the model's own code sees plain tensors. That is done by giving a module a subclass of its class whose
parameters' attributes are views of the local part: no DTensor operator runs in the forward pass, names of parameters
stay, and any layer works, also one whose methods other than `forward` read its weight.

What acts inside the heads and is not split (the norms of queries and keys, MLA's compressed vectors and the one rotated
key, the share of a value residual) is replicated, but each rank sees the gradient of its own heads only: such a
parameter's view adds up the gradients of the group.

Every switch of the architecture but two-stream blocks is split so; those attend from outside of their attention modules
and are refused, as are LoRAs and 8-bit weights, whose branches and scales are not cut with their layer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import GroupName
from torch.distributed.tensor import DTensor, Replicate, Shard

from pleinair.model.architecture import TransformerConfig
from pleinair.model.attention import Attention, LatentAttention
from pleinair.model.blocks import ValueResidual
from pleinair.model.layers import GELUMLP, SwiGLU
from pleinair.records.errors import ConfigError

Role = Literal["column", "row", "partial", "replicated"]
"""How a parameter lies on the group: outputs split, inputs split, whole with partial gradients, whole."""

SPLIT_DIMS: dict[Role, int] = {"column": 0, "row": 1}
"""The dimension of a parameter that is split."""
COLUMN_LAYERS = ("to_q", "to_k", "to_v", "to_gate", "gate", "up")
"""Linear layers of attention and MLPs whose outputs are split."""
INNER_LAYERS = ("norm_q", "norm_k", "norm_kv", "compress_q", "compress_kv", "to_rotary_k")
"""Layers of attention that every rank holds whole, and whose outputs its own heads alone read."""


@dataclass(frozen=True)
class SplitModule:
    """A module whose inner features are split over the group."""

    name: str
    """Its name in the transformer."""
    columns: tuple[str, ...]
    """Children whose outputs are split."""
    row: str
    """The child whose inputs are split and whose output is summed."""
    inner: tuple[str, ...]
    """Children that act on split features: whole, with partial gradients."""


def apply_tensor_parallel(transformer: nn.Module, mesh: DeviceMesh) -> None:
    """Split every attention and MLP of `transformer` over the one-dimensional `mesh`, in place.

    Every rank must hold the same weights, or all of them on the meta device. Attention and MLPs of text fusion whose
    heads do not divide stay whole. Raises ConfigError as `find_split_modules` does.
    """
    roles: dict[str, Role] = {}
    for split in find_split_modules(transformer, mesh.size()):
        module = transformer.get_submodule(split.name)
        roles |= _roles(split)
        group = mesh.get_group().group_name
        module.register_forward_pre_hook(functools.partial(_enter, group))
        module.register_forward_hook(functools.partial(_leave, group))
    for name, module in list(transformer.named_modules()):
        if isinstance(module, ValueResidual):
            roles[f"{name}.share"] = "partial"
        own = {key: roles.get(f"{name}.{key}", "replicated") for key, _ in module.named_parameters(recurse=False)}
        if own:
            _distribute(module, own, mesh)


def check_tensor_parallel(config: TransformerConfig, size: int) -> None:
    """Raise ConfigError when `size` ranks cannot split the blocks of this configuration; no model is needed."""
    if size > 1 and config.dual_layers:
        raise ConfigError(
            f"tensor is {size}, but stream is {config.stream}, whose blocks attend over two sets of weights and are not "
            "split: set tensor=1 and give those ranks to shard"
        )
    shared = {"query heads": config.num_heads, "columns of the MLP": _mlp_columns(config)}
    if config.attention == "gqa":
        shared["key and value heads"] = config.num_kv_heads
    for what, number in shared.items():
        if number % size:
            raise ConfigError(f"tensor is {size}: it must divide the {number} {what} of every block")


def _mlp_columns(config: TransformerConfig) -> int:
    return 3 * config.hidden_width // 2 if config.mlp == "gelu" else config.hidden_width


def find_split_modules(transformer: nn.Module, size: int) -> list[SplitModule]:
    """What a group of `size` ranks splits, in the order of the model.

    Raises ConfigError as `check_tensor_parallel` does, and for a layer with a LoRA or with 8-bit weights.
    """
    config: Any = transformer.config
    check_tensor_parallel(config, size)
    found = []
    for name, module in transformer.named_modules():
        if (split := _split_of(name, module)) is not None and _divides(module, size):
            _check_layers(transformer, split, size)
            found.append(split)
    return found


def _split_of(name: str, module: nn.Module) -> SplitModule | None:
    if not isinstance(module, (Attention, LatentAttention, SwiGLU, GELUMLP)):
        return None
    children = dict(module.named_children())
    columns = tuple(child for child in COLUMN_LAYERS if child in children)
    inner = tuple(child for child in INNER_LAYERS if child in children)
    return SplitModule(name, columns, "down" if "down" in children else "to_out.0", inner)


def _divides(module: Any, size: int) -> bool:
    """Whether the heads, or the MLP's columns, can be shared out equally; those of the blocks can, text fusion's may."""
    if isinstance(module, (SwiGLU, GELUMLP)):
        return module.up.out_features % size == 0
    heads = [layer.out_features // module.head_dim for layer in (module.to_q, module.to_v)]
    return all(number % size == 0 for number in heads)


def _check_layers(transformer: nn.Module, split: SplitModule, size: int) -> None:
    for child in (*split.columns, split.row):
        name = f"{split.name}.{child}"
        layer: Any = transformer.get_submodule(name)
        if hasattr(layer, "lora") or not layer.weight.is_floating_point():
            what = "carries a LoRA" if hasattr(layer, "lora") else "has 8-bit weights"
            raise ConfigError(f"tensor is {size}, but {name} {what}: set tensor=1 and give those ranks to shard")


def _roles(split: SplitModule) -> dict[str, Role]:
    """Roles of a split module's parameters by full name."""
    roles: dict[str, Role] = {f"{split.name}.{split.row}.weight": "row"}
    for child in split.columns:
        roles |= {f"{split.name}.{child}.weight": "column", f"{split.name}.{child}.bias": "column"}
    for child in split.inner:
        roles[f"{split.name}.{child}.weight"] = "partial"
    return roles


def shrink_split_parameters(transformer: nn.Module, size: int) -> None:
    """Keep one rank's part of every split parameter, as a plain tensor: the shapes a rank of a group computes with."""
    for split in find_split_modules(transformer, size):
        for name, role in _roles(split).items():
            owner, _, key = name.rpartition(".")
            module = transformer.get_submodule(owner)
            parameter = module._parameters.get(key)
            if parameter is not None and role in SPLIT_DIMS:
                part = parameter.detach().chunk(size, SPLIT_DIMS[role])[0].clone()
                module.register_parameter(key, nn.Parameter(part))


def _distribute(module: nn.Module, roles: dict[str, Role], mesh: DeviceMesh) -> None:
    """Store the module's own parameters as DTensors and let its code see the local part."""
    for key, role in roles.items():
        parameter = module.get_parameter(key)
        dim = SPLIT_DIMS.get(role)
        local = parameter.detach()
        if dim is not None:
            local = local.chunk(mesh.size(), dim)[mesh.get_local_rank()].clone(memory_format=torch.contiguous_format)
        placement = Replicate() if dim is None else Shard(dim)
        tensor = DTensor.from_local(local, mesh, [placement], run_check=False)
        module.register_parameter(key, nn.Parameter(tensor, requires_grad=parameter.requires_grad))
    partial = tuple(sorted(key for key, role in roles.items() if role == "partial"))
    base: Any = type(module)  # torch's modules hash by identity, which its stubs deny
    module.__class__ = _local_class(base, tuple(sorted(roles)), partial, mesh.get_group().group_name)


@functools.cache
def _local_class(
    base: type[nn.Module], names: tuple[str, ...], partial: tuple[str, ...], group: GroupName
) -> type[nn.Module]:
    """A subclass of `base` in which the parameters `names` read as the local part of their DTensors."""
    views = {name: _local_view(name, group if name in partial else None) for name in names}
    return type(base.__name__, (base,), dict(views))


def _local_view(name: str, group: GroupName | None) -> property:
    def local_part(module: nn.Module) -> Tensor | None:
        parameter: Tensor | None = module._parameters[name]
        if not isinstance(parameter, DTensor) or parameter.device_mesh.ndim > 1:
            return parameter  # FSDP has not gathered it: what it looks for is the parameter itself
        local = parameter.to_local()
        return local if group is None else sum_of_gradients(local, group)

    return property(local_part)


def _enter(group: GroupName, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (sum_of_gradients(arguments[0], group), *arguments[1:])


def _leave(group: GroupName, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    return sum_of_outputs(output, group)


class _SumGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: GroupName) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(gradient, ctx.group), None


class _SumOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: GroupName) -> Tensor:
        return _all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def sum_of_gradients(x: Tensor, group: GroupName) -> Tensor:
    """`x` itself; its gradient is the sum of the gradients of the group's ranks."""
    out: Tensor = _SumGradients.apply(x, group)  # type: ignore[no-untyped-call]
    return out


def sum_of_outputs(x: Tensor, group: GroupName) -> Tensor:
    """The sum of `x` over the group's ranks; its gradient goes to each unchanged."""
    out: Tensor = _SumOutputs.apply(x, group)  # type: ignore[no-untyped-call]
    return out


def _all_reduce(x: Tensor, group: GroupName) -> Tensor:
    total: Tensor = functional.wait_tensor(functional.all_reduce(x.contiguous(), "sum", group))
    return total


def split_parameters(transformer: nn.Module, size: int) -> Iterator[tuple[str, int]]:
    """Names of all parameters and how many ranks of a group of `size` share each."""
    split: set[str] = set()
    if size > 1:
        for module in find_split_modules(transformer, size):
            split |= {name for name, role in _roles(module).items() if role in SPLIT_DIMS}
    for name, _ in transformer.named_parameters():
        yield name, size if name in split else 1
