"""The K2 transformer: text and image tokens in one stream, one shared timestep modulation, as configuration.

    text features --TextFusion--> --txt_in--> text tokens  .
                                                            >-- [text | image] -> N blocks -> image tokens -> velocity
    latents --patchify--> --img_in------> image tokens     '
    timestep --sinusoid, MLP--> embedding --time_mod_proj--> 6 vectors, shared; every block adds its own table

Conventions (Krea 2 report; checked against diffusers in tests/model): timestep in [0, 1] and 1 is noise; the output is
the velocity noise - x0; text tokens sit at rotary position 0 and image tokens at (0, row, column). Padded text rows are
dropped before any block sees them, which changes nothing in the output and most of the cost.

Attribute names are those of diffusers' Krea2Transformer2DModel, so a state dict of one loads into the other. Nothing
here knows about parallelism, precision or checkpointing: those are applied from outside, block by block.

Shapes: B batch, C latent channels, H, W latent height and width, T text tokens, L text-encoder layers, I image tokens,
S = T + I, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.model.layers import Attention, RMSNorm, SwiGLU, image_rotations, swiglu_width
from pleinair.model.text_fusion import TextFusion
from pleinair.records.errors import ConfigError

_MAY_BE_ZERO = ("num_layerwise_text_blocks", "num_refiner_text_blocks")
SMALLEST_HEAD_DIM = 16
"""Below this the released split of a head over the rotary axes leaves nothing for rows and columns."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of a K2 transformer; the defaults are the released 12.8-billion-parameter model's."""

    width: int = 6144
    """Features per token."""
    num_layers: int = 28
    """Transformer blocks."""
    num_heads: int = 48
    """Query heads; head width is width / num_heads."""
    num_kv_heads: int = 12
    """Key and value heads: num_heads for plain multi-head attention, fewer for grouped-query attention."""
    mlp_width: int | None = None
    """Hidden width of the SwiGLU; None is the released rule (`swiglu_width`)."""
    in_channels: int = 64
    """Values per image token: latent channels * patch_size ** 2."""
    patch_size: int = 2
    """Side of the square of latent positions that becomes one token."""
    timestep_dim: int = 256
    """Width of the sinusoid of the timestep."""
    text_dim: int = 2560
    """Width of the text encoder's hidden states."""
    num_text_layers: int = 12
    """Hidden states taken from the text encoder per token."""
    text_num_heads: int = 20
    """Query heads of text fusion."""
    text_num_kv_heads: int = 20
    """Key and value heads of text fusion."""
    text_mlp_width: int | None = None
    """Hidden width of text fusion's SwiGLU; None is the released rule."""
    num_layerwise_text_blocks: int = 2
    """Text fusion blocks that attend over layers."""
    num_refiner_text_blocks: int = 2
    """Text fusion blocks that attend over tokens."""
    rope_axes: tuple[int, int, int] | None = None
    """Split of the head width over (frame, row, column); None is the released rule, 32/48/48 for 128."""
    rope_theta: float = 1000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            smallest = 0 if field.name in _MAY_BE_ZERO else 1
            if isinstance(value, int) and value < smallest:
                raise ConfigError(f"{field.name} is {value}: give at least {smallest}")
        if self.rope_theta <= 1 or self.norm_eps <= 0:
            raise ConfigError(
                f"rope_theta is {self.rope_theta} and norm_eps {self.norm_eps}: give more than 1 and more than 0"
            )
        _check_heads("width", self.width, self.num_heads, self.num_kv_heads, "")
        _check_heads("text_dim", self.text_dim, self.text_num_heads, self.text_num_kv_heads, "text_")
        if self.in_channels % self.patch_size**2:
            raise ConfigError(
                f"in_channels is {self.in_channels}: it must be latent channels * patch_size ** 2, "
                f"a multiple of {self.patch_size**2}"
            )
        if self.timestep_dim % 2:
            raise ConfigError(f"timestep_dim is {self.timestep_dim}: give an even number, half cosines and half sines")
        self._check_rope()

    def _check_rope(self) -> None:
        if self.rope_axes is None and (self.head_dim < SMALLEST_HEAD_DIM or self.head_dim % 2):
            raise ConfigError(
                f"head width is {self.head_dim} (width {self.width} / num_heads {self.num_heads}): "
                f"give an even one of at least {SMALLEST_HEAD_DIM}, or set rope_axes"
            )
        if any(dim < 0 or dim % 2 for dim in self.axes) or sum(self.axes) != self.head_dim:
            raise ConfigError(f"rope_axes is {self.axes}: give three even numbers that add up to {self.head_dim}")

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.width // self.num_heads

    @property
    def latent_channels(self) -> int:
        """Channels of the latents the model reads and of the velocity it returns."""
        return self.in_channels // self.patch_size**2

    @property
    def axes(self) -> tuple[int, int, int]:
        """Split of a head over (frame, row, column)."""
        if self.rope_axes is not None:
            return self.rope_axes
        unit = 6 * (self.head_dim // 16)
        return (self.head_dim - 2 * unit, unit, unit)

    @property
    def hidden_width(self) -> int:
        """Hidden width of the blocks' MLPs."""
        return self.mlp_width if self.mlp_width is not None else swiglu_width(self.width)

    @property
    def text_hidden_width(self) -> int:
        """Hidden width of text fusion's MLPs."""
        return self.text_mlp_width if self.text_mlp_width is not None else swiglu_width(self.text_dim)


def _check_heads(name: str, width: int, num_heads: int, num_kv_heads: int, prefix: str) -> None:
    if width % num_heads:
        raise ConfigError(f"{name} is {width}: it must be a multiple of {prefix}num_heads, {num_heads}")
    if num_heads % num_kv_heads:
        raise ConfigError(f"{prefix}num_kv_heads is {num_kv_heads}: it must divide {prefix}num_heads, {num_heads}")


@dataclass(frozen=True)
class TextTokens:
    """A batch of prompts ready for `Transformer.denoise`: made once, read at every denoising step."""

    tokens_BTD: Tensor
    """Text tokens in the transformer's width, each prompt's valid rows first."""
    mask_BT: Tensor | None
    """True where a row is valid; None where all are."""


class Transformer(nn.Module):
    """Velocity of noisy latents, given a timestep and text features."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, eps = config.width, config.norm_eps
        self.img_in = nn.Linear(config.in_channels, width)
        self.time_embed = TimestepEmbedding(config.timestep_dim, width)
        self.time_mod_proj = nn.Linear(width, 6 * width)
        self.text_fusion = TextFusion(
            config.num_text_layers,
            config.text_dim,
            config.text_num_heads,
            config.text_num_kv_heads,
            config.text_hidden_width,
            config.num_layerwise_text_blocks,
            config.num_refiner_text_blocks,
            eps,
        )
        self.txt_in = TextProjection(config.text_dim, width, eps)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        self.final_layer = FinalLayer(width, config.in_channels, eps)
        initialise(self)

    def forward(
        self, latents_BCHW: Tensor, timestep_B: Tensor, text_features_BTLD: Tensor, text_mask_BT: Tensor | None = None
    ) -> Tensor:
        """Velocity (B, C, H, W): `denoise` of `encode_text`. Raises ValueError for shapes that do not fit."""
        return self.denoise(latents_BCHW, timestep_B, self.encode_text(text_features_BTLD, text_mask_BT))

    def encode_text(self, text_features_BTLD: Tensor, text_mask_BT: Tensor | None = None) -> TextTokens:
        """Text features to tokens, once per prompt: they do not depend on latents or timestep.

        `text_mask_BT` is True where a row is valid; padding may stand anywhere and is dropped.
        """
        config = self.config
        if text_features_BTLD.shape[2:] != (config.num_text_layers, config.text_dim):
            raise ValueError(
                f"text features have shape {tuple(text_features_BTLD.shape)}: "
                f"this model reads (batch, tokens, {config.num_text_layers}, {config.text_dim})"
            )
        if text_mask_BT is not None and text_mask_BT.shape != text_features_BTLD.shape[:2]:
            raise ValueError(
                f"text mask has shape {tuple(text_mask_BT.shape)}: give one flag per text row, "
                f"{tuple(text_features_BTLD.shape[:2])}"
            )
        mask_BT = None if text_mask_BT is None else text_mask_BT.bool()
        features_BTLD = text_features_BTLD.to(compute_dtype(self.text_fusion.projector.weight))
        fused_BTD, packed_mask_BT = self.text_fusion(features_BTLD, mask_BT)
        return TextTokens(self.txt_in(fused_BTD), packed_mask_BT)

    def denoise(self, latents_BCHW: Tensor, timestep_B: Tensor, text: TextTokens) -> Tensor:
        """Velocity (B, C, H, W) of latents at `timestep_B` in [0, 1], where 1 is noise."""
        patch_size, (height, width) = self.config.patch_size, self._grid(latents_BCHW)
        embedding_B1D = self.time_embed(timestep_B)
        modulation_B6D = self.time_mod_proj(F.gelu(embedding_B1D, approximate="tanh")).unflatten(-1, (6, -1)).squeeze(1)

        image_BID = self.img_in(patchify(latents_BCHW, patch_size).to(compute_dtype(self.img_in.weight)))
        x_BSD = torch.cat([text.tokens_BTD.to(image_BID.dtype), image_BID], dim=1)
        num_text, num_image = text.tokens_BTD.shape[1], height * width
        rotations_SP2 = self._rotations(num_text, height, width, x_BSD.device)
        mask_BS = None if text.mask_BT is None else F.pad(text.mask_BT, (0, num_image), value=True)
        for block in self.transformer_blocks:
            x_BSD = block(x_BSD, modulation_B6D, rotations_SP2, mask_BS)
        out_BIP = self.final_layer(x_BSD[:, num_text:], embedding_B1D)
        return unpatchify(out_BIP, height, width, patch_size)

    def _grid(self, latents_BCHW: Tensor) -> tuple[int, int]:
        """Rows and columns of image tokens."""
        patch_size, channels = self.config.patch_size, self.config.latent_channels
        if latents_BCHW.ndim != 4 or latents_BCHW.shape[1] != channels:
            raise ValueError(
                f"latents have shape {tuple(latents_BCHW.shape)}: this model reads (batch, {channels}, height, width)"
            )
        height, width = latents_BCHW.shape[2:]
        if height % patch_size or width % patch_size:
            raise ValueError(
                f"latents are {height} x {width}: both sides must be multiples of patch_size, {patch_size}"
            )
        return height // patch_size, width // patch_size

    def _rotations(self, num_text: int, height: int, width: int, device: torch.device) -> Tensor:
        image_IP2 = image_rotations(self.config.axes, self.config.rope_theta, height, width, device)
        text_TP2 = image_IP2.new_zeros(num_text, *image_IP2.shape[1:])
        text_TP2[..., 0] = 1.0  # cos 0, sin 0: text stays where it is
        return torch.cat([text_TP2, image_IP2])


class TransformerBlock(nn.Module):
    """Modulated attention and MLP; the modulation is the shared one plus this block's table."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(6, config.width))
        self.norm1 = RMSNorm(config.width, config.norm_eps)
        self.norm2 = RMSNorm(config.width, config.norm_eps)
        self.attn = Attention(config.width, config.num_heads, config.num_kv_heads, config.norm_eps)
        self.ff = SwiGLU(config.width, config.hidden_width)

    def forward(self, x_BSD: Tensor, modulation_B6D: Tensor, rotations_SP2: Tensor, mask_BS: Tensor | None) -> Tensor:
        """Order of the six: scale, shift, gate of attention, then of the MLP; gates have no +1 and no squashing."""
        own_B6D = (modulation_B6D + self.scale_shift_table).to(x_BSD.dtype)
        scale1, shift1, gate1, scale2, shift2, gate2 = own_B6D.unsqueeze(2).unbind(1)
        attended_BSD = self.attn(self.norm1.modulated(x_BSD, scale1, shift1), rotations_SP2, mask_BS)
        x_BSD = torch.addcmul(x_BSD, gate1, attended_BSD)
        return torch.addcmul(x_BSD, gate2, self.ff(self.norm2.modulated(x_BSD, scale2, shift2)))


class TimestepEmbedding(nn.Module):
    """Sinusoid of 1000 t, cosines first, through a two-layer MLP."""

    def __init__(self, sinusoid_dim: int, width: int) -> None:
        super().__init__()
        self.sinusoid_dim = sinusoid_dim
        self.linear_1 = nn.Linear(sinusoid_dim, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, timestep_B: Tensor) -> Tensor:
        """(B, 1, D), to be broadcast over tokens."""
        half = self.sinusoid_dim // 2
        frequencies = torch.exp(-math.log(1e4) * torch.arange(half, device=timestep_B.device) / half)
        angles_B1F = 1000.0 * timestep_B.float()[:, None, None] * frequencies
        sinusoid_B1F = torch.cat([angles_B1F.cos(), angles_B1F.sin()], dim=-1).to(self.linear_1.weight.dtype)
        embedding: Tensor = self.linear_2(F.gelu(self.linear_1(sinusoid_B1F), approximate="tanh"))
        return embedding


class TextProjection(nn.Module):
    """Fused text features to the transformer's width."""

    def __init__(self, text_dim: int, width: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(text_dim, eps)
        self.linear_1 = nn.Linear(text_dim, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, text_BTD: Tensor) -> Tensor:
        """(B, T, width)."""
        out: Tensor = self.linear_2(F.gelu(self.linear_1(self.norm(text_BTD)), approximate="tanh"))
        return out


class FinalLayer(nn.Module):
    """Modulated norm and the projection to velocity; its scale and shift come from the timestep embedding itself."""

    def __init__(self, width: int, out_channels: int, eps: float) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(2, width))
        self.norm = RMSNorm(width, eps)
        self.linear = nn.Linear(width, out_channels)

    def forward(self, x_BID: Tensor, embedding_B1D: Tensor) -> Tensor:
        """(B, I, out_channels)."""
        scale_B1D, shift_B1D = (embedding_B1D + self.scale_shift_table).to(x_BID.dtype).chunk(2, dim=1)
        out: Tensor = self.linear(self.norm.modulated(x_BID, scale_B1D, shift_B1D))
        return out


def patchify(latents_BCHW: Tensor, patch_size: int) -> Tensor:
    """Tokens (B, I, C * patch_size ** 2) in row-major order, channels slowest inside a token."""
    batch, channels, height, width = latents_BCHW.shape
    rows, columns = height // patch_size, width // patch_size
    split = latents_BCHW.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch_size**2)


