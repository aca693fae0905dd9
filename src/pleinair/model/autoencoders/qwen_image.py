"""The Qwen-Image autoencoder of diffusers (K2's): pictures are clips of one frame, latents standardised by its config."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pleinair.model.autoencoder import LatentSpace, require_divisible
from pleinair.model.digest import part_digest
from pleinair.records.errors import ConfigError


class QwenImageCodec:
    """`AutoencoderKLQwenImage`: 16 channels at 1/8, so the transformer takes patches of 2.

    Raises ConfigError for one whose config lacks `latents_mean` and `latents_std`.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.latent_channels, self.downscale = int(vae.config.z_dim), int(vae.spatial_compression_ratio)
        found = [len(values or ()) for values in (vae.config.latents_mean, vae.config.latents_std)]
        if found != [self.latent_channels] * 2:
            raise ConfigError(
                f"the autoencoder has {self.latent_channels} channels, {found[0]} entries of latents_mean and {found[1]} of "
                "latents_std: give one of each per channel in its config.json"
            )
        self.mean_C11, self.std_C11 = (
            torch.tensor(values).view(-1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
        )

    def describe(self) -> LatentSpace:
        """The space of its latents."""
        return LatentSpace(
            name="qwen-image",
            channels=self.latent_channels,
            downscale=self.downscale,
            patch_size=2,
            digest=part_digest(self.vae, self.mean_C11.flatten().tolist(), self.std_C11.flatten().tolist()),
        )

    def encode(self, pictures_BCHW: Tensor) -> Tensor:
        """Standardised latents, float32: the mode of the posterior, nothing drawn."""
        require_divisible(pictures_BCHW, self.downscale)
        clips_BCFHW = pictures_BCHW[:, :, None].to(self.vae.device, self.vae.dtype)
        raw_BChw: Tensor = self.vae.encode(clips_BCFHW).latent_dist.mode()[:, :, 0].float()
        return (raw_BChw - self.mean_C11.to(raw_BChw.device)) / self.std_C11.to(raw_BChw.device)

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Pictures, clamped to [-1, 1], float32."""
        require_channels(latents_BChw, self.latent_channels, "qwen-image")
        device = latents_BChw.device
        raw_BChw = latents_BChw.float() * self.std_C11.to(device) + self.mean_C11.to(device)
        clips_BCFHW: Tensor = self.vae.decode(raw_BChw[:, :, None].to(self.vae.device, self.vae.dtype)).sample
        return clips_BCFHW[:, :, 0].float().clamp(-1, 1)


def require_channels(latents_BChw: Tensor, channels: int, name: str) -> None:
    """Raise ValueError for latents of another autoencoder."""
    if latents_BChw.shape[1] != channels:
        raise ValueError(
            f"the latents have {latents_BChw.shape[1]} channels and {name} has {channels}: decode them with the autoencoder "
            "that made them"
        )
