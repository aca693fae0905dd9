"""The K2 transformer: text and image tokens in one stream, one shared timestep modulation, as configuration.

    text features --TextFusion--> --txt_in--> text tokens  .
                                                            >-- [text | image] -> N blocks -> image tokens -> velocity
    latents --patchify--> --img_in------> image tokens     '
    timestep --sinusoid, MLP--> embedding --time_mod_proj--> 6 vectors, shared; every block adds its own table

Conventions (Krea 2 report; checked against diffusers in tests/model): timestep in [0, 1] and 1 is noise; the output is
the velocity noise - x0; text tokens sit at rotary position 0 and image tokens at (0, row, column). Padded text rows are
dropped before any block sees them, which changes nothing in the output and most of the cost. That is the released
model; what its switches change is in architecture.py, and what they build in blocks.py.

Attribute names are those of diffusers' Krea2Transformer2DModel, so a state dict of one loads into the other. Nothing
here knows about parallelism, precision or checkpointing: those are applied from outside, block by block.

Shapes: B batch, C latent channels, H, W latent height and width, T text tokens, L text-encoder layers, I image tokens,
S = T + I, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.model.architecture import TransformerConfig
from pleinair.model.attention import Mask
from pleinair.model.blocks import make_block, make_norm
from pleinair.model.layers import RMSNorm
from pleinair.model.packed_text import PackedText, images_of, interleave
from pleinair.model.positions import rotations, text_rotations
from pleinair.model.segments import segments_of
from pleinair.model.text_fusion import TextFusion

__all__ = ["TextTokens", "Transformer", "TransformerConfig", "count_parameters", "patchify", "unpatchify"]


@dataclass(frozen=True)
class TextTokens:
    """A batch of prompts ready for `Transformer.denoise`: made once, read at every denoising step."""

    tokens_BTD: Tensor
    """Text tokens in the transformer's width, each prompt's valid rows first; packed prompts are one row."""
    mask_BT: Tensor | None
    """True where a row is valid; None where all are."""
    lengths: tuple[int, ...] | None = None
    """Rows of each prompt where prompts are packed end to end."""


class Transformer(nn.Module):
    """Velocity of noisy latents, given a timestep and text features."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, eps = config.width, config.norm_eps
        modulated, shares_modulation = config.timestep == "adaln", config.modulation == "bias"
        self.img_in = nn.Linear(config.in_channels, width)
        self.time_embed = None if config.timestep == "none" else TimestepEmbedding(config.timestep_dim, width)
        self.time_mod_proj = (
            nn.Linear(width, config.modulation_vectors * width) if modulated and shares_modulation else None
        )
        self.time_tokens_proj = nn.Linear(width, config.timestep_tokens * width) if config.timestep_tokens else None
        self.text_fusion = TextFusion(
            config.num_text_layers,
            config.text_dim,
            config.text_num_heads,
            config.text_num_kv_heads,
            config.text_hidden_width,
            config.num_layerwise_text_blocks,
            config.num_refiner_text_blocks,
            eps,
            last_layer_only=config.text_features == "last",
        )
        self.txt_in = TextProjection(config.text_dim, width, eps)
        self.transformer_blocks = nn.ModuleList(make_block(config, index) for index in range(config.num_layers))
        self.final_layer = FinalLayer(config)
        initialise(self)

    def forward(
        self,
        latents_BCHW: Tensor,
        timestep_B: Tensor,
        text_features: Tensor | PackedText,
        text_mask_BT: Tensor | None = None,
    ) -> Tensor:
        """Velocity (B, C, H, W): `denoise` of `encode_text`. Raises ValueError for shapes that do not fit."""
        return self.denoise(latents_BCHW, timestep_B, self.encode_text(text_features, text_mask_BT))

    def encode_text(self, text_features: Tensor | PackedText, text_mask_BT: Tensor | None = None) -> TextTokens:
        """Text features (B, T, L, D), or packed ones, to tokens, once per prompt: latents and timestep have no part.

        `text_mask_BT` is True where a row is valid; padding may stand anywhere and is dropped. Packed features have
        no padding to mask.
        """
        dtype = compute_dtype(self.txt_in.linear_1.weight)
        if isinstance(text_features, PackedText):
            self._check_text(text_features.features_RLD, text_mask_BT, ("rows",))
            fused_RD, _ = self.text_fusion(text_features.features_RLD.to(dtype), None, text_features.lengths)
            return TextTokens(self.txt_in(fused_RD).unsqueeze(0), None, text_features.lengths)
        self._check_text(text_features, text_mask_BT, ("batch", "tokens"))
        mask_BT = None if text_mask_BT is None else text_mask_BT.bool()
        fused_BTD, packed_mask_BT = self.text_fusion(text_features.to(dtype), mask_BT)
        return TextTokens(self.txt_in(fused_BTD), packed_mask_BT)

    def denoise(self, latents_BCHW: Tensor, timestep_B: Tensor, text: TextTokens) -> Tensor:
        """Velocity (B, C, H, W) of latents at `timestep_B` in [0, 1], where 1 is noise."""
        patch_size, (height, width) = self.config.patch_size, self._grid(latents_BCHW)
        embedding_B1D = None if self.time_embed is None else self.time_embed(timestep_B)
        image_BID = self.img_in(patchify(latents_BCHW, patch_size).to(compute_dtype(self.img_in.weight)))
        if text.lengths is None:
            x_BID = self._run_joined(image_BID, embedding_B1D, text, height, width)
        else:
            x_BID = self._run_packed(image_BID, embedding_B1D, text.tokens_BTD[0], text.lengths, height, width)
        return unpatchify(self.final_layer(x_BID, embedding_B1D), height, width, patch_size)

    def _run_joined(
        self, image_BID: Tensor, embedding_B1D: Tensor | None, text: TextTokens, height: int, width: int
    ) -> Tensor:
        """Image tokens after the blocks, over [timestep | text | image] of each sample."""
        tokens_BTD, mask_BT = text.tokens_BTD.to(image_BID.dtype), text.mask_BT
        if self.time_tokens_proj is not None and embedding_B1D is not None:
            time_BKD = self.time_tokens_proj(gelu(embedding_B1D)).unflatten(-1, (-1, image_BID.shape[-1])).squeeze(1)
            tokens_BTD = torch.cat([time_BKD.to(image_BID.dtype), tokens_BTD], dim=1)
            mask_BT = None if mask_BT is None else F.pad(mask_BT, (time_BKD.shape[1], 0), value=True)
        num_text, num_image = tokens_BTD.shape[1], height * width
        rotations_SP2 = rotations(self.config, num_text, height, width, image_BID.device)
        mask_BS = None if mask_BT is None else F.pad(mask_BT, (0, num_image), value=True)
        x_BSD = torch.cat([tokens_BTD, image_BID], dim=1)
        return self._run_blocks(x_BSD, embedding_B1D, rotations_SP2, mask_BS, num_text)[:, num_text:]

    def _run_packed(
        self,
        image_BID: Tensor,
        embedding_B1D: Tensor | None,
        text_RD: Tensor,
        lengths: tuple[int, ...],
        height: int,
        width: int,
    ) -> Tensor:
        """The same with all samples in one row, [text 0 | image 0 | text 1 | image 1 | ... | unused text rows]."""
        if self.config.dual_layers or self.config.timestep_tokens or len(lengths) != len(image_BID):
            raise ValueError(
                f"packed text has {len(lengths)} prompts for {len(image_BID)} latents, stream {self.config.stream}, "
                f"timestep {self.config.timestep}: give as many of both; dual streams and timestep tokens take padded text"
            )
        num_image = height * width
        image_IP2 = rotations(self.config, 0, height, width, image_BID.device)
        text_TP2 = text_rotations(self.config, len(text_RD), image_IP2)
        text_RP2 = torch.cat([text_TP2[:length] for length in (*lengths, len(text_RD) - sum(lengths))])
        rotations_SP2 = interleave(text_RP2, image_IP2.expand(len(lengths), -1, -1, -1), lengths)
        x_1SD = interleave(text_RD.to(image_BID.dtype), image_BID, lengths).unsqueeze(0)
        own_lengths = tuple(length + num_image for length in lengths)
        segments = segments_of(own_lengths, x_1SD.shape[1], x_1SD.device, x_1SD.dtype)
        out_1SD = self._run_blocks(x_1SD, embedding_B1D, rotations_SP2, segments, 0)
        return images_of(out_1SD[0], lengths, num_image)

    def _run_blocks(
        self, x_BSD: Tensor, embedding_B1D: Tensor | None, rotations_SP2: Tensor, mask: Mask, num_text: int
    ) -> Tensor:
        conditioning = self._conditioning(embedding_B1D)
        num_text = num_text if self.config.dual_layers else 0  # else compiled blocks would be made anew for each split
        if not self.config.value_residual:
            for block in self.transformer_blocks:
                x_BSD = block(x_BSD, conditioning, rotations_SP2, mask, num_text)
            return x_BSD
        first_values = None
        for block in self.transformer_blocks:
            x_BSD, own_values = block(x_BSD, conditioning, rotations_SP2, mask, num_text, first_values)
            first_values = own_values if first_values is None else first_values
        return x_BSD

    def _conditioning(self, embedding_B1D: Tensor | None) -> Tensor | None:
        """What blocks make their modulation of: the shared vectors (B, M, D), or the input (B, D) of their own."""
        if embedding_B1D is None or self.config.timestep != "adaln":
            return None
        if self.time_mod_proj is None:
            return gelu(embedding_B1D).squeeze(1)
        width, vectors_B1V = self.config.width, self.time_mod_proj(gelu(embedding_B1D))
        shared_BMD: Tensor = vectors_B1V.unflatten(-1, (-1, width)).squeeze(1)
        return shared_BMD

    def _check_text(self, features: Tensor, mask_BT: Tensor | None, rows: tuple[str, ...]) -> None:
        layers, dim = self.config.num_text_layers, self.config.text_dim
        if features.ndim != len(rows) + 2 or features.shape[len(rows) :] != (layers, dim):
            raise ValueError(
                f"text features have shape {tuple(features.shape)}: this model reads ({', '.join(rows)}, {layers}, {dim})"
            )
        if mask_BT is not None and mask_BT.shape != features.shape[:2]:
            raise ValueError(
                f"text mask has shape {tuple(mask_BT.shape)}: give one flag per text row, {tuple(features.shape[:2])}, "
                "and none beside packed text"
            )

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
        embedding: Tensor = self.linear_2(gelu(self.linear_1(sinusoid_B1F)))
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
        out: Tensor = self.linear_2(gelu(self.linear_1(self.norm(text_BTD))))
        return out


