"""Autoencoder training: reconstruct through noisy latents, and give the latents a shape that is easy to generate.

    pictures --encode--> raw latents --+ noise, decode--> pixels, differences, early features   reconstruction
                             |--projection--> late features of the pictures                      alignment
                             '--BatchNorm, interpolate(t)--> flow head --> velocity              flow (stops at the latents)
                                                               '--projection--> late features    flow alignment

The difference term keeps the edges that drawings live on; a small pull of the latents towards zero balances the fixed
noise they carry, as the prior term of a variational autoencoder with constant variance.

Everything that needs a frozen image encoder is off by default. Flow and flow alignment are REPA-E's (Leng et al. 2025,
arXiv 2504.10483): latents reach the flow model through a BatchNorm without gain; the flow loss trains the flow model
alone, as a gradient from it into the encoder makes latents that are easy because they are empty; the alignment of the
flow model's hidden features does reach the encoder. Their flow model is the real one and is kept; ours is a small head,
dropped with the projections after training. `alignment` is VA-VAE's idea (Yao et al. 2025), targets normalised over
each picture's places as in iREPA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.config import to_document
from pleinair.flow import interpolate, velocity_target
from pleinair.model.autoencoder import Autoencoder
from pleinair.model.autoencoders.latent_flow import LatentFlow
from pleinair.model.autoencoders.perception import LATE_CHANNELS, PictureFeatures, perceptual_distance
from pleinair.records.errors import ConfigError
from pleinair.training.engine import LossOutput
from pleinair.training.random import RowRandom

MEAN_SHARE = 0.6
"""Share of a picture's mean feature that is taken off before alignment (iREPA's gamma)."""

Term = tuple[str, float, Tensor]
"""Name, weight and value of a part of the loss."""


@dataclass(frozen=True, kw_only=True)
class AutoencodeConfig:
    """Weights of the loss terms beside the pixels' absolute error; 0 switches a term off and costs nothing."""

    edge_weight: float = 0.5
    """Absolute error of horizontal and vertical differences."""
    latent_weight: float = 1e-3
    """Mean square of the raw latents."""
    perceptual_weight: float = 0.0
    """Distance of early feature maps between picture and reconstruction."""
    alignment_weight: float = 0.0
    """1 - cosine between projected latents and late features."""
    flow_weight: float = 0.0
    """Flow-matching loss of a small head on the latents."""
    flow_alignment_weight: float = 0.0
    """1 - cosine between the head's projected hidden features and late features; needs `flow_weight`."""
    flow_reaches_encoder: bool = False
    """Let the flow loss itself shape the latents, which REPA-E warns of; for comparison."""
    flow_width: int = 64
    """Channels of the flow head."""

    def __post_init__(self) -> None:
        for name in ("perceptual", "alignment", "flow", "flow_alignment"):
            if (weight := getattr(self, f"{name}_weight")) < 0:
                raise ConfigError(f"{name}_weight is {weight}: give 0 (off) or more")
        if self.flow_alignment_weight and not self.flow_weight:
            raise ConfigError(f"flow_alignment_weight is {self.flow_alignment_weight} and flow_weight 0: give both")

    @property
    def needs_features(self) -> bool:
        """Whether a frozen image encoder is needed."""
        return bool(self.perceptual_weight or self.alignment_weight or self.flow_alignment_weight)


