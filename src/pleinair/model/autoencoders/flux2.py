"""The FLUX.2 autoencoder of diffusers: latents packed 2 x 2 into channels, standardised by its BatchNorm's statistics.

    pictures --vae--> (B, 32, H/8, W/8) --2 x 2 to channels--> (B, 128, H/16, W/16) --(x - mean) / sqrt(var + eps)--> latents

Statistics are per packed channel, so the packing belongs to the codec, and the transformer takes patches of 1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from pleinair.model.autoencoder import LatentSpace, require_divisible
from pleinair.model.autoencoders.qwen_image import require_channels
from pleinair.model.digest import part_digest
from pleinair.records.errors import ConfigError

PACKING = 2


class Flux2Codec:
    """`AutoencoderKLFlux2`: 128 channels at 1/16. Raises ConfigError for one that packs other than 2 x 2."""

    def __init__(self, vae: Any) -> None:
        if tuple(vae.config.patch_size) != (PACKING, PACKING):
            raise ConfigError(
                f"the autoencoder packs latents {vae.config.patch_size}: only {PACKING} x {PACKING} is known, as FLUX.2's does"
            )
        self.vae = vae.eval().requires_grad_(False)
        self.latent_channels = int(vae.config.latent_channels) * PACKING**2
        self.downscale = 2 ** (len(vae.config.block_out_channels) - 1) * PACKING

    def describe(self) -> LatentSpace:
        """The space of its latents; the BatchNorm's statistics are among the tensors that are hashed."""
        return LatentSpace(
            name="flux2",
            channels=self.latent_channels,
            downscale=self.downscale,
            patch_size=1,
            digest=part_digest(self.vae, self.vae.config.batch_norm_eps),
        )

    def encode(self, pictures_BCHW: Tensor) -> Tensor:
        """Standardised latents, float32: the mode of the posterior, nothing drawn."""
        require_divisible(pictures_BCHW, self.downscale)
        unpacked_BCHW = self.vae.encode(pictures_BCHW.to(self.vae.device, self.vae.dtype)).latent_dist.mode().float()
        mean_C11, std_C11 = self._statistics()
        return (F.pixel_unshuffle(unpacked_BCHW, PACKING) - mean_C11) / std_C11

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Pictures, clamped to [-1, 1], float32."""
        require_channels(latents_BChw, self.latent_channels, "flux2")
        mean_C11, std_C11 = self._statistics()
        unpacked_BCHW = F.pixel_shuffle(latents_BChw.float() * std_C11 + mean_C11, PACKING)
        pictures_BCHW: Tensor = self.vae.decode(unpacked_BCHW.to(self.vae.device, self.vae.dtype)).sample
        return pictures_BCHW.float().clamp(-1, 1)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        norm = self.vae.bn
        std_C = (norm.running_var.float() + self.vae.config.batch_norm_eps).sqrt()
        return norm.running_mean.float().view(-1, 1, 1), std_C.view(-1, 1, 1)