class FinalLayer(nn.Module):
    """Modulated norm and the projection to velocity; its scale and shift come from the timestep embedding itself."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        modulated = config.timestep == "adaln"
        self.scale_shift_table = nn.Parameter(torch.zeros(2, config.width)) if modulated else None
        self.norm = make_norm(config)
        self.linear = nn.Linear(config.width, config.in_channels)

    def forward(self, x_BID: Tensor, embedding_B1D: Tensor | None) -> Tensor:
        """(B, I, in_channels)."""
        if self.scale_shift_table is None or embedding_B1D is None:
            plain: Tensor = self.linear(self.norm(x_BID))
            return plain
        scale_B1D, shift_B1D = (embedding_B1D + self.scale_shift_table).to(x_BID.dtype).chunk(2, dim=1)
        out: Tensor = self.linear(self.norm.modulated(x_BID, scale_B1D, shift_B1D))
        return out


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation, as released."""
    return F.gelu(x, approximate="tanh")


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
    if model.text_fusion.projector is not None:
        nn.init.constant_(model.text_fusion.projector.weight, 1.0 / model.config.num_text_layers)


def count_parameters(config: TransformerConfig) -> int:
    """Parameters of a model of this configuration, without allocating it."""
    with torch.device("meta"):
        model = Transformer(config)
    return sum(parameter.numel() for parameter in model.parameters())
