"""The autoencoder between pixels and latents: a protocol, and a small convolutional one of our own.

    pictures_BCHW in [-1, 1]  --encode-->  latents_BCHW (16 channels, 1/8 size, unit variance)  --decode-->  pictures

Large models bring their own (`autoencoders/`: the Qwen-Image and FLUX.2 VAEs, through diffusers); this one is for machines
without a model hub. Latents mean nothing without the autoencoder and the statistics that made them: `describe()` names both,
a pack stores that name, and `require_same_latents` refuses to mix.

It never runs a convolution at full resolution: a 2x2 space-to-depth stem quarters the cost, which on a CPU is worth more
than the last half decibel. The latents carry fixed Gaussian noise during training, so the decoder forgives what a
generator gets slightly wrong.

B batch, C channels, H height, W width; lower-case h, w are latent sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.model.digest import part_digest
from pleinair.records.errors import PackError


@dataclass(frozen=True, kw_only=True)
class LatentSpace:
    """What latents are."""

    name: str
    """Kind of autoencoder."""
    channels: int
    """Channels of the latents."""
    downscale: int
    """Pixels per latent, per side."""
    patch_size: int
    """Side of the transformer's patches that makes a token 16 pixels wide, as K2's are; 1 at the least."""
    digest: str
    """SHA-256 of weights and latent statistics."""

    @property
    def identity(self) -> str:
        """Short form, equal for equal latents: what a pack stores."""
        return f"{self.name} {self.channels}x1/{self.downscale} {self.digest[:16]}"


class LatentCodec(Protocol):
    """What sampling and packing need from an autoencoder."""

    latent_channels: int
    downscale: int

    def describe(self) -> LatentSpace:
        """What its latents are; hashes the weights."""
        ...

    def encode(self, pictures_BCHW: Tensor) -> Tensor:
        """Standardised latents (B, latent_channels, H / downscale, W / downscale) of pictures in [-1, 1]."""
        ...

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Pictures in [-1, 1], (B, 3, h * downscale, w * downscale), of standardised latents."""
        ...


def require_same_latents(packed: str, codec: LatentCodec, pack: Path) -> None:
    """Raise PackError when a pack stores latents of another space than `codec`'s; older packs ("") name none and pass."""
    own = codec.describe().identity
    if packed and packed != own:
        raise PackError(
            f"the pack {pack} holds latents of {packed!r} and the autoencoder gives {own!r}: give the autoencoder it was "
            "written with (weights and latent statistics), or pack again"
        )


def require_divisible(pictures_BCHW: Tensor, downscale: int) -> None:
    """Raise ValueError for pictures whose sides do not divide."""
    height, width = pictures_BCHW.shape[-2:]
    if height % downscale or width % downscale:
        raise ValueError(f"a {height}x{width} picture does not divide by {downscale}: resize or crop it first")


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes of `Autoencoder`."""

    widths: tuple[int, ...] = (48, 96, 160)
    """Channels at 1/2, 1/4, 1/8 ... of the picture's size; their number sets the downscale (2 ** len)."""
    encoder_blocks: tuple[int, ...] = (1, 1, 1)
    """Residual blocks at each size on the way down."""
    decoder_blocks: tuple[int, ...] = (1, 2, 2)
    """Residual blocks at each size, in the same order, on the way up."""
    latent_channels: int = 16
    """Channels of the latents."""
    latent_noise: float = 0.1
    """Standard deviation of the noise added to the (roughly unit) latents while training."""

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.encoder_blocks) == len(self.decoder_blocks):
            raise ValueError(
                f"widths, encoder_blocks and decoder_blocks must have one entry per size, got {len(self.widths)}, "
                f"{len(self.encoder_blocks)} and {len(self.decoder_blocks)}: give all three the same length"
            )
        if any(width % 8 for width in self.widths):
            raise ValueError(f"widths {self.widths} must be multiples of 8 (group norm): round them")


class ResidualBlock(nn.Module):
    """norm - conv - SiLU - conv, added to its input; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = x_BCHW + self.conv_out(F.silu(self.conv_in(F.silu(self.norm(x_BCHW)))))
        return out_BCHW


def _blocks(width: int, num_blocks: int) -> list[nn.Module]:
    return [ResidualBlock(width) for _ in range(num_blocks)]


class Autoencoder(nn.Module):
    """A small convolutional autoencoder; `LatentCodec` at inference, `reconstruct` for its training."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AutoencoderConfig()
        self.latent_channels = config.latent_channels
        self.downscale = 2 ** len(config.widths)
        widths = config.widths

        down: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            down += _blocks(width, config.encoder_blocks[i])
            if i + 1 < len(widths):
                down.append(nn.Conv2d(width, widths[i + 1], 2, stride=2))
        down.append(nn.Conv2d(widths[-1], config.latent_channels, 1))
        self.encoder = nn.Sequential(*down)

        up: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)]
        for i in reversed(range(len(widths))):
            up += _blocks(widths[i], config.decoder_blocks[i])
            if i > 0:
                up += [nn.Conv2d(widths[i], widths[i - 1] * 4, 1), nn.PixelShuffle(2)]
        up += [nn.SiLU(), nn.Conv2d(widths[0], 12, 3, padding=1), nn.PixelShuffle(2)]
        self.decoder = nn.Sequential(*up)

        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def describe(self) -> LatentSpace:
        """The space of this autoencoder's latents, as its weights and statistics are now."""
        return LatentSpace(
            name="pleinair",
            channels=self.latent_channels,
            downscale=self.downscale,
            patch_size=max(1, 16 // self.downscale),
            digest=part_digest(self),
        )

    def encode(self, pictures_BCHW: Tensor) -> Tensor:
        """Standardised latents; H and W must divide by `downscale`."""
        require_divisible(pictures_BCHW, self.downscale)
        raw_BChw: Tensor = self.encoder(pictures_BCHW)
        return (raw_BChw - self.latent_mean[:, None, None]) / self.latent_std[:, None, None]

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Pictures, clamped to [-1, 1]."""
        raw_BChw = latents_BChw * self.latent_std[:, None, None] + self.latent_mean[:, None, None]
        pictures_BCHW: Tensor = self.decoder(raw_BChw)
        return pictures_BCHW.clamp(-1, 1)

    def reconstruct(self, pictures_BCHW: Tensor, noise_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """Unclamped reconstruction through noisy latents, and the raw latents; for training."""
        raw_BChw: Tensor = self.encoder(pictures_BCHW)
        return self.decoder(raw_BChw + self.config.latent_noise * noise_BChw), raw_BChw

    @torch.inference_mode()
    def set_latent_statistics(self, pictures_BCHW: Tensor) -> None:
        """Measure mean and standard deviation of the raw latents, per channel; `encode` standardises with them."""
        raw_BChw = self.encoder(pictures_BCHW).float()
        self.latent_mean.copy_(raw_BChw.mean(dim=(0, 2, 3)))
        self.latent_std.copy_(raw_BChw.std(dim=(0, 2, 3)))
