"""Pretraining: rectified flow with velocity prediction and shifted logit-normal timesteps.

    x_t = (1 - t) x0 + t noise,   target = noise - x0,   loss = mean square error        (Krea 2 report, training)

The shift grows with the number of image tokens, so higher resolutions train at noisier timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pleinair.config import from_document, to_document
from pleinair.flow import interpolate, velocity_target
from pleinair.model.packed_text import PackedText
from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import Transformer
from pleinair.packs.loader import LatentBatch
from pleinair.packs.packed_loader import PackedLatentBatch
from pleinair.records.errors import ConfigError
from pleinair.training.engine import LossOutput
from pleinair.training.random import RowRandom

TIMESTEPS = "timesteps"
"""Key of the training timesteps in `config.json`; `checkpoint.merge` knows it too."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Distribution of training timesteps."""

    shift_mu: float = 0.0
    """Mean of the logit of t at `shift_tokens` image tokens."""
    shift_tokens: int = 64
    """Image tokens at which `shift_mu` holds; mu moves by log(sqrt(tokens / shift_tokens)) away from it."""
    sigma: float = 1.0
    """Standard deviation of the logit of t."""

    def __post_init__(self) -> None:
        if self.sigma <= 0 or self.shift_tokens < 1:
            raise ConfigError(
                f"sigma is {self.sigma} and shift_tokens {self.shift_tokens}: give a positive deviation and at least 1 token"
            )

    def mu(self, num_image_tokens: int) -> float:
        """Shift for a number of image tokens: keeps t / (1 - t) / sqrt(tokens) constant over resolutions."""
        return self.shift_mu + 0.5 * math.log(num_image_tokens / self.shift_tokens)


def timesteps_told(config: Mapping[str, Any]) -> PretrainConfig:
    """How a model was trained by its checkpoint's `config.json`; the defaults where that is older, or was imported."""
    return from_document(PretrainConfig, config.get(TIMESTEPS, {}))


def text_of(batch: LatentBatch | PackedLatentBatch) -> tuple[Tensor | PackedText, Tensor | None]:
    """What the transformer takes as text: padded features and their mask, or packed ones, which have none."""
    if isinstance(batch, PackedLatentBatch):
        return PackedText(batch.text.features_RLD, batch.text.lengths), None
    return batch.text_features_BTLD, batch.text_mask_BT


class Pretrain:
    """The stage: a transformer, and the text projection its features came through."""

    weights_file = "transformer.safetensors"

    def __init__(
        self, model: Transformer, projection: FeatureProjection, config: PretrainConfig, latent_space: str = ""
    ) -> None:
        """`latent_space` is the pack's word for its latents: a run of other ones does not start from this one's weights."""
        self.model = model
        self.projection = projection
        self.config = config
        self.latent_space = latent_space

    def documents(self) -> Mapping[str, Any]:
        """The transformer's configuration, whose latents it has learned, and at which timesteps."""
        config = {
            "transformer": to_document(self.model.config),
            "latent_space": self.latent_space,
            TIMESTEPS: to_document(self.config),
        }
        return {"config.json": config}

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The text projection."""
        return {"feature_projection.safetensors": self.projection.state_dict()}

    def loss(self, batch: LatentBatch | PackedLatentBatch, random: RowRandom) -> LossOutput:
        """Mean square error of the velocity, float32."""
        timestep_B = self.timesteps(batch.latents_BCHW, random)
        return LossOutput(self.velocity_errors(batch, timestep_B, random).mean())

    def timesteps(self, latents_BCHW: Tensor, random: RowRandom) -> Tensor:
        """(B,) training timesteps for latents of this size."""
        height, width = latents_BCHW.shape[-2:]
        mu = self.config.mu(height * width // self.model.config.patch_size**2)
        return random.logit_normal(mu, self.config.sigma)

    def velocity_errors(self, batch: LatentBatch | PackedLatentBatch, timestep_B: Tensor, random: RowRandom) -> Tensor:
        """(B,) mean square error of each row's velocity at its timestep, float32."""
        latents_BCHW = batch.latents_BCHW.float()
        noise_BCHW = random.normal(*latents_BCHW.shape[1:])
        noisy_BCHW = interpolate(latents_BCHW, noise_BCHW, timestep_B)
        velocity_BCHW = self.model(noisy_BCHW, timestep_B, *text_of(batch))
        error_BCHW: Tensor = velocity_BCHW.float() - velocity_target(latents_BCHW, noise_BCHW)
        return error_BCHW.square().mean(dim=(1, 2, 3))
