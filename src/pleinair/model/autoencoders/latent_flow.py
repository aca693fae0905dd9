"""A small convolutional flow model on latents: the head that shapes an autoencoder, and the probe that judges one.

x_t (B, C, h, w), t --conv in--> residual blocks, each with a bias made of t --conv out--> velocity
                                      |after the last but one
                                      v
                               hidden (B, width, h, w), aligned to image features by whoever trains it
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.model.autoencoder import ResidualBlock

NUM_FREQUENCIES = 8


class LatentFlow(nn.Module):
    """Velocity of noisy latents without text; some 0.3 million parameters at width 64."""

    def __init__(self, channels: int, width: int = 64, num_blocks: int = 3) -> None:
        super().__init__()
        if num_blocks < 2 or width % 8:
            raise ValueError(f"num_blocks is {num_blocks} and width {width}: give 2 blocks or more, a multiple of 8")
        self.width = width
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList([ResidualBlock(width) for _ in range(num_blocks)])
        self.time_biases = nn.Linear(2 * NUM_FREQUENCIES, num_blocks * width)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, noisy_BChw: Tensor, timestep_B: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity (B, C, h, w) and hidden features (B, width, h, w); t in [0, 1], 1 is noise."""
        biases_BKW = self.time_biases(_waves(timestep_B)).unflatten(1, (len(self.blocks), self.width))
        x_BWhw = hidden_BWhw = self.conv_in(noisy_BChw)
        for number, block in enumerate(self.blocks):
            x_BWhw = block(x_BWhw + biases_BKW[:, number, :, None, None])
            if number == len(self.blocks) - 2:
                hidden_BWhw = x_BWhw
        return self.conv_out(F.silu(x_BWhw)), hidden_BWhw


def _waves(timestep_B: Tensor) -> Tensor:
    """cos and sin of pi t at octaves, (B, 2 NUM_FREQUENCIES)."""
    octaves_F = math.pi * 2.0 ** torch.arange(NUM_FREQUENCIES, device=timestep_B.device)
    angles_BF = timestep_B.float()[:, None] * octaves_F
    return torch.cat([angles_BF.cos(), angles_BF.sin()], dim=1)
