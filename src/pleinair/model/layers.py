"""The pieces K2's blocks are made of: zero-centred RMSNorm, rotary positions, gated grouped-query attention, SwiGLU.

    Attention:  q, k = rotate(norm(x Wq)), rotate(norm(x Wk))      out = (softmax(q k' / sqrt(K)) v * sigmoid(x Wg)) Wo
    SwiGLU:     (silu(x Wgate) * x Wup) Wdown

Shapes: B batch, S sequence, D width, N query heads, G key/value heads, K head width, P rotary pairs (K / 2).
Norms and rotations are computed in float32 and leave in the dtype they came in; linear layers run in the dtype of the
weights, or in autocast's.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXPLICIT_ATTENTION_TOKENS = 512
"""Longest key sequence that bfloat16 attention on a CPU computes with two matrix products; see `attend`."""
MASKED = -1e4
"""Added to the score of a padding row: exp() of it is 0 in every dtype, and a wholly masked row stays finite."""


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight): the weight is stored around zero, so weight decay pulls the norm towards plain."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return (self.unit(x) * (1.0 + self.weight.float())).to(x.dtype)

    def unit(self, x: Tensor) -> Tensor:
        """x / rms(x), before the weight; for callers that fold the weight into a modulation."""
        x_float = x.float()
        mean_square = torch.linalg.vecdot(x_float, x_float).unsqueeze(-1) / x.shape[-1]
        return x * torch.rsqrt(mean_square + self.eps).to(x.dtype)

    def modulated(self, x_BSD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor) -> Tensor:
        """(1 + scale) * norm(x) + shift, the two gains multiplied before they meet the sequence.

        One pass over the sequence instead of three, and in the backward pass the gains' gradients are reduced once.
        """
        gain_B1D = (1.0 + scale_B1D) * (1.0 + self.weight.float())
        return torch.addcmul(shift_B1D.to(x_BSD.dtype), self.unit(x_BSD), gain_B1D.to(x_BSD.dtype))


@functools.lru_cache(maxsize=64)
def image_rotations(axes: tuple[int, int, int], theta: float, height: int, width: int, device: torch.device) -> Tensor:
    """Rotations (height * width, P, 2) of image tokens in row-major order, at positions (0, row, column): cos and sin.

    `axes` splits the head width over (frame, row, column). Angles are computed in float64, as in the released model.
    """
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = (torch.zeros_like(row), row, column)
    angles = [
        position.reshape(-1, 1).double() * theta ** (-torch.arange(0, dim, 2).double() / dim)
        for position, dim in zip(positions, axes, strict=True)
    ]
    angles_IP = torch.cat(angles, dim=-1)
    return torch.stack([angles_IP.cos(), angles_IP.sin()], dim=-1).float().to(device)


def rotate(x_BSNK: Tensor, rotations_SP2: Tensor) -> Tensor:
    """Rotate neighbouring pairs (x[2i], x[2i+1]) by their position's angles; float32 out."""
    pairs_BSNP2 = x_BSNK.float().reshape(*x_BSNK.shape[:-1], -1, 2)
    rotations_S1P2 = rotations_SP2.unsqueeze(1)
    if torch.compiler.is_compiling():  # inductor has no complex arithmetic, eager is 5 times faster with it
        a, b = pairs_BSNP2.unbind(-1)
        cos, sin = rotations_S1P2.unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs_BSNP2) * torch.view_as_complex(rotations_S1P2)).flatten(-2)


