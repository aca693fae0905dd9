"""Self-attention of the blocks: grouped-query as released, or multi-head latent; both with a sigmoid gate or without.

    Attention         q, k = rotate(norm(x Wq)), rotate(norm(x Wk))      out = (softmax(q k' / sqrt(K)) v * sigmoid(x Wg)) Wo
    LatentAttention   the same from compressed x Wdq and x Wdkv, positions in a part of the head of their own

Both come in parts (`queries`, `keys_and_values`, `finish`), so that streams with weights of their own attend jointly.
Shapes: B batch, S sequence, D width, N query heads, G key/value heads, K head width, V value width, P rotary pairs,
R and C width of compressed queries and of compressed keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.model.layers import RMSNorm
from pleinair.model.positions import rotate
from pleinair.model.segments import Segments

EXPLICIT_ATTENTION_TOKENS = 512
"""Longest key sequence that bfloat16 attention on a CPU computes with two matrix products where a backward pass follows;
see `attend`.
"""
MASKED = -1e4
"""Added to the score of a padding row: exp() of it is 0 in every dtype, and a wholly masked row stays finite."""

Mask = Tensor | Segments | None
"""Which rows are read: (B, S), True where valid; samples that share a row; or all."""
MixValues = Callable[[Tensor], Tensor]
"""From a block's own values to those it attends with."""


class Attention(nn.Module):
    """Grouped-query self-attention with normalised queries and keys and a sigmoid gate on its output."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, eps: float, gate: bool = True) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, self.head_dim * num_kv_heads, bias=False)
        self.to_v = nn.Linear(dim, self.head_dim * num_kv_heads, bias=False)
        self.to_gate = nn.Linear(dim, dim, bias=False) if gate else None
        self.norm_q = RMSNorm(self.head_dim, eps)
        self.norm_k = RMSNorm(self.head_dim, eps)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim, bias=False)])  # a list only for the released weights' names

    def forward(
        self,
        x_BSD: Tensor,
        rotations_SP2: Tensor | None = None,
        mask: Mask = None,
        mix_values: MixValues | None = None,
    ) -> Tensor:
        """Attend over S; rows where a mask is False are read by nobody."""
        return _attended(self, x_BSD, rotations_SP2, mask, mix_values)

    def queries(self, x_BSD: Tensor, rotations_SP2: Tensor | None) -> Tensor:
        """(B, S, N, K), normalised and rotated."""
        return _place(self.norm_q, self.to_q(x_BSD).unflatten(-1, (-1, self.head_dim)), rotations_SP2)

    def keys_and_values(self, x_BSD: Tensor, rotations_SP2: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both (B, S, G, K)."""
        k_BSGK, v_BSGK = (project(x_BSD).unflatten(-1, (-1, self.head_dim)) for project in (self.to_k, self.to_v))
        return _place(self.norm_k, k_BSGK, rotations_SP2), v_BSGK

    def finish(self, attended_BSNK: Tensor, x_BSD: Tensor) -> Tensor:
        """What attention gives back to the residual, (B, S, D)."""
        return _gated(attended_BSNK, x_BSD, self.to_gate, self.to_out[0])


def _attended(
    module: Attention | LatentAttention,
    x_BSD: Tensor,
    rotations_SP2: Tensor | None,
    mask: Mask,
    mix_values: MixValues | None,
) -> Tensor:
    queries = module.queries(x_BSD, rotations_SP2)
    keys, values = module.keys_and_values(x_BSD, rotations_SP2)
    values = values if mix_values is None else mix_values(values)
    return module.finish(attend(queries, keys, values, mask), x_BSD)


def _place(norm: RMSNorm, x_BSNK: Tensor, rotations_SP2: Tensor | None) -> Tensor:
    """Queries or keys, normalised and turned to their position, in the dtype they came in."""
    placed = norm(x_BSNK)
    return placed if rotations_SP2 is None else rotate(placed, rotations_SP2).to(x_BSNK.dtype)


