"""A small network that says what is wrong with a picture: nothing, or one of the faults it was taught.

    (B, 3, H, W) -> three stages, each halved -> mean and spread of every stage -> logits of `sound` and each fault

Faults are textures: they show in the spread of early stages, which the head therefore sees, and hardly in what the picture
is of. The stages are those of the judge, with weights of their own.

B batch, C channels, H W height and width, K faults and sound.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pleinair.model.judge import stage
from pleinair.records.errors import ConfigError

SOUND = "sound"


@dataclass(frozen=True, kw_only=True)
class ArtefactConfig:
    """What it can tell apart, and its size."""

    faults: tuple[str, ...]
    """Names of the faults, in the order of the logits behind `sound`."""
    widths: tuple[int, ...] = (24, 48, 64)
    """Channels of each stage."""
    blocks: tuple[int, ...] = (0, 0, 1)
    """Residual blocks of each stage."""

    def __post_init__(self) -> None:
        if not self.faults or SOUND in self.faults:
            raise ConfigError(f"faults are {self.faults}: name at least one, and none '{SOUND}'")
        if len(self.widths) != len(self.blocks) or not self.widths:
            raise ConfigError(f"widths {self.widths} and blocks {self.blocks}: give one of each per stage")

    @property
    def classes(self) -> tuple[str, ...]:
        """`sound`, then the faults."""
        return (SOUND, *self.faults)


class ArtefactNet(nn.Module):
    """Pictures come as (B, 3, H, W) in [0, 1]."""

    def __init__(self, config: ArtefactConfig) -> None:
        super().__init__()
        self.config = config
        inputs = (3, *config.widths[:-1])
        self.stages = nn.ModuleList(
            stage(before, width, num_blocks, first=index == 0)
            for index, (before, width, num_blocks) in enumerate(zip(inputs, config.widths, config.blocks, strict=True))
        )
        pooled = 2 * sum(config.widths)
        self.norm = nn.BatchNorm1d(pooled)
        self.head = nn.Linear(pooled, len(config.classes))

    def forward(self, pictures_BCHW: Tensor) -> Tensor:
        """(B, K) logits."""
        x_BCHW, pooled = pictures_BCHW, []
        for one in self.stages:
            x_BCHW = one(x_BCHW)
            mean_BC, square_BC = x_BCHW.mean(dim=(2, 3)), x_BCHW.square().mean(dim=(2, 3))
            pooled += [mean_BC, ((square_BC - mean_BC.square()).clamp(min=0) + 1e-5).sqrt()]
        logits_BK: Tensor = self.head(self.norm(torch.cat(pooled, dim=1)))
        return logits_BK