class Attention(nn.Module):
    """Grouped-query self-attention with normalised queries and keys and a sigmoid gate on its output."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, eps: float) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, self.head_dim * num_kv_heads, bias=False)
        self.to_v = nn.Linear(dim, self.head_dim * num_kv_heads, bias=False)
        self.to_gate = nn.Linear(dim, dim, bias=False)
        self.norm_q = RMSNorm(self.head_dim, eps)
        self.norm_k = RMSNorm(self.head_dim, eps)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim, bias=False)])  # a list only for the released weights' names

    def forward(self, x_BSD: Tensor, rotations_SP2: Tensor | None = None, mask_BS: Tensor | None = None) -> Tensor:
        """Attend over S; rows where `mask_BS` is False are read by nobody."""
        q_BSNK, k_BSGK, v_BSGK = (
            project(x_BSD).unflatten(-1, (-1, self.head_dim)) for project in (self.to_q, self.to_k, self.to_v)
        )
        q_BSNK, k_BSGK = self.norm_q(q_BSNK), self.norm_k(k_BSGK)
        if rotations_SP2 is not None:
            q_BSNK, k_BSGK = rotate(q_BSNK, rotations_SP2), rotate(k_BSGK, rotations_SP2)
        out_BSNK = attend(q_BSNK.to(v_BSGK.dtype), k_BSGK.to(v_BSGK.dtype), v_BSGK, mask_BS)
        out: Tensor = self.to_out[0](out_BSNK.flatten(-2) * torch.sigmoid(self.to_gate(x_BSD)))
        return out


def attend(q_BSNK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_BS: Tensor | None) -> Tensor:
    """Softmax attention, (B, S, N, K). N is a multiple of G; without a mask the fastest kernels stay eligible.

    The backward pass of torch's bfloat16 attention kernel for CPUs is slow on short sequences: forward and backward it
    takes 4 times as long as the explicit products at 80 tokens, 1.1 to 1.9 times at 512 (`benchmarks/model`). There
    `_attend_explicitly` takes over.
    """
    on_cpu_in_bfloat16 = q_BSNK.device.type == "cpu" and q_BSNK.dtype == torch.bfloat16
    if on_cpu_in_bfloat16 and k_BSGK.shape[1] <= EXPLICIT_ATTENTION_TOKENS:
        return _attend_explicitly(q_BSNK, k_BSGK, v_BSGK, mask_BS)
    repeats = q_BSNK.shape[2] // k_BSGK.shape[2]
    bias_B11S = None
    if mask_BS is not None:
        # With a mask and enable_gqa together torch falls back to its slowest kernel; repeated heads keep the fast ones.
        k_BSGK, v_BSGK = k_BSGK.repeat_interleave(repeats, dim=2), v_BSGK.repeat_interleave(repeats, dim=2)
        bias_B11S = _mask_bias(mask_BS, q_BSNK.dtype)[:, None, None]
    out_BNSK = F.scaled_dot_product_attention(
        q_BSNK.transpose(1, 2),
        k_BSGK.transpose(1, 2),
        v_BSGK.transpose(1, 2),
        attn_mask=bias_B11S,
        enable_gqa=repeats > 1 and mask_BS is None,
    )
    return out_BNSK.transpose(1, 2)


def _attend_explicitly(q_BSNK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_BS: Tensor | None) -> Tensor:
    """The same with two batched matrix products; the query heads of a group are stacked as rows of one product."""
    batch, length, num_heads, head_dim = q_BSNK.shape
    groups = k_BSGK.shape[2]
    queries = q_BSNK.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).reshape(batch * groups, -1, head_dim)
    keys, values = (x.transpose(1, 2).reshape(batch * groups, length, head_dim) for x in (k_BSGK, v_BSGK))
    if mask_BS is None:
        bias = queries.new_zeros(())
    else:
        bias = _mask_bias(mask_BS, queries.dtype).repeat_interleave(groups, dim=0).unsqueeze(1)
    scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=1.0 / math.sqrt(head_dim))
    out = torch.bmm(scores.softmax(dim=-1), values)
    return out.view(batch, groups, num_heads // groups, length, head_dim).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _mask_bias(mask_BS: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask_BS.shape, dtype=dtype, device=mask_BS.device).masked_fill_(~mask_BS, MASKED)


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


def swiglu_width(dim: int) -> int:
    """Hidden width of the released models' MLPs: 4 * int(2 dim / 3), rounded up to a multiple of 128."""
    return 128 * math.ceil(4 * int(2 * dim / 3) / 128)
