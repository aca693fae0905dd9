"""A transformer spread over a mesh of ranks, without the transformer knowing.

    tensor parallel -> activation checkpointing -> compile -> FSDP2
    (heads, columns)   (what backward recomputes)  (blocks)   (weights, gradients and moments in shards)

    mesh axes, slowest first:  replicate x shard x tensor
      replicate   copies of the sharded model: gradients are averaged over it          (HSDP)
      shard       weights lie in shards and are gathered block by block when needed    (FSDP2)
      tensor      a layer's heads and columns are split; all its ranks see one batch   (Megatron)

The order matters: tensor parallelism replaces parameters, checkpointing wraps what runs, the compiler sees both, and
FSDP shards what is left. Ranks along `tensor` are neighbours, so that they share a node's fast links.

Mixed precision casts no inputs but text features: the transformer casts latents itself, while timesteps and rotations
must stay float32 (a bfloat16 timestep is off by up to 0.002, and 1000 times that in the sinusoid).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from pleinair.model import attention
from pleinair.model.transformer import TextTokens
from pleinair.records.errors import ConfigError

Checkpointing = Literal["none", "selective", "full"]
DtypeName = Literal["fp32", "bf16"]
DTYPES: dict[DtypeName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
ENTRY_METHODS = ("encode_text", "denoise")
"""Methods of the transformer, beside `forward`, that gather its sharded weights."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many ranks along each axis; their product is the number of processes."""

    replicate: int = 1
    """Copies of the sharded model."""
    shard: int = 1
    """Ranks over which weights, gradients and optimiser states are sharded."""
    tensor: int = 1
    """Ranks that split a layer between them; a divisor of the heads and of the key and value heads."""
    async_tensor: bool = False
    """Overlap tensor-parallel communication with matrix products: compiled models on CUDA only."""

    def __post_init__(self) -> None:
        for name in ("replicate", "shard", "tensor"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.async_tensor and self.tensor == 1:
            raise ConfigError("async_tensor is set, but tensor is 1: give tensor at least 2, or leave async_tensor off")

    @property
    def num_ranks(self) -> int:
        """Processes the mesh needs."""
        return self.replicate * self.shard * self.tensor

    @property
    def num_data_ranks(self) -> int:
        """Ranks that read rows of their own."""
        return self.replicate * self.shard


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a transformer is spread, recomputed, compiled and cast."""

    mesh: MeshConfig = field(default_factory=MeshConfig)
    """Ranks along each axis."""
    checkpointing: Checkpointing = "none"
    """What the backward pass recomputes: nothing; all but matrix products and attention; whole blocks."""
    compile: bool = False
    """Compile each transformer block; equal blocks share one compilation."""
    compile_backend: str = "inductor"
    """Backend of torch.compile."""
    param_dtype: DtypeName = "fp32"
    """What sharded weights are gathered and computed in; the shards stay float32. Without a mesh, use autocast."""
    reduce_dtype: DtypeName = "fp32"
    """What gradients are averaged in."""
    reshard_after_forward: bool = True
    """Free a block's gathered weights after its forward pass and gather them again in the backward pass."""
    blocks_per_group: int = 1
    """Consecutive blocks gathered by one collective: fewer and larger ones, more memory."""

    def __post_init__(self) -> None:
        if self.blocks_per_group < 1:
            raise ConfigError(f"blocks_per_group is {self.blocks_per_group}: give at least 1")
        if self.mesh.async_tensor and not self.compile:
            raise ConfigError("async_tensor is a pass of the compiler: set compile=True, or leave async_tensor off")


def parallelize(transformer: nn.Module, device_mesh: DeviceMesh | None, config: ParallelConfig) -> nn.Module:
    """`transformer` itself, spread over `device_mesh` in place; None is a single process.

    Call it on every rank with equal weights (or on the meta device, then `to_empty` and load), before the optimiser is
    made. Names of parameters do not change; with a mesh they are DTensors. Every data rank's loss is the mean over its
    own rows, and gradients are averaged over data ranks, so equal numbers of rows give the gradient of the whole batch.

    Raises ConfigError when the mesh does not fit the model or `config`.
    """
    if device_mesh is not None:
        check_device_mesh(device_mesh, config)
        if config.mesh.tensor > 1:
            from pleinair.model.tensor_parallel import apply_tensor_parallel

            apply_tensor_parallel(transformer, device_mesh["tensor"])
    apply_checkpointing(transformer, config.checkpointing)
    if config.compile:
        _compile_blocks(transformer, config)
    if device_mesh is not None:
        _shard(transformer, device_mesh, config)
    return transformer


def check_device_mesh(device_mesh: DeviceMesh, config: ParallelConfig) -> None:
    """Raise ConfigError when `device_mesh` is not the mesh that `config` describes."""
    expected = {"replicate": config.mesh.replicate, "shard": config.mesh.shard, "tensor": config.mesh.tensor}
    given = dict(zip(device_mesh.mesh_dim_names or (), device_mesh.shape, strict=False))
    if given != expected:
        raise ConfigError(
            f"the mesh is {given}, the configuration says {expected}: open the mesh with the same MeshConfig"
        )
    if config.mesh.async_tensor and device_mesh.device_type != "cuda":
        raise ConfigError(f"async_tensor needs CUDA, this mesh is of {device_mesh.device_type}: leave async_tensor off")


def repeated_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The modules that are recomputed, compiled and sharded one by one: the transformer's blocks in order."""
    return list(transformer.get_submodule("transformer_blocks").children())


# --- activation checkpointing

SAVED_OPERATORS = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten._scaled_mm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""What selective checkpointing keeps. Batched products are not in it: they are attention scores, one per pair."""


def apply_checkpointing(transformer: nn.Module, checkpointing: Checkpointing) -> None:
    """Let the backward pass recompute each block, in place; selective keeps `SAVED_OPERATORS`' outputs."""
    if checkpointing == "none":
        return
    for block in repeated_blocks(transformer):
        base: Any = type(block)  # torch's modules hash by identity, which its stubs deny
        block.__class__ = _recomputed_class(base, checkpointing)


@functools.cache
def _recomputed_class(base: type[nn.Module], checkpointing: Checkpointing) -> type[nn.Module]:
    """A subclass whose forward pass is checkpointed. A subclass, not a wrapper: names of parameters stay."""
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # blocks draw no random numbers
    if checkpointing == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_products)

    def forward(module: nn.Module, *arguments: Any) -> Any:
        return checkpoint(functools.partial(base.forward, module), *arguments, **options)

    return type(base.__name__, (base,), {"forward": forward})


