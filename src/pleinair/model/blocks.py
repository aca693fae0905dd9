"""The transformer's blocks: what a configuration's switches build, and how a block runs.

    x = x + gate1 * attention((1 + scale1) norm1(x) + shift1)          single, released
    x = x + gate2 * mlp((1 + scale2) norm2(x) + shift2)
    x = x + gate (attention(y) + mlp(y)),  y = (1 + scale) norm1(x) + shift          parallel
    two such sets of weights, one for text and one for image, around one joint attention          dual

Shapes: B batch, S sequence (text first), D width, M modulation vectors, P rotary pairs, G key/value heads, K head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pleinair.model.architecture import TransformerConfig
from pleinair.model.attention import Attention, LatentAttention, Mask, MixValues, attend
from pleinair.model.layers import GELUMLP, DynamicErf, LayerNorm, Norm, RMSNorm, SwiGLU
from pleinair.model.segments import Segments, spread


def make_norm(config: TransformerConfig) -> Norm:
    """The norm over the width that blocks and the final layer use."""
    match config.norm:
        case "rms_zero_centred":
            return RMSNorm(config.width, config.norm_eps)
        case "rms":
            return RMSNorm(config.width, config.norm_eps, centre=0.0)
        case "layer":
            return LayerNorm(config.width, config.norm_eps)
        case "derf":
            return DynamicErf(config.width)


def make_attention(config: TransformerConfig) -> Attention | LatentAttention:
    """The blocks' attention."""
    width, heads, eps = config.width, config.num_heads, config.norm_eps
    match config.attention:
        case "gqa":
            return Attention(width, heads, config.num_kv_heads, eps, config.gate)
        case "mla":
            return LatentAttention(width, heads, config.q_rank, config.kv_rank, config.rotary_dim, eps, config.gate)


def make_mlp(config: TransformerConfig) -> SwiGLU | GELUMLP:
    """The blocks' MLP."""
    match config.mlp:
        case "swiglu":
            return SwiGLU(config.width, config.hidden_width)
        case "gelu":
            return GELUMLP(config.width, config.hidden_width)


def make_block(config: TransformerConfig, index: int) -> nn.Module:
    """Block `index` of the transformer."""
    if index >= config.dual_layers:
        block: TransformerBlock | DualBlock = TransformerBlock(config)
    else:
        block = DualBlock(config, text_ends=index == config.num_layers - 1)
    return ValueResidual(block, is_first=index == 0) if config.value_residual else block


class Modulation(NamedTuple):
    """What the timestep does to one branch of a block; each vector is (B, 1, D)."""

    scale: Tensor
    shift: Tensor
    gate: Tensor