class Autoencode:
    """The stage: trains `Autoencoder` on pictures in [-1, 1], beside parts that are dropped afterwards.

    Raises ConfigError when the weights ask for features and none are given.
    """

    weights_file = "autoencoder.safetensors"

    def __init__(
        self, autoencoder: Autoencoder, config: AutoencodeConfig, features: PictureFeatures | None = None
    ) -> None:
        if config.needs_features and features is None:
            raise ConfigError("perceptual and alignment weights need image features: give load_efficientnet(...), or 0")
        self.autoencoder, self.config, self.features = autoencoder, config, features
        parts: dict[str, nn.Module] = {"autoencoder": autoencoder}
        channels = autoencoder.latent_channels
        if config.alignment_weight:
            parts["projection"] = nn.Conv2d(channels, LATE_CHANNELS, 3, padding=1)
        if config.flow_weight:
            parts["flow"] = LatentFlow(channels, config.flow_width)
        if config.flow_alignment_weight:
            parts["flow_projection"] = nn.Conv2d(config.flow_width, LATE_CHANNELS, 3, padding=1)
        self.model = nn.ModuleDict(parts).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def documents(self) -> Mapping[str, Any]:
        """The autoencoder's configuration."""
        return {"config.json": {"autoencoder": to_document(self.autoencoder.config)}}

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Nothing beside the weights."""
        return {}

    def loss(self, batch: Tensor, random: RowRandom) -> LossOutput:
        """Weighted sum of all terms for pictures (B, 3, H, W); logs PSNR in decibels and the terms that are on."""
        side = [size // self.autoencoder.downscale for size in batch.shape[-2:]]
        noise_BChw = random.normal(self.autoencoder.latent_channels, *side)
        decoded_BCHW, raw_BChw = self.autoencoder.reconstruct(batch, noise_BChw)
        config = self.config
        terms = [
            *self._reconstruction(decoded_BCHW, batch),
            ("latent", config.latent_weight, raw_BChw.float().square().mean()),
        ]
        if config.alignment_weight or config.flow_weight:
            terms += self._shaping(raw_BChw, batch, random)
        loss = sum((weight * term for _, weight, term in terms[1:]), start=terms[0][2])
        mse = (decoded_BCHW.detach().float().clamp(-1, 1) - batch).square().mean() / 4
        extra = {name: term.item() for name, _, term in terms if name not in ("pixel", "edge", "latent")}
        return LossOutput(loss, {"psnr": (-10 * mse.log10()).item(), **extra})

    def _reconstruction(self, decoded_BCHW: Tensor, batch: Tensor) -> list[Term]:
        """Terms that compare pictures; the pixels' absolute error first."""
        seen_BCHW = decoded_BCHW.float()
        edge = sum((_difference(seen_BCHW, dim) - _difference(batch, dim)).abs().mean() for dim in (-2, -1))
        terms: list[Term] = [("pixel", 1.0, (seen_BCHW - batch).abs().mean())]
        terms.append(("edge", self.config.edge_weight, torch.as_tensor(edge)))
        if self.config.perceptual_weight and self.features:
            with torch.no_grad():
                wanted = self.features.early(batch)
            distance_B = perceptual_distance(self.features.early(seen_BCHW), wanted)
            terms.append(("perceptual", self.config.perceptual_weight, distance_B.mean()))
        return terms

    def _shaping(self, raw_BChw: Tensor, batch: Tensor, random: RowRandom) -> list[Term]:
        """Terms that shape the latents and do not look at the reconstruction."""
        config, terms = self.config, list[Term]()
        target_BChw = None
        if self.features and (config.alignment_weight or config.flow_alignment_weight):
            target_BChw = normalised_over_places(self.features.late(batch, (raw_BChw.shape[-2], raw_BChw.shape[-1])))
        if config.alignment_weight and target_BChw is not None:
            projected_BChw = self.model["projection"](raw_BChw)
            terms.append(("alignment", config.alignment_weight, misalignment(projected_BChw, target_BChw)))
        if config.flow_weight:
            terms += self._flow(F.batch_norm(raw_BChw.float(), None, None, training=True), target_BChw, random)
        return terms

    def _flow(self, latents_BChw: Tensor, target_BChw: Tensor | None, random: RowRandom) -> list[Term]:
        """Flow-matching loss, stopped at the latents, and the alignment of hidden features, which is not."""
        config = self.config
        timestep_B = random.logit_normal()
        noise_BChw = random.normal(*latents_BChw.shape[1:])
        stopped_BChw = latents_BChw if config.flow_reaches_encoder else latents_BChw.detach()
        velocity_BChw, _ = self.model["flow"](interpolate(stopped_BChw, noise_BChw, timestep_B), timestep_B)
        error = F.mse_loss(velocity_BChw.float(), velocity_target(stopped_BChw, noise_BChw))
        terms: list[Term] = [("flow", config.flow_weight, error)]
        if config.flow_alignment_weight and target_BChw is not None:
            _, hidden_BWhw = self.model["flow"](interpolate(latents_BChw, noise_BChw, timestep_B), timestep_B)
            projected_BChw = self.model["flow_projection"](hidden_BWhw)
            terms.append(("flow_alignment", config.flow_alignment_weight, misalignment(projected_BChw, target_BChw)))
        return terms


def normalised_over_places(features_BChw: Tensor) -> Tensor:
    """Each picture's features with most of their mean taken off and divided by their deviation, over its places."""
    mean_BC = features_BChw.mean((2, 3), keepdim=True)
    return (features_BChw - MEAN_SHARE * mean_BC) / (features_BChw.std((2, 3), correction=0, keepdim=True) + 1e-6)


def misalignment(projected_BChw: Tensor, target_BChw: Tensor) -> Tensor:
    """1 - cosine between feature vectors, mean over places and pictures."""
    return 1 - F.cosine_similarity(projected_BChw.float(), target_BChw, dim=1).mean()


def _difference(pictures_BCHW: Tensor, dim: int) -> Tensor:
    length = pictures_BCHW.shape[dim] - 1
    return pictures_BCHW.narrow(dim, 1, length) - pictures_BCHW.narrow(dim, 0, length)
