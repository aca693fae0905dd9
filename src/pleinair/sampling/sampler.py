"""Prompts to pictures.

    prompt --TextEncoder, FeatureProjection--> text features --Transformer.encode_text--> text (once per prompt)
    noise(seed) --euler over the shifted schedule, guided velocity--> latents --LatentCodec--> picture

Guidance follows K2: v = cond + g (cond - uncond), so g = 0 is off and costs one model call a step instead of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pleinair.flow import euler, guide, timestep_schedule
from pleinair.model.autoencoder import LatentCodec
from pleinair.model.pixels import to_bytes
from pleinair.model.text_encoder import FeatureProjection, TextEncoder
from pleinair.model.transformer import TextTokens, Transformer

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latents_BCHW, timestep_B) -> velocity, float32."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How pictures are drawn."""

    num_steps: int = 28
    """Euler steps."""
    guidance: float = 3.0
    """g in v = cond + g (cond - uncond); 0 is off."""
    shift_mu: float = 0.5
    """Shift of the schedule, fixed whatever the training shift was."""
    resolution: int = 64
    """Side of the picture in pixels."""
    batch_size: int = 64
    """Pictures drawn at once."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Autocast dtype of the transformer; the state stays float32."""
    distilled: bool = False
    """The weights were trained for these steps alone, without guidance: `sample` refuses others."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}: give at least 1")
        if self.guidance < 0:
            raise ValueError(f"guidance is {self.guidance}: give 0 (off) or more")
        if self.distilled and self.guidance:
            raise ValueError(f"guidance is {self.guidance} and the weights are distilled: it is in them, give 0")


@dataclass(frozen=True)
class Sampler:
    """A transformer with everything it needs to turn prompts into pictures."""

    transformer: Transformer
    codec: LatentCodec
    text_encoder: TextEncoder
    projection: FeatureProjection

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        config: SamplingConfig,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> npt.NDArray[np.uint8]:
        """Pictures (N, resolution, resolution, 3); each depends on its prompt and seed alone, its batch changes rounding only.

        Raises ValueError when prompts and seeds differ in number or the resolution does not fit the autoencoder.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed per prompt")
        patch = self.codec.downscale * self.transformer.config.patch_size
        if config.resolution % patch or config.resolution < patch:
            raise ValueError(f"resolution is {config.resolution}: it must be a multiple of {patch}")
        self.transformer.eval()
        pictures = []
        for start in range(0, len(prompts), config.batch_size):
            stop = min(start + config.batch_size, len(prompts))
            pictures.append(self._draw(prompts[start:stop], seeds[start:stop], config))
            on_progress(stop, len(prompts))
        return np.concatenate(pictures)

    def _draw(self, prompts: Sequence[str], seeds: Sequence[int], config: SamplingConfig) -> npt.NDArray[np.uint8]:
        noise_BCHW = seeded_noise(seeds, self.codec, config.resolution)
        schedule = timestep_schedule(config.num_steps, config.shift_mu)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            latents_BCHW = euler(self._velocity(prompts, config.guidance), noise_BCHW, schedule)
        return to_bytes(self.codec.decode(latents_BCHW))

    def _velocity(self, prompts: Sequence[str], guidance: float) -> Velocity:
        text = self._encode(prompts)
        return guided_velocity(self.transformer, text, self._encode([""]) if guidance > 0 else None, guidance)

    def _encode(self, prompts: Sequence[str]) -> TextTokens:
        encoded = self.text_encoder.encode(prompts)
        return self.transformer.encode_text(self.projection(encoded.features_BTLD.cpu()), encoded.mask_BT.cpu())


def guided_velocity(transformer: Transformer, text: TextTokens, empty: TextTokens | None, guidance: float) -> Velocity:
    """Velocity of prompts that were encoded once, `empty` being the empty prompt's tokens, (1, T, D); None is for g = 0.

    Two passes a step, because the empty prompt has few tokens: beside the prompts in one batch it would be padded to
    theirs, which costs 1.1 times as much at 105 tokens and 256 px (`benchmarks/training/sampling.py`).
    """
    if empty is None or guidance == 0:
        return lambda latents_BCHW, timestep_B: transformer.denoise(latents_BCHW, timestep_B, text).float()
    every = replace(empty, tokens_BTD=empty.tokens_BTD.expand(len(text.tokens_BTD), -1, -1))

    def velocity(latents_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        cond_BCHW, uncond_BCHW = (transformer.denoise(latents_BCHW, timestep_B, one).float() for one in (text, every))
        return guide(cond_BCHW, uncond_BCHW, guidance)

    return velocity


def seeded_noise(seeds: Sequence[int], codec: LatentCodec, resolution: int) -> Tensor:
    """One noise per seed, (B, C, h, w) float32."""
    side = resolution // codec.downscale
    shape = (codec.latent_channels, side, side)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
