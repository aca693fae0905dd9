"""Drawing what is to be rewarded: the policy's samples, without guidance, with the probabilities of some of their steps.

    prompts --PromptFeatures, once each--> text features --Transformer.encode_text--> text
    seeds   --noise at t = 1, noise of the window's steps--> flow.stochastic.sample_in_window --> Trajectory --codec--> pictures

All noise is a function of the picture's seed, which is one of (run's seed, iteration, prompt, member): who draws a picture,
and beside which others, changes rounding only. Guidance has no part here nor in the update, so what is learned shows without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pleinair.flow import euler, timestep_schedule
from pleinair.flow.stochastic import Sde, Trajectory, Window, sample_in_window
from pleinair.model.pixels import to_bytes
from pleinair.model.text_encoder import EncodedText, FeatureProjection, TextEncoder, padded
from pleinair.model.transformer import TextTokens
from pleinair.records.errors import ConfigError
from pleinair.records.rewards import Pictures
from pleinair.sampling.sampler import Sampler, guided_velocity, seeded_noise
from pleinair.training.hooks.validation import evaluating


@dataclass(frozen=True, kw_only=True)
class DrawingConfig:
    """How the pictures of a rollout are drawn."""

    num_steps: int = 10
    """Steps; fewer than for final pictures do."""
    shift_mu: float = 0.5
    """Shift of the schedule."""
    resolution: int = 64
    """Side of the pictures in pixels."""
    sde: Sde = "cps"
    """Kind of the stochastic steps."""
    noise_level: float = 0.8
    """eta of the stochastic steps: 0.8 for cps, 0.7 for flow and 0.3 for dance are published defaults."""
    window_size: int = 2
    """Stochastic steps, whose probabilities an update needs; 0 for an objective that needs none."""
    window_first: int | None = None
    """Number of the first of them; None draws it anew for each iteration, from those where the window fits."""
    shared_noise: bool = False
    """Members of a group begin from one noise, so that the steps before the window are computed once for all of them."""
    batch_size: int = 64
    """Pictures drawn at once."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Autocast dtype of the transformer; must be the engine's, or the ratios of the first update are not 1."""

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "resolution"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.window_size < 0 or self.window_size > self.num_windowed:
            raise ConfigError(
                f"window_size is {self.window_size}: give 0 to {self.num_windowed}, the steps that may be stochastic"
            )
        if self.window_size and self.noise_level <= 0:
            raise ConfigError(f"noise_level is {self.noise_level}: it must be positive")
        if self.shared_noise and not self.window_size:
            raise ConfigError(
                "shared_noise without a window gives equal pictures: set window_size, or shared_noise=False"
            )
        if self.window_first is not None and not 0 <= self.window_first <= self.num_windowed - self.window_size:
            raise ConfigError(
                f"window_first is {self.window_first}: a window of {self.window_size} begins at 0 to "
                f"{self.num_windowed - self.window_size}"
            )

    @property
    def num_windowed(self) -> int:
        """Steps that may be stochastic: cps has no noise in the last."""
        return self.num_steps - 1 if self.sde == "cps" else self.num_steps

    def schedule(self) -> Tensor:
        """Timesteps, float64."""
        return timestep_schedule(self.num_steps, self.shift_mu)

    def window(self, seed: int, iteration: int) -> Window:
        """The stochastic steps of an iteration."""
        first = self.window_first
        if first is None:
            first = seed_of(seed, iteration, "window") % (self.num_windowed - self.window_size + 1)
        return Window(first=first, size=self.window_size)