class TransformerBlock(nn.Module):
    """Attention and MLP, modulated by the shared vectors plus this block's table."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, vectors, rank = config.width, config.modulation_vectors, config.laurel_rank
        modulated = config.timestep == "adaln"
        has_table, has_projection = (modulated and config.modulation == kind for kind in ("bias", "mlp"))
        self.scale_shift_table = nn.Parameter(torch.zeros(vectors, width)) if has_table else None
        self.modulation = nn.Linear(width, vectors * width) if has_projection else None
        self.norm1 = make_norm(config)
        self.norm2 = None if config.stream == "parallel" else make_norm(config)
        self.attn = make_attention(config)
        self.ff = make_mlp(config)
        self.laurel1 = Laurel(width, rank) if rank else None
        self.laurel2 = Laurel(width, rank) if rank and self.norm2 is not None else None

    def forward(
        self,
        x_BSD: Tensor,
        conditioning: Tensor | None,
        rotations_SP2: Tensor,
        mask: Mask = None,
        num_text: int = 0,
        mix_values: MixValues | None = None,
    ) -> Tensor:
        """`conditioning` is the shared modulation (B, M, D); with a projection per block its input (B, D)."""
        segments = mask if isinstance(mask, Segments) else None
        vectors = self.vectors(conditioning, x_BSD.dtype)
        inner_BSD = modulate(self.norm1, x_BSD, vectors[0], segments)
        attended_BSD = self.attn(inner_BSD, rotations_SP2, mask, mix_values)
        return self.after_attention(x_BSD, inner_BSD, attended_BSD, vectors, segments)

    def vectors(self, conditioning: Tensor | None, dtype: torch.dtype) -> list[Modulation] | list[None]:
        """One per norm. Order: scale, shift, gate of attention, then of the MLP; no +1 on gates and no squashing."""
        if conditioning is None:
            return [None, None]
        if self.scale_shift_table is not None:
            own_BMD = conditioning + self.scale_shift_table
        else:
            assert self.modulation is not None
            own_BMD = self.modulation(conditioning).unflatten(-1, (-1, conditioning.shape[-1]))
        vectors = own_BMD.to(dtype).unsqueeze(2).unbind(1)
        return [Modulation(*vectors[i : i + 3]) for i in range(0, len(vectors), 3)]

    def after_attention(
        self,
        x_BSD: Tensor,
        inner_BSD: Tensor,
        attended_BSD: Tensor,
        vectors: list[Modulation] | list[None],
        segments: Segments | None = None,
    ) -> Tensor:
        """The first residual and the MLP; `inner_BSD` is what attention read."""
        if self.norm2 is None:
            return add(x_BSD, attended_BSD + self.ff(inner_BSD), vectors[0], segments, self.laurel1)
        x_BSD = add(x_BSD, attended_BSD, vectors[0], segments, self.laurel1)
        inner_BSD = modulate(self.norm2, x_BSD, vectors[1], segments)
        return add(x_BSD, self.ff(inner_BSD), vectors[1], segments, self.laurel2)


class DualBlock(nn.Module):
    """Weights of its own for text and for image, joint attention (MMDiT: Esser et al., arXiv:2403.03206, fig. 2b).

    The timestep's shared vectors are those of single blocks; each stream adds its own table.
    """

    def __init__(self, config: TransformerConfig, text_ends: bool) -> None:
        """`text_ends`: no block follows, so text is only attended to and keeps no weights for an output of its own."""
        super().__init__()
        self.text_ends = text_ends
        self.text = TransformerBlock(config)
        self.image = TransformerBlock(config)
        if text_ends:
            _keep_keys_and_values(self.text)

    def forward(
        self,
        x_BSD: Tensor,
        conditioning: Tensor | None,
        rotations_SP2: Tensor,
        mask: Mask = None,
        num_text: int = 0,
        mix_values: MixValues | None = None,
    ) -> Tensor:
        """As `TransformerBlock`, the first `num_text` tokens through the text weights."""
        streams, sizes = (self.text, self.image), [num_text, x_BSD.shape[1] - num_text]
        x, rotations = x_BSD.split(sizes, dim=1), rotations_SP2.split(sizes)
        vectors = [stream.vectors(conditioning, x_BSD.dtype) for stream in streams]
        inner = [modulate(s.norm1, own_x, own[0]) for s, own_x, own in zip(streams, x, vectors, strict=True)]
        readers = range(1 if self.text_ends else 0, 2)
        queries = torch.cat([streams[i].attn.queries(inner[i], rotations[i]) for i in readers], dim=1)
        pairs = [s.attn.keys_and_values(y, r) for s, y, r in zip(streams, inner, rotations, strict=True)]
        keys, values = (torch.cat(own, dim=1) for own in zip(*pairs, strict=True))
        values = values if mix_values is None else mix_values(values)
        attended = attend(queries, keys, values, mask).split([sizes[i] for i in readers], dim=1)
        out = list(x)
        for i, own_attended in zip(readers, attended, strict=True):
            update = streams[i].attn.finish(own_attended, inner[i])
            out[i] = streams[i].after_attention(x[i], inner[i], update, vectors[i])
        return torch.cat(out, dim=1)


def _keep_keys_and_values(text: TransformerBlock) -> None:
    text.norm2 = text.laurel1 = text.laurel2 = None
    del text.ff
    for name in ("compress_q", "to_q", "norm_q", "to_gate", "to_out"):
        if hasattr(text.attn, name):
            delattr(text.attn, name)


class ValueResidual(nn.Module):
    """A block whose values are mixed with the first block's (Zhou et al., "Value residual learning", arXiv:2410.17897):
    v = (1 - share) v + share v_first, `share` learned per block and 1/2 at first.
    """

    def __init__(self, block: nn.Module, is_first: bool) -> None:
        super().__init__()
        self.block = block
        self.share = None if is_first else nn.Parameter(torch.full((1,), 0.5))

    def forward(
        self,
        x_BSD: Tensor,
        conditioning: Tensor | None,
        rotations_SP2: Tensor,
        mask: Mask,
        num_text: int,
        first_BSGK: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """What the block gives, and of the first block its values, for the blocks after it."""
        kept: list[Tensor] = []

        def mix_values(own_BSGK: Tensor) -> Tensor:
            if first_BSGK is None or self.share is None:
                kept.append(own_BSGK.clone())  # FSDP hangs hooks on what a block returns, which a view can lose
                return own_BSGK
            return torch.lerp(own_BSGK, first_BSGK, self.share.to(own_BSGK.dtype))

        x_BSD = self.block(x_BSD, conditioning, rotations_SP2, mask, num_text, mix_values)
        return x_BSD, kept[0] if kept else None


class Laurel(nn.Module):
    """x + (x A) B with A of `rank` columns, in a residual's place (Menghani et al., "LAuReL", arXiv:2411.07501, the
    low-rank variant). B starts at zero, so a new model is one without.
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, dim, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out."""
        out: Tensor = x + self.up(self.down(x))
        return out


def modulate(norm: Norm, x_BSD: Tensor, vectors: Modulation | None, segments: Segments | None = None) -> Tensor:
    """What a branch reads."""
    if vectors is None:
        out: Tensor = norm(x_BSD)
        return out
    return norm.modulated(x_BSD, vectors.scale, vectors.shift, segments)


def add(
    x_BSD: Tensor, branch_BSD: Tensor, vectors: Modulation | None, segments: Segments | None, laurel: Laurel | None
) -> Tensor:
    """A branch's output onto the residual."""
    residual_BSD = x_BSD if laurel is None else laurel(x_BSD)
    if vectors is None:
        return residual_BSD + branch_BSD
    return torch.addcmul(residual_BSD, spread(vectors.gate, segments), branch_BSD)