def _keep_products(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in SAVED_OPERATORS else CheckpointPolicy.PREFER_RECOMPUTE


# --- compile


def _compile_blocks(transformer: nn.Module, config: ParallelConfig) -> None:
    if config.mesh.async_tensor:
        torch._inductor.config._micro_pipeline_tp = True
    _keep_segments_outside_graphs()
    for block in repeated_blocks(transformer):
        block.compile(backend=config.compile_backend)


@functools.cache
def _keep_segments_outside_graphs() -> None:
    """Not as a decorator over there: its name alone imports torch's compiler, a third of every process's start."""
    attention.attend_segments = torch.compiler.disable(attention.attend_segments)


# --- FSDP2


def _shard(transformer: nn.Module, device_mesh: DeviceMesh, config: ParallelConfig) -> None:
    """Shard each group of blocks, text fusion and the rest, each gathered by one collective.

    Also with shard=1: then nothing is gathered, and weights are still cast and gradients averaged in one way.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # 2 s that one process alone need not wait

    mesh = device_mesh["replicate", "shard"] if config.mesh.replicate > 1 else device_mesh["shard"]
    base: Any = type(transformer)
    transformer.__class__ = _gathering_class(base)
    blocks, size = repeated_blocks(transformer), config.blocks_per_group
    groups = [
        [transformer.get_submodule("text_fusion")],
        *(blocks[start : start + size] for start in range(0, len(blocks), size)),
        [transformer],
    ]
    for group in groups:
        # The root is asked for text fusion's dtype while that is still in float32 shards; its inputs are features only.
        cast_inputs = group is groups[0]
        policy = MixedPrecisionPolicy(
            DTYPES[config.param_dtype], DTYPES[config.reduce_dtype], cast_forward_inputs=cast_inputs
        )
        reshard = config.reshard_after_forward and group is not groups[-1]
        fully_shard(group, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)


@functools.cache
def _gathering_class(base: type[nn.Module]) -> type[nn.Module]:
    """A subclass whose `ENTRY_METHODS` gather the root's weights when called from outside, as `forward` does.

    They run through `forward`, where FSDP's hooks are; called by `forward` itself they run as they are. (FSDP's own
    `register_fsdp_forward_method` would run its hooks twice in every forward pass.) Outputs are no views: FSDP hangs
    the gathering of the backward pass on them, which a view can lose.
    """

    def forward(module: Any, *arguments: Any, entry_method: str = "forward", **options: Any) -> Any:
        module._is_gathered = True
        try:
            output = getattr(base, entry_method)(module, *arguments, **options)
        finally:
            module._is_gathered = False
        if isinstance(output, TextTokens):
            return dataclasses.replace(output, tokens_BTD=output.tokens_BTD.clone())
        return output.clone()

    def entry(name: str) -> Callable[..., Any]:
        def method(module: Any, *arguments: Any, **options: Any) -> Any:
            if module._is_gathered:
                return getattr(base, name)(module, *arguments, **options)
            return module(*arguments, entry_method=name, **options)

        return method

    methods = {name: entry(name) for name in ENTRY_METHODS}
    return type(base.__name__, (base,), {"_is_gathered": False, "forward": forward, **methods})
