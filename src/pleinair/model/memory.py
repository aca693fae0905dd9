"""How much memory a rank needs to train a transformer, before any machine is rented.

    parameters + optimiser states                   float32 shards, always there
    + gathered                                      whole weights and gradients of the few blocks FSDP works on
    + other activations                             saved first, freed last
    + workspace                                     what one block's backward pass holds beside what was saved
    + the larger of   the blocks' activations       when the backward pass begins
                      the blocks' gradients         when it reaches the first block

Sizes of weights are counted; activations are *observed*: one and two blocks of the very model take a step on fake
tensors, which have shapes but no memory, under the given checkpointing, and a counter sees every allocation. So the
estimate follows the model's code. It is for eager execution: a compiler fuses, and saves less.

Not in it: the CUDA context and NCCL's buffers (1 to 3 GB per rank), fragmentation, other models on the device.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pleinair.model.allocations import AllocationCounter
from pleinair.model.parallelize import Checkpointing, DtypeName, MeshConfig, ParallelConfig, apply_checkpointing
from pleinair.model.positions import image_rotations
from pleinair.model.tensor_parallel import shrink_split_parameters, split_parameters
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.records.errors import ConfigError

GIB = 2**30
FLOAT32_BYTES = 4
DTYPE_BYTES: dict[DtypeName, int] = {"fp32": 4, "bf16": 2}
FAKE_DTYPES: dict[DtypeName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.float16}
"""bfloat16 is observed as float16: of one size, and without the CPU's own bfloat16 attention."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank, by what they are for."""

    parameters: int
    """Float32 shards of the weights."""
    gradients: int
    """Float32 shards of the gradients."""
    last_gradients: int
    """Those of them that are made last: of the first block, and of all that is no block."""
    num_blocks: int
    """Blocks that save activations."""
    optimiser: int
    """Moments."""
    gathered: int
    """Whole weights and gradients of the blocks in work, and the buffers they are sent in."""
    block_activations: int
    """What the blocks save for the backward pass."""
    other_activations: int
    """What the rest saves: text fusion, inputs, outputs."""
    workspace: int
    """The most that is held beside what is saved: recomputed and intermediate tensors of one block."""
    accumulates: bool
    """Whether gradients of earlier micro-batches are there when activations are."""

    @property
    def activations(self) -> int:
        """All that is saved for the backward pass."""
        return self.block_activations + self.other_activations

    @property
    def peak(self) -> int:
        """The most memory in use at one moment."""
        always = self.parameters + self.optimiser + self.gathered
        beside_a_block = self.other_activations + self.workspace
        if self.accumulates:
            return always + beside_a_block + self.gradients + self.block_activations
        at_first_block = self.block_activations // self.num_blocks + self.gradients - self.last_gradients
        return always + max(beside_a_block + max(self.block_activations, at_first_block), self.gradients)


def estimate_memory(
    config: TransformerConfig,
    parallel: ParallelConfig,
    *,
    batch: int,
    image_tokens: int,
    text_tokens: int,
    optimiser: Literal["adamw", "muon"] = "adamw",
    accumulates: bool = False,
) -> MemoryEstimate:
    """Memory of one rank whose micro-batch is `batch` pictures of `image_tokens` with prompts of `text_tokens` rows.

    With a mesh of one rank there is no FSDP: weights are used as they are, in float32 (a copy in bfloat16 beside them
    when `param_dtype` says so, as autocast keeps one). Raises ConfigError for sizes below 1 or a mesh that does not fit.
    """
    for name, value in (("batch", batch), ("image_tokens", image_tokens), ("text_tokens", text_tokens)):
        if value < 1:
            raise ConfigError(f"{name} is {value}: give at least 1")
    sizes = _weight_sizes(config, parallel.mesh, optimiser)
    case = (config, parallel.checkpointing, parallel.param_dtype, parallel.mesh.tensor, image_tokens, text_tokens)
    one, two, two_of_two = _observe(*case, 1, 1), _observe(*case, 2, 1), _observe(*case, 2, 2)
    per_block = two.saved - one.saved
    workspace, per_picture = two.workspace, two_of_two.workspace - two.workspace
    return MemoryEstimate(
        parameters=FLOAT32_BYTES * sizes.sharded,
        gradients=FLOAT32_BYTES * sizes.sharded,
        last_gradients=FLOAT32_BYTES * sizes.last,
        num_blocks=config.num_layers,
        optimiser=FLOAT32_BYTES * sizes.moments,
        gathered=_gathered(sizes, parallel),
        block_activations=batch * per_block * config.num_layers,
        other_activations=batch * (one.saved - per_block),
        workspace=workspace + (batch - 1) * per_picture,
        accumulates=accumulates,
    )


