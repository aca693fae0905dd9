"""Autoencoder training: absolute error of pixels and of their differences, through noisy latents.

The difference term keeps the edges that drawings live on; a small pull of the latents towards zero balances the fixed
noise they carry, as the prior term of a variational autoencoder with constant variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pleinair.config import to_document
from pleinair.model.autoencoder import Autoencoder
from pleinair.training.engine import LossOutput
from pleinair.training.random import RowRandom


@dataclass(frozen=True, kw_only=True)
class AutoencodeConfig:
    """Weights of the loss terms beside the pixels' absolute error."""

    edge_weight: float = 0.5
    """Absolute error of horizontal and vertical differences."""
    latent_weight: float = 1e-3
    """Mean square of the raw latents."""


class Autoencode:
    """The stage: trains `Autoencoder` on pictures in [-1, 1]."""

    weights_file = "autoencoder.safetensors"

    def __init__(self, model: Autoencoder, config: AutoencodeConfig) -> None:
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config = config

    def documents(self) -> Mapping[str, Any]:
        """The autoencoder's configuration."""
        return {"config.json": {"autoencoder": to_document(self.model.config)}}

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Nothing beside the weights."""
        return {}

    def loss(self, batch: Tensor, random: RowRandom) -> LossOutput:
        """Reconstruction loss of pictures (B, 3, H, W); logs the peak signal-to-noise ratio in decibels."""
        side = [size // self.model.downscale for size in batch.shape[-2:]]
        noise_BChw = random.normal(self.model.latent_channels, *side)
        decoded_BCHW, raw_BChw = self.model.reconstruct(batch, noise_BChw)
        decoded_BCHW = decoded_BCHW.float()
        pixel = (decoded_BCHW - batch).abs().mean()
        edge = sum((_difference(decoded_BCHW, dim) - _difference(batch, dim)).abs().mean() for dim in (-2, -1))
        prior = raw_BChw.float().square().mean()
        mse = (decoded_BCHW.detach().clamp(-1, 1) - batch).square().mean() / 4
        loss = pixel + self.config.edge_weight * edge + self.config.latent_weight * prior
        return LossOutput(loss, {"psnr": (-10 * mse.log10()).item()})


def _difference(pictures_BCHW: Tensor, dim: int) -> Tensor:
    length = pictures_BCHW.shape[dim] - 1
    return pictures_BCHW.narrow(dim, 1, length) - pictures_BCHW.narrow(dim, 0, length)
