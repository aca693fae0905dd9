"""A score over frozen features, such that the picture people prefer scores higher.

    features (B, F) --standardise--> linear + small MLP --> score (B,);  P(first preferred) = sigmoid(score_1 - score_2)

B batch, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.records.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PreferenceHeadConfig:
    """Its size."""

    features: int
    """Width of what it reads."""
    hidden: int = 0
    """Width of the MLP beside the linear score; 0: there is none."""
    features_by: str = ""
    """What makes the features, so that a head is not put on others."""

    def __post_init__(self) -> None:
        if self.features < 1 or self.hidden < 0:
            raise ConfigError(
                f"a preference head of {self.features} features and {self.hidden} hidden: give 1 and 0 or more"
            )


class PreferenceHead(nn.Module):
    """Starts as zero everywhere: nothing is preferred."""

    mean_F: Tensor
    std_F: Tensor

    def __init__(self, config: PreferenceHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean_F", torch.zeros(config.features))
        self.register_buffer("std_F", torch.ones(config.features))
        self.linear = nn.Linear(config.features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)
        self.mlp = mlp(config) if config.hidden else None

    def forward(self, features_BF: Tensor) -> Tensor:
        """(B,) scores."""
        standard_BF = (features_BF - self.mean_F) / self.std_F
        score_B1: Tensor = self.linear(standard_BF)
        if self.mlp is not None:
            score_B1 = score_B1 + self.mlp(standard_BF)
        return score_B1[:, 0]

    def set_statistics(self, features_NF: Tensor) -> None:
        """Measure mean and deviation of the features; they travel with the weights."""
        self.mean_F.copy_(features_NF.mean(0))
        self.std_F.copy_(features_NF.std(0, correction=0).clamp_min(1e-6))


def rescale(head: PreferenceHead, factor: float) -> None:
    """Multiply all scores."""
    with torch.no_grad():
        for name, weight in head.named_parameters():
            if name in ("linear.weight", "mlp.2.weight"):  # what ends in the score
                weight.mul_(factor)


def mlp(config: PreferenceHeadConfig) -> nn.Sequential:
    """One hidden layer; the last starts at zero."""
    last = nn.Linear(config.hidden, 1, bias=False)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.Linear(config.features, config.hidden), nn.GELU(), last)


def bradley_terry_loss(winners_B: Tensor, losers_B: Tensor) -> Tensor:
    """-log sigmoid(score of the winner - score of the loser), averaged (Bradley and Terry 1952)."""
    return -F.logsigmoid(winners_B - losers_B).mean()
