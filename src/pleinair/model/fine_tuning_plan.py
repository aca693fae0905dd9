"""How much memory training a LoRA takes, before any is taken: the step is run on shapes alone.

    configuration -> model on the meta device -> forward, backward -> every allocation counted as it comes and goes

torch runs the very model, with its 8-bit layers and its recomputation, on tensors without data, so the plan follows the
code. What it cannot know is the allocator's rounding and fragmentation and the library's own context (about half a
gigabyte on a GPU): leave a margin. Attention is counted as a fused kernel, which keeps no scores.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from pleinair.model.allocations import AllocationCounter
from pleinair.model.lora import LoraConfig, add_lora, freeze_base, lora_parameters
from pleinair.model.quantised_base import quantise_base
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.records.errors import ConfigError

PIXELS_PER_LATENT = 8
ADAMW_BYTES = 8
"""Two float32 moments per trained parameter."""
OFFLOADED_BLOCKS_ON_DEVICE = 2
"""The one that runs and the one that comes next; see `pleinair.model.offload`."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes of each kind that are there when most is."""

    weights: int
    """The frozen base on the device."""
    lora: int
    """The trained matrices, float32."""
    gradients: int
    """Theirs, float32."""
    optimiser: int
    """AdamW's two moments, float32."""
    activations: int
    """Everything else at the peak of forward and backward: what autograd keeps, and the operations' temporaries."""
    host: int
    """Offloaded blocks in the CPU's memory, not part of the total."""

    @property
    def total(self) -> int:
        """On the device, without the allocator's margin."""
        return self.weights + self.lora + self.gradients + self.optimiser + self.activations

    def __str__(self) -> str:
        parts = ("weights", "lora", "gradients", "optimiser", "activations", "total", "host")
        return ", ".join(f"{part} {getattr(self, part) / 1e9:.2f}" for part in parts) + " GB"


def fine_tuning_plan(
    config: TransformerConfig,
    lora: LoraConfig,
    *,
    base_bits: Literal[8, 16, 32],
    offload: bool,
    checkpointing: bool,
    resolution: int,
    batch_size: int,
    text_tokens: int = 512,
) -> MemoryPlan:
    """Memory of a training step on square pictures of `resolution` pixels and `text_tokens` valid text tokens.

    `base_bits` 8 means blocks in int8 and the rest in bfloat16, 16 bfloat16 throughout, both computing in bfloat16 as
    `engine.precision` bf16 does; 32 is float32 throughout, computing too. Offloading brings recomputation with it. Takes
    a few seconds and no memory whatever the size.
    """
    if base_bits not in (8, 16, 32):
        raise ConfigError(f"base_bits is {base_bits}: give 8, 16 or 32")
    side = PIXELS_PER_LATENT * config.patch_size
    if resolution < side or resolution % side:
        raise ConfigError(f"resolution is {resolution}: give a multiple of {side}")
    model = _model_on_meta(config, lora, base_bits)
    weights = _bytes(_frozen(model))
    host = 0
    if offload:
        blocks = [_bytes(_frozen(block)) for block in model.transformer_blocks]
        host = sum(blocks)
        weights -= sum(sorted(blocks)[:-OFFLOADED_BLOCKS_ON_DEVICE])
    trained = sum(parameter.numel() for parameter in lora_parameters(model))
    if checkpointing or offload:
        for block in model.transformer_blocks:
            block.forward = _recomputed(block.forward)
    peak = _peak_of_a_step(model, resolution // PIXELS_PER_LATENT, batch_size, text_tokens)
    return MemoryPlan(
        weights=weights,
        lora=4 * trained,
        gradients=4 * trained,
        optimiser=ADAMW_BYTES * trained,
        activations=peak - _bytes(lora_parameters(model)),
        host=host,
    )


class _FusedAttention(TorchFunctionMode):
    """Attention on the meta device as a fused kernel has it: queries, keys, values and output, no scores."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args[:3])[0]
        return func(*args, **(kwargs or {}))


def _model_on_meta(config: TransformerConfig, lora: LoraConfig, base_bits: int) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config).to(torch.float32 if base_bits == 32 else torch.bfloat16)
        if base_bits == 8:
            quantise_base(model)
        add_lora(model, lora)
        for parameter in lora_parameters(model):
            parameter.data = parameter.data.to(torch.float32 if base_bits == 32 else torch.bfloat16)
    freeze_base(model)
    return model.train()


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward with its activations recomputed; that happens outside the modes of the first pass."""
    return functools.partial(
        checkpoint,
        forward,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (contextlib.nullcontext(), _FusedAttention()),
    )


def _peak_of_a_step(model: Transformer, latent_side: int, batch_size: int, text_tokens: int) -> int:
    config = model.config
    with torch.device("meta"):
        latents = torch.empty(batch_size, config.latent_channels, latent_side, latent_side)
        features = torch.empty(batch_size, text_tokens, config.num_text_layers, config.text_dim)
        timestep = torch.empty(batch_size)
    with AllocationCounter() as counter:
        with _FusedAttention():
            loss: Tensor = (model(latents, timestep, features).float() - latents).square().mean()
        loss.backward()
    peak: int = counter.peak
    return peak + _bytes([latents, features, timestep])


def _frozen(module: nn.Module) -> list[Tensor]:
    return [*(parameter for parameter in module.parameters() if not parameter.requires_grad), *module.buffers()]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