def _gated(attended_BSNK: Tensor, x_BSD: Tensor, to_gate: nn.Linear | None, to_out: nn.Module) -> Tensor:
    out_BSD = attended_BSNK.flatten(-2)
    if to_gate is not None:
        out_BSD = out_BSD * torch.sigmoid(to_gate(x_BSD))
    out: Tensor = to_out(out_BSD)
    return out


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, eq. 9-19): keys and values of all heads from one
    compressed vector, queries from another, and positions in a rotary part whose key all heads share.

    A head of width K is [K - rotary_dim from the compressed vector | rotary_dim rotated]; DeepSeek-V2 appends the
    rotary part to a whole head instead. As there, the compressed vectors are normalised and not queries and keys.
    """

    def __init__(
        self, dim: int, num_heads: int, q_rank: int, kv_rank: int, rotary_dim: int, eps: float, gate: bool = True
    ) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.rotary_dim = rotary_dim
        content_dim = self.head_dim - rotary_dim
        self.compress_q = nn.Linear(dim, q_rank, bias=False)
        self.compress_kv = nn.Linear(dim, kv_rank, bias=False)
        self.norm_q = RMSNorm(q_rank, eps)
        self.norm_kv = RMSNorm(kv_rank, eps)
        self.to_q = nn.Linear(q_rank, dim, bias=False)
        self.to_k = nn.Linear(kv_rank, num_heads * content_dim, bias=False)
        self.to_v = nn.Linear(kv_rank, dim, bias=False)
        self.to_rotary_k = nn.Linear(dim, rotary_dim, bias=False)
        self.to_gate = nn.Linear(dim, dim, bias=False) if gate else None
        self.to_out = nn.ModuleList([nn.Linear(dim, dim, bias=False)])

    def forward(
        self,
        x_BSD: Tensor,
        rotations_SP2: Tensor | None = None,
        mask: Mask = None,
        mix_values: MixValues | None = None,
    ) -> Tensor:
        """Attend over S; rows where a mask is False are read by nobody."""
        return _attended(self, x_BSD, rotations_SP2, mask, mix_values)

    def queries(self, x_BSD: Tensor, rotations_SP2: Tensor | None) -> Tensor:
        """(B, S, N, K), the last `rotary_dim` of each head rotated."""
        q_BSNK: Tensor = self.to_q(self.norm_q(self.compress_q(x_BSD))).unflatten(-1, (-1, self.head_dim))
        if rotations_SP2 is None:
            return q_BSNK
        content, rotary = q_BSNK.split([self.head_dim - self.rotary_dim, self.rotary_dim], dim=-1)
        return torch.cat([content, rotate(rotary, rotations_SP2).to(content.dtype)], dim=-1)

    def keys_and_values(self, x_BSD: Tensor, rotations_SP2: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both (B, S, N, K); the rotated part of the keys is one for all heads."""
        compressed_BSC = self.norm_kv(self.compress_kv(x_BSD))
        v_BSNK: Tensor = self.to_v(compressed_BSC).unflatten(-1, (-1, self.head_dim))
        content = self.to_k(compressed_BSC).unflatten(-1, (-1, self.head_dim - self.rotary_dim))
        rotary = self.to_rotary_k(x_BSD).unsqueeze(-2)
        if rotations_SP2 is not None:
            rotary = rotate(rotary, rotations_SP2).to(content.dtype)
        return torch.cat([content, rotary.expand(*content.shape[:-1], -1)], dim=-1), v_BSNK

    def finish(self, attended_BSNK: Tensor, x_BSD: Tensor) -> Tensor:
        """What attention gives back to the residual, (B, S, D)."""
        return _gated(attended_BSNK, x_BSD, self.to_gate, self.to_out[0])


def attend(q_BSNK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask: Mask) -> Tensor:
    """Softmax attention, (B, S, N, K). N is a multiple of G; without a mask the fastest kernels stay eligible.

    The backward pass of torch's bfloat16 attention kernel for CPUs is slow on short sequences: forward and backward it
    takes 4 times as long as the explicit products at 80 tokens, 1.1 to 1.9 times at 512 (`benchmarks/model`). There
    `_attend_explicitly` takes over, but only for gradients: its forward pass alone takes 3 times as long at 320 tokens.
    """
    if isinstance(mask, Segments):
        return attend_segments(q_BSNK, k_BSGK, v_BSGK, mask)
    on_cpu_in_bfloat16 = q_BSNK.device.type == "cpu" and q_BSNK.dtype == torch.bfloat16
    if on_cpu_in_bfloat16 and torch.is_grad_enabled() and k_BSGK.shape[1] <= EXPLICIT_ATTENTION_TOKENS:
        return _attend_explicitly(q_BSNK, k_BSGK, v_BSGK, mask)
    repeats = q_BSNK.shape[2] // k_BSGK.shape[2]
    bias_B11S = None
    if mask is not None:
        # With a mask and enable_gqa together torch falls back to its slowest kernel; repeated heads keep the fast ones.
        k_BSGK, v_BSGK = k_BSGK.repeat_interleave(repeats, dim=2), v_BSGK.repeat_interleave(repeats, dim=2)
        bias_B11S = _mask_bias(mask, q_BSNK.dtype)[:, None, None]
    out_BNSK = F.scaled_dot_product_attention(
        q_BSNK.transpose(1, 2),
        k_BSGK.transpose(1, 2),
        v_BSGK.transpose(1, 2),
        attn_mask=bias_B11S,
        enable_gqa=repeats > 1 and mask is None,
    )
    return out_BNSK.transpose(1, 2)


def attend_segments(q_1SNK: Tensor, k_1SGK: Tensor, v_1SGK: Tensor, segments: Segments) -> Tensor:
    """Each sample of the row over itself alone, (1, S, N, K); the filling gets zeros.

    `parallelize` keeps it outside compiled graphs: what is compiled around it sees one shape, whatever the lengths.
    """
    sizes = [*segments.lengths, segments.filling]
    *samples, filling = zip(*(x.split(sizes, dim=1) for x in (q_1SNK, k_1SGK, v_1SGK)), strict=True)
    out = [attend(q, k, v, None) for q, k, v in samples]
    return torch.cat([*out, torch.zeros_like(filling[0])], dim=1)


def _attend_explicitly(q_BSNK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_BS: Tensor | None) -> Tensor:
    """The same with two batched matrix products; the query heads of a group are stacked as rows of one product."""
    batch, length, num_heads, head_dim = q_BSNK.shape
    groups = k_BSGK.shape[2]
    queries = q_BSNK.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).reshape(batch * groups, -1, head_dim)
    keys, values = (x.transpose(1, 2).reshape(batch * groups, length, head_dim) for x in (k_BSGK, v_BSGK))
    scale = 1.0 / math.sqrt(head_dim)
    if mask_BS is None:  # with beta = 0 nothing is added: 1.5 times as fast as adding a zero
        scores = torch.baddbmm(queries.new_zeros(()), queries, keys.transpose(1, 2), alpha=scale, beta=0)
    else:
        bias = _mask_bias(mask_BS, queries.dtype).repeat_interleave(groups, dim=0).unsqueeze(1)
        scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=scale)
    out = torch.bmm(scores.softmax(dim=-1), values)
    return out.view(batch, groups, num_heads // groups, length, head_dim).permute(0, 3, 1, 2, 4).flatten(2, 3)


def _mask_bias(mask_BS: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask_BS.shape, dtype=dtype, device=mask_BS.device).masked_fill_(~mask_BS, MASKED)
