"""Norms and MLPs of the blocks.

    RMSNorm     x / rms(x) * (1 + w), released; or * w                LayerNorm   (x - mean) / std * w + b
    DynamicErf  erf(a x + s) * w + b, no statistics of x              SwiGLU      (silu(x Wgate) * x Wup) Wdown
                                                                      GELUMLP     gelu(x Wup) Wdown
Norms are computed in float32 and leave in the dtype they came in; linear layers run in the dtype of the weights, or in
autocast's. Shapes: B batch, S sequence, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.model.segments import Segments, spread


class RMSNorm(nn.Module):
    """x / rms(x) * (centre + weight): stored around zero with centre 1, so weight decay pulls the norm towards plain."""

    def __init__(self, dim: int, eps: float, centre: float = 1.0) -> None:
        super().__init__()
        self.eps = eps
        self.centre = centre
        self.weight = nn.Parameter(torch.full((dim,), 1.0 - centre))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return (self.unit(x) * (self.centre + self.weight.float())).to(x.dtype)

    def unit(self, x: Tensor) -> Tensor:
        """x / rms(x), before the weight; for callers that fold the weight into a modulation."""
        x_float = x.float()
        mean_square = torch.linalg.vecdot(x_float, x_float).unsqueeze(-1) / x.shape[-1]
        return x * torch.rsqrt(mean_square + self.eps).to(x.dtype)

    def modulated(
        self, x_BSD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, segments: Segments | None = None
    ) -> Tensor:
        """(1 + scale) * norm(x) + shift, the two gains multiplied before they meet the sequence.

        One pass over the sequence instead of three, and in the backward pass the gains' gradients are reduced once.
        """
        gain_B1D = (1.0 + scale_B1D) * (self.centre + self.weight.float())
        return _scale_and_shift(self.unit(x_BSD), gain_B1D, shift_B1D, segments)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return (self.unit(x) * self.weight + self.bias).to(x.dtype)

    def unit(self, x: Tensor) -> Tensor:
        """(x - mean) / deviation, before weight and bias."""
        return F.layer_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)

    def modulated(
        self, x_BSD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, segments: Segments | None = None
    ) -> Tensor:
        """(1 + scale) * norm(x) + shift."""
        gain_B1D = 1.0 + scale_B1D
        return _scale_and_shift(
            self.unit(x_BSD), gain_B1D * self.weight, torch.addcmul(shift_B1D, gain_B1D, self.bias), segments
        )


class DynamicErf(nn.Module):
    """erf(alpha x + offset) * weight + bias: a bounded function in a norm's place (Chen et al., "Stronger
    normalization-free transformers", arXiv:2512.10938; alpha and offset are scalars that start at 1/2 and 0).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.offset = nn.Parameter(torch.zeros(1))
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out, every element on its own."""
        return (self.unit(x) * self.weight + self.bias).to(x.dtype)

    def unit(self, x: Tensor) -> Tensor:
        """erf(alpha x + offset), before weight and bias."""
        return torch.erf(self.alpha * x.float() + self.offset).to(x.dtype)

    def modulated(
        self, x_BSD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, segments: Segments | None = None
    ) -> Tensor:
        """(1 + scale) * norm(x) + shift."""
        gain_B1D = 1.0 + scale_B1D
        return _scale_and_shift(
            self.unit(x_BSD), gain_B1D * self.weight, torch.addcmul(shift_B1D, gain_B1D, self.bias), segments
        )


Norm = RMSNorm | LayerNorm | DynamicErf


def _scale_and_shift(unit_BSD: Tensor, gain_B1D: Tensor, shift_B1D: Tensor, segments: Segments | None) -> Tensor:
    shift, gain = (spread(vector.to(unit_BSD.dtype), segments) for vector in (shift_B1D, gain_B1D))
    return torch.addcmul(shift, unit_BSD, gain)


class SwiGLU(nn.Module):
    """Gated MLP without biases."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class GELUMLP(nn.Module):
    """Plain MLP without biases, with the parameters of a SwiGLU of `swiglu_hidden_dim`: two matrices 3/2 as wide."""

    def __init__(self, dim: int, swiglu_hidden_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 3 * swiglu_hidden_dim // 2, bias=False)
        self.down = nn.Linear(3 * swiglu_hidden_dim // 2, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out."""
        out: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return out


def swiglu_width(dim: int) -> int:
    """Hidden width of the released models' MLPs: 4 * int(2 dim / 3), rounded up to a multiple of 128."""
    return 128 * math.ceil(4 * int(2 * dim / 3) / 128)