def unpatchify(tokens_BIP: Tensor, rows: int, columns: int, patch_size: int) -> Tensor:
    """The inverse of `patchify`."""
    split = tokens_BIP.reshape(tokens_BIP.shape[0], rows, columns, -1, patch_size, patch_size)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens_BIP), -1, rows * patch_size, columns * patch_size)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """What linear layers compute in here: autocast's dtype inside autocast, else the weights' own."""
    device_type = weight.device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):  # of meta tensors torch cannot be asked
        return weight.dtype
    return torch.get_autocast_dtype(device_type)


@torch.no_grad()
def initialise(model: Transformer) -> None:
    """Weights for training from scratch; loading a checkpoint overwrites them.

    Linear layers keep torch's default, uniform within 1 / sqrt(inputs), the shared modulation and the output layer
    included; text layers are mixed equally. adaLN-Zero (modulation and output zero) starts slower here: after 400 steps
    of the demo at 32 px its loss is 4% higher (docs/model.md).
    """
    nn.init.constant_(model.text_fusion.projector.weight, 1.0 / model.config.num_text_layers)


def count_parameters(config: TransformerConfig) -> int:
    """Parameters of a model of this configuration, without allocating it."""
    with torch.device("meta"):
        model = Transformer(config)
    return sum(parameter.numel() for parameter in model.parameters())