class PromptFeatures:
    """Projected text features of prompts, each encoded once and kept in memory."""

    def __init__(self, text_encoder: TextEncoder, projection: FeatureProjection) -> None:
        self.text_encoder, self.projection = text_encoder, projection
        self._rows: dict[str, Tensor] = {}

    @torch.no_grad()
    def of(self, prompts: Sequence[str]) -> EncodedText:
        """Features of these prompts, padded on the right."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        if missing:
            encoded = self.text_encoder.encode(missing)
            features_BTLD = self.projection(encoded.features_BTLD)
            for prompt, row_TLD, mask_T in zip(missing, features_BTLD, encoded.mask_BT, strict=True):
                self._rows[prompt] = row_TLD[mask_T]
        return padded([self._rows[prompt] for prompt in prompts])


def seed_of(seed: int, iteration: int, *what: str | int) -> int:
    """A seed of 63 bits that belongs to these words, unrelated to that of any others."""
    words = "\n".join(str(word) for word in (seed, iteration, *what))
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1


@torch.no_grad()
def draw_groups(
    sampler: Sampler, features: PromptFeatures, prompts: Sequence[str], seeds: Sequence[int], config: DrawingConfig,
    window: Window,
) -> Trajectory:  # fmt: skip
    """Trajectories of pictures, one seed each; the equal number of each prompt's follow one another."""
    size = len(seeds) // len(prompts)
    groups_at_once = max(1, config.batch_size // size)
    with evaluating(sampler.transformer):
        parts = [
            _draw(
                sampler,
                features.of(prompts[start : start + groups_at_once]),
                seeds[start * size : (start + groups_at_once) * size],
                config,
                window,
            )
            for start in range(0, len(prompts), groups_at_once)
        ]
    return Trajectory(
        states_BSCHW=torch.cat([part.states_BSCHW for part in parts]),
        means_BWCHW=torch.cat([part.means_BWCHW for part in parts]),
        log_probabilities_BW=torch.cat([part.log_probabilities_BW for part in parts]),
        samples_BCHW=torch.cat([part.samples_BCHW for part in parts]),
    )


def _draw(
    sampler: Sampler, encoded: EncodedText, seeds: Sequence[int], config: DrawingConfig, window: Window
) -> Trajectory:
    """The groups of some prompts, all at once."""
    device, schedule = next(sampler.transformer.parameters()).device, config.schedule()
    size = len(seeds) // len(encoded.mask_BT)
    num_shared = window.first if config.shared_noise else 0
    noise_BCHW = seeded_noise(seeds[::size] if config.shared_noise else seeds, sampler.codec, config.resolution)
    x_BCHW = noise_BCHW.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        text = sampler.transformer.encode_text(encoded.features_BTLD.to(device), encoded.mask_BT.to(device))
        if num_shared:
            x_BCHW = euler(guided_velocity(sampler.transformer, text, None, 0.0), x_BCHW, schedule[: num_shared + 1])
        if config.shared_noise:
            x_BCHW = x_BCHW.repeat_interleave(size, 0)
        return sample_in_window(
            guided_velocity(sampler.transformer, _of_members(text, size), None, 0.0),
            x_BCHW,
            schedule[num_shared:],
            lambda step: step_noise(seeds, num_shared + step, x_BCHW.shape[1:]).to(device),
            sde=config.sde,
            noise_level=config.noise_level,
            window=replace(window, first=window.first - num_shared),
        )


def _of_members(text: TextTokens, size: int) -> TextTokens:
    """Every prompt's tokens for each member of its group."""
    mask_BT = None if text.mask_BT is None else text.mask_BT.repeat_interleave(size, 0)
    return replace(text, tokens_BTD=text.tokens_BTD.repeat_interleave(size, 0), mask_BT=mask_BT)


def step_noise(seeds: Sequence[int], step: int, shape: Sequence[int]) -> Tensor:
    """Noise (B, *shape) that a step adds, of each picture's own stream."""
    streams = [torch.Generator().manual_seed(seed_of(seed, step, "noise")) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=stream) for stream in streams])


@torch.no_grad()
def pictures_of(sampler: Sampler, latents_BCHW: Tensor, batch_size: int) -> Pictures:
    """Decoded latents as bytes (B, H, W, 3)."""
    parts = [to_bytes(sampler.codec.decode(part).cpu()) for part in latents_BCHW.split(batch_size)]
    return np.concatenate(parts)
