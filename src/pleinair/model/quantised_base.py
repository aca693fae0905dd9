"""A frozen base in 8 bits: the blocks' matrices take one byte per weight, and what is trained beside them is a LoRA.

    weight (outputs, inputs) -> int8 (outputs, inputs) and one float32 scale per output row
    forward   y  = (x q') * scale        backward   dx = (dy * scale) q

Whole numbers up to 127 are exact in bfloat16, so scaling the output costs no rounding of the weights beyond the 8 bits:
an entry is off by at most half its row's step, max|row| / 254. The backward pass converts the bytes again instead of
keeping the converted matrix, which would bring the memory back. Weights outside the blocks stay as they are: 5% of them,
and the most sensitive.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from pleinair.model.transformer import Transformer, compute_dtype
from pleinair.records.errors import ConfigError

LEVELS = 127


class Int8Linear(nn.Linear):
    """A linear layer whose frozen weight is int8, with one scale per output row; a bias stays as it is."""

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = linear.weight.shape
        self.register_parameter("bias", linear.bias)
        levels, scale = quantise_rows(linear.weight.detach())
        self.weight = nn.Parameter(levels, requires_grad=False)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """x W' + b, in the dtype of x or autocast's; gradients reach x alone."""
        x = x.to(compute_dtype(x))
        out: Tensor = _Int8Product.apply(x, self.weight, self.scale)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Int8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = cast(tuple[Tensor, Tensor], ctx.saved_tensors)  # type: ignore[attr-defined]
        (gradient,) = gradients
        return (gradient * scale.to(gradient.dtype)) @ weight.to(gradient.dtype), None, None


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (outputs, inputs) and float32 scales (outputs,) of a matrix. Raises ValueError unless all is finite."""
    largest = weight.float().abs().amax(dim=1)
    if not largest.is_meta and not torch.isfinite(largest).all():
        raise ValueError("the weight holds infinities or NaN: it cannot be stored in 8 bits, check the checkpoint")
    scale = largest / LEVELS
    steps = scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    return (weight.float() / steps).round().to(torch.int8), scale


def quantise_base(model: Transformer) -> int:
    """Store the matrices of all blocks, text fusion's too, in 8 bits, in place; returns the bytes that were freed.

    One layer at a time. Do it before a LoRA is attached. The model can then be run and trained through, not saved.
    """
    return sum(quantise_block(block) for block in blocks_of(model))


def quantise_block(block: nn.Module) -> int:
    """The same of one block."""
    freed = 0
    for name, linear in list(block.named_modules()):
        if not isinstance(linear, nn.Linear) or isinstance(linear, Int8Linear):
            continue
        if hasattr(linear, "lora"):
            raise ConfigError(f"a LoRA is attached to '{name}' already: quantise the base first")
        small = Int8Linear(linear)
        freed += linear.weight.nbytes - small.weight.nbytes - small.scale.nbytes
        block.set_submodule(name, small)
    return freed


def cast_rest(module: nn.Module, dtype: torch.dtype) -> None:
    """Everything that is not in 8 bits to `dtype`, in place; the scales of what is stay float32."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.is_floating_point():
                setattr(part, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))


def blocks_of(model: Transformer) -> list[nn.Module]:
    """Every block: of the stream, and of text fusion."""
    fusion = model.text_fusion
    return [*model.transformer_blocks, *fusion.layerwise_blocks, *fusion.refiner_blocks]