# --- weights


@dataclass(frozen=True)
class _WeightSizes:
    """Numbers of values on one rank of a tensor group."""

    block: int
    text_fusion: int
    root: int
    sharded: int
    last: int
    moments: int


@functools.cache
def _weight_sizes(config: TransformerConfig, mesh: MeshConfig, optimiser: str) -> _WeightSizes:
    with torch.device("meta"):
        model = Transformer(config)
    shapes = dict(model.named_parameters())
    parts = {"transformer_blocks.0.": 0, "text_fusion.": 0, "": 0}
    sharded = last = moments = 0
    for name, split in split_parameters(model, mesh.tensor):
        values = shapes[name].numel() // split
        own = -(-values // mesh.shard)
        sharded += own
        is_muon = optimiser == "muon" and shapes[name].ndim == 2 and "blocks." in name and "table" not in name
        moments += own if is_muon else 2 * own
        if not name.startswith("transformer_blocks.") or name.startswith("transformer_blocks.0."):
            last += own
            parts[next(prefix for prefix in parts if name.startswith(prefix))] += values
    return _WeightSizes(
        block=parts["transformer_blocks.0."],
        text_fusion=parts["text_fusion."],
        root=parts[""],
        sharded=sharded,
        last=last,
        moments=moments,
    )


def _gathered(sizes: _WeightSizes, parallel: ParallelConfig) -> int:
    """Whole weights and gradients beside the shards, while a block's backward pass runs.

    The root's weights and gradients are there all along; of the groups, the weights in work, the buffer in which the next
    ones arrive (copied out, and freed, only when that group begins), the gradients, and the buffer in which those of the
    group before leave in `reduce_dtype`, which FSDP2 keeps until the next is sent.
    """
    cast, reduced = DTYPE_BYTES[parallel.param_dtype], DTYPE_BYTES[parallel.reduce_dtype]
    whole = sizes.sharded * parallel.mesh.shard
    if parallel.mesh.num_ranks == 1:
        return 0 if parallel.param_dtype == "fp32" else cast * whole
    group = max(sizes.block * parallel.blocks_per_group, sizes.text_fusion)
    weights = 2 * cast * group if parallel.reshard_after_forward else cast * (whole - sizes.root)
    return 2 * cast * sizes.root + weights + cast * group + reduced * group


# --- activations


@dataclass(frozen=True)
class _Observed:
    """Bytes beside weights and gradients."""

    saved: int
    workspace: int


@functools.cache
def _observe(
    config: TransformerConfig,
    checkpointing: Checkpointing,
    precision: DtypeName,
    tensor: int,
    image_tokens: int,
    text_tokens: int,
    num_layers: int,
    batch: int,
) -> _Observed:
    """A step of the model with `num_layers` blocks on one rank of a tensor group, on fake tensors."""
    dtype, side = FAKE_DTYPES[precision], config.patch_size
    # Rotations are cached by shape: were they first made on fake tensors, real models would be handed fake ones.
    image_rotations(config, 1, image_tokens, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = Transformer(dataclasses.replace(config, num_layers=num_layers))
        for module in model.modules():  # Module.to does not take fake parameters
            for name, parameter in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, nn.Parameter(torch.empty_like(parameter, dtype=dtype)))
        if tensor > 1:
            shrink_split_parameters(model, tensor)
        apply_checkpointing(model, checkpointing)
        latents = torch.empty(batch, config.latent_channels, side, side * image_tokens, dtype=dtype)
        features = torch.empty(batch, text_tokens, config.num_text_layers, config.text_dim, dtype=dtype)
        timestep = torch.empty(batch)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(_forget_gradient)
        with AllocationCounter() as counter:
            loss = model(latents, timestep, features).float().square().mean()
            saved = counter.alive
            loss.backward()
    return _Observed(saved, counter.peak - saved)


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


# --- the released model on real machines

GPU_GIB = 80
HEADROOM_GIB = 6
"""Left free for the CUDA context, NCCL and fragmentation."""
RESOLUTIONS = ((256, 256), (512, 1024), (1024, 4096))
"""(pixels per side, image tokens)."""


CHECKPOINTINGS: tuple[Checkpointing, ...] = ("selective", "full")


@dataclass(frozen=True)
class TableRow:
    """One way to train at one size."""

    num_gpus: int
    pixels: int
    mesh: MeshConfig
    checkpointing: Checkpointing
    batch: int
    """Largest power of two of pictures per data rank that fits; 0 when not even one does."""
    estimate: MemoryEstimate
    """At that batch, or at one picture."""


def table(
    config: TransformerConfig,
    num_gpus: Sequence[int] = (8, 16, 32, 64, 128, 256, 512, 1024),
    *,
    text_tokens: int = 256,
    resolutions: Sequence[tuple[int, int]] = RESOLUTIONS,
    checkpointings: Sequence[Checkpointing] = CHECKPOINTINGS,
) -> list[TableRow]:
    """For each number of 80 GB GPUs and each resolution, what fits: bf16, AdamW, at most 64 GPUs per shard group."""
    return [
        _largest_batch(config, count, pixels, tokens, text_tokens, checkpointing)
        for count in num_gpus
        for pixels, tokens in resolutions
        for checkpointing in checkpointings
    ]


def _largest_batch(
    config: TransformerConfig, num_gpus: int, pixels: int, tokens: int, text_tokens: int, checkpointing: Checkpointing
) -> TableRow:
    shard = min(num_gpus, 64)
    mesh = MeshConfig(replicate=num_gpus // shard, shard=shard)
    parallel = ParallelConfig(mesh=mesh, checkpointing=checkpointing, param_dtype="bf16")

    def estimate(batch: int) -> MemoryEstimate:
        return estimate_memory(config, parallel, batch=batch, image_tokens=tokens, text_tokens=text_tokens)

    budget = (GPU_GIB - HEADROOM_GIB) * GIB
    batches = [2**power for power in range(11)]
    fitting = [batch for batch in batches if estimate(batch).peak <= budget]
    largest = max(fitting, default=0)
    return TableRow(num_gpus, pixels, mesh, checkpointing, largest, estimate(max(1, largest)))


def format_table(rows: Sequence[TableRow]) -> str:
    """The rows as a Markdown table, GiB per GPU; numbers of GPUs that differ in nothing but replicas share a row."""
    lines = [
        "| GPUs | px | replicate x shard | checkpointing | pictures per GPU | weights + moments | gathered | activations | peak |",
        "|---:|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    alike: dict[tuple[object, ...], list[TableRow]] = {}
    for row in rows:
        alike.setdefault((row.pixels, row.mesh.shard, row.checkpointing, row.batch, row.estimate), []).append(row)
    for same in alike.values():
        row, last = same[0], same[-1]
        gpus, replicas = (
            f"{first}" if len(same) == 1 else f"{first} to {end}"
            for first, end in ((row.num_gpus, last.num_gpus), (row.mesh.replicate, last.mesh.replicate))
        )
        e = row.estimate
        columns = (e.parameters + e.optimiser, e.gathered, e.activations + e.workspace, e.peak)
        sizes = " | ".join(f"{value / GIB:.1f}" for value in columns)
        fits = str(row.batch) if row.batch else "none"
        lines.append(
            f"| {gpus} | {row.pixels} | {replicas} x {row.mesh.shard} | {row.checkpointing} | {fits} | {sizes} |"
        )
    return "\n".join(lines)
