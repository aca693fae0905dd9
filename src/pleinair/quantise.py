"""Weights in 8 bits: each row of a matrix as int8 times one half-precision scale.

    weight (rows, ...)  ->  weight int8, weight.scale (rows) half precision
    vectors, scalars    ->  half precision;  integers stay as they are

An entry is off by at most half its row's step: max|row| / 254 * (1 + 2**-10), under 0.4% of the largest magnitude in
the row (the scale is rounded first, the entries with it). Vectors (biases, norms, statistics) are few and sensitive;
half precision keeps them within 2**-11 relative, for magnitudes from 6e-5 to 65504.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pleinair.records.errors import CheckpointError

SCALE_SUFFIX = ".scale_int8"
LEVELS = 127


def quantise_rowwise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state in 8-bit storage. Raises ValueError for a tensor that holds infinities, NaN or values beyond float16."""
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            stored[name] = tensor.contiguous()
            continue
        if tensor.numel() and not tensor.abs().max() <= torch.finfo(torch.float16).max:
            raise ValueError(
                f"'{name}' holds values that are not finite or beyond 65504: it cannot be stored in 8 bits"
            )
        if tensor.ndim < 2:
            stored[name] = tensor.half()
        else:
            stored[name], stored[name + SCALE_SUFFIX] = quantise_rows(tensor.float())
    return stored


def as_stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state as it comes back from 8-bit storage, which changes it no more: to be calibrated and measured like that."""
    return dequantise(quantise_rowwise(state))


def quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 rows and their scales. A scale is rounded up, so that no entry needs more than 127 levels."""
    largest = weight.flatten(1).abs().amax(dim=1) / LEVELS
    scale = largest.half()
    scale = torch.where(scale.float() < largest, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    divisor = scale.float().clamp(min=torch.finfo(torch.float32).tiny).view(-1, *[1] * (weight.ndim - 1))
    return (weight / divisor).round().to(torch.int8).contiguous(), scale


def dequantise(stored: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The state again, floating-point tensors in `dtype`. Raises CheckpointError where a matrix lacks its scale."""
    state: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        if tensor.dtype == torch.int8:
            if name + SCALE_SUFFIX not in stored:
                raise CheckpointError(
                    f"'{name}' is stored in 8 bits without '{name + SCALE_SUFFIX}': the file is damaged"
                )
            scale = stored[name + SCALE_SUFFIX].float().view(-1, *[1] * (tensor.ndim - 1))
            state[name] = (tensor.float() * scale).to(dtype)
        else:
            state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return state
