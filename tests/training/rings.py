"""Eight Gaussians on a ring, a network of points that learns them in seconds, and prompts that ask for one half of them.

Latents are (B, 2, h, w), every place a point of its own. A prompt is one of three letters: `0` asks for the even modes, `1`
for the odd ones, and gets them in three of four cases; the empty prompt asks for none.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pleinair.flow import euler, timestep_schedule
from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import TextTokens, Transformer
from pleinair.sampling.sampler import guided_velocity
from pleinair.training.engine import EngineConfig, Phase, train
from pleinair.training.optimisers import HeadConfig, OptimiserConfig
from pleinair.training.prompts import PromptLoader, PromptSet
from pleinair.training.stages.pretrain import Pretrain, PretrainConfig

RADIUS, DEVIATION, PURITY = 1.5, 0.1, 0.75
MODES = torch.tensor([[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)]) * RADIUS
LETTERS = torch.eye(3).reshape(3, 1, 1, 3)
"""Features of `0`, `1` and the empty prompt."""
EMPTY = LETTERS[2:]
SHIFT_MU = 0.5


@dataclass(frozen=True)
class PointConfig:
    width: int = 64
    patch_size: int = 1


class Points(nn.Module):
    """A velocity of points, with the methods of a transformer that stages call."""

    def __init__(self, config: PointConfig | None = None) -> None:
        super().__init__()
        self.config = config or PointConfig()
        width = self.config.width
        self.layers = nn.Sequential(
            nn.Linear(2 + 8 + 3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2),
        )  # fmt: skip

    def encode_text(self, features_BTLD: Tensor, mask_BT: Tensor | None = None) -> TextTokens:
        return TextTokens(features_BTLD[:, :, 0], None)

    def denoise(self, latents_BCHW: Tensor, timestep_B: Tensor, text: TextTokens) -> Tensor:
        points_BP2 = latents_BCHW.movedim(1, -1).flatten(1, 2)
        angles_B4 = timestep_B[:, None] * math.pi * torch.tensor([0.5, 1.0, 2.0, 4.0])
        condition = torch.cat([angles_B4.sin(), angles_B4.cos(), text.tokens_BTD[:, 0]], 1)
        known = torch.cat([points_BP2, condition[:, None].expand(-1, points_BP2.shape[1], -1)], -1)
        velocity: Tensor = self.layers(known).unflatten(1, latents_BCHW.shape[2:]).movedim(-1, 1)
        return velocity

    def forward(self, latents_BCHW: Tensor, timestep_B: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.denoise(latents_BCHW, timestep_B, self.encode_text(features, mask))


def shares(letters_B: Tensor, purity: float) -> Tensor:
    """(B, 8) of each prompt the share of each mode."""
    even = torch.tensor([purity, 1 - purity, 0.5])[letters_B]
    return torch.stack([even, 1 - even], 1).repeat(1, 4) / 4


def exact_velocity(x_B2: Tensor, timestep_B: Tensor, shares_B8: Tensor) -> Tensor:
    """E[noise - x0 | x_t] of the ring, in closed form."""
    t = timestep_B[:, None, None]
    variance = ((1 - t) * DEVIATION) ** 2 + t**2
    off_B82 = x_B2[:, None] - (1 - t) * MODES
    logits_B8 = shares_B8.log() - off_B82.square().sum(-1) / (2 * variance[..., 0])
    of_mode_B82 = t / variance * off_B82 - MODES - (1 - t) * DEVIATION**2 / variance * off_B82
    return (logits_B8.softmax(1)[..., None] * of_mode_B82).sum(1)


def fit(
    model: Points, steps: int, *, letters: tuple[int, ...] = (0, 1, 2), purity: float = PURITY, seed: int = 0
) -> Points:
    """Regress the exact velocity for some prompts, along the ring's paths."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        letters_B = torch.tensor(letters)[torch.randint(len(letters), (512,))]
        shares_B8 = shares(letters_B, purity)
        clean = MODES[torch.multinomial(shares_B8, 1)[:, 0]] + DEVIATION * torch.randn(512, 2)
        timestep_B = torch.rand(512)
        x_B2 = (1 - timestep_B[:, None]) * clean + timestep_B[:, None] * torch.randn(512, 2)
        velocity = model(x_B2[..., None, None], timestep_B, LETTERS[letters_B])[..., 0, 0]
        loss = (velocity - exact_velocity(x_B2, timestep_B, shares_B8)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model


@cache
def _base() -> Points:
    torch.manual_seed(0)
    return fit(Points(), 2500)


def base() -> Points:
    """A network that knows the ring and all prompts; a copy."""
    return copy.deepcopy(_base())


def stage_of(model: Points) -> Pretrain:
    return Pretrain(cast(Transformer, model), FeatureProjection(1, 3, 3), PretrainConfig())


def prompts(letters: tuple[int, ...], batch_size: int = 16, domains: tuple[int, ...] | None = None) -> PromptLoader:
    """The letters in batches; 32 points for each."""
    features = LETTERS[list(letters)]
    known = PromptSet(
        ["01-"[letter] for letter in letters],
        features,
        torch.ones(len(letters), 1, dtype=torch.bool),
        torch.tensor(domains or (0,) * len(letters)),
    )
    return PromptLoader(known, (2, 4, 8), batch_size)


def run(stage: Any, loader: PromptLoader, steps: int, directory: Path, **changes: Any) -> None:
    """Train through the engine."""
    optimiser = OptimiserConfig(
        **{
            "learning_rate": 2e-3,
            "betas": (0.0, 0.95),
            "warmup_steps": 10,
            "decay_share": 0.6,
            "weight_decay": 0.0,
            **changes,
        }
    )
    config = EngineConfig(
        optimiser=optimiser, precision="fp32", num_threads=1, checkpoint_seconds=1e9, checkpoint_by="time"
    )
    phase = Phase("prompts", steps, loader.batch_size, loader)
    train(stage, [phase], config, directory, config_digest="d", on_message=lambda _: None)


FAKE = HeadConfig(rate_factor=3.0)


@torch.no_grad()
def draw(
    model: Points, letter: int, num_steps: int, *, guidance: float = 0.0, count: int = 2048, seed: int = 1
) -> Tensor:
    """(count, 2) samples of a prompt."""
    noise = torch.randn(count // 32, 2, 4, 8, generator=torch.Generator().manual_seed(seed))
    network = cast(Transformer, model)
    text, empty = (network.encode_text(one) for one in (LETTERS[[letter]].expand(count // 32, -1, -1, -1), EMPTY))
    velocity = guided_velocity(network, text, empty, guidance)
    return euler(velocity, noise, timestep_schedule(num_steps, SHIFT_MU)).movedim(1, -1).reshape(-1, 2)


def asked_for(samples_N2: Tensor, letter: int) -> float:
    """The share of samples that are nearest to a mode the prompt asks for and lie on it."""
    distance, mode = torch.cdist(samples_N2, MODES).min(1)
    return float(((mode % 2 == letter) & (distance < 4 * DEVIATION)).float().mean())


def on_modes(samples_N2: Tensor) -> float:
    """The share of samples that lie on any mode."""
    return float((torch.cdist(samples_N2, MODES).min(1).values < 4 * DEVIATION).float().mean())


def mmd(a_ND: Tensor, b_MD: Tensor) -> float:
    """Squared maximum mean discrepancy under Gaussian kernels of three widths, unbiased."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squares = torch.cdist(x, y).square()
        return torch.stack([(-squares / (2 * width**2)).exp() for width in (0.1, 0.3, 1.0)]).mean(0)

    def within(x: Tensor) -> Tensor:
        return (kernel(x, x).sum() - len(x)) / (len(x) * (len(x) - 1))

    return float(within(a_ND) + within(b_MD) - 2 * kernel(a_ND, b_MD).mean())
