"""A TopK sparse autoencoder on embeddings: each vector as a sum of a few directions out of many.

    x_BE --standardise--> (x - bias) W_encode --keep the K largest, positive--> codes_BF --W_decode + bias--> x again

A direction that fires on few pictures is a candidate tag. A latent that has not fired for a while is dead; the auxiliary
loss lets dead latents explain what the living ones leave over, which brings most back. After "Scaling and evaluating
sparse autoencoders" (Gao et al. 2024): TopK, encoder started as the decoder's transpose, unit directions, AuxK with
coefficient 1/32.

B batch, E embedding width, F features, K active.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.records.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SparseAutoencoderConfig:
    """Sizes and training of the autoencoder."""

    features: int = 1024
    """Directions to choose from."""
    active: int = 16
    """Directions per vector (L0)."""
    epochs: int = 60
    """Passes over the vectors."""
    batch_size: int = 512
    """Vectors in a step."""
    learning_rate: float = 1e-3
    """Peak rate of Adam; falls to zero over the last fifth of the steps."""
    dead_after_epochs: float = 2.0
    """A latent that fired for none of that many passes is dead."""
    auxiliary_active: int = 128
    """Dead latents that explain the residual in a step."""
    auxiliary_weight: float = 1 / 32
    """Of that auxiliary loss."""
    seed: int = 0
    """Of weights and order."""

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.features:
            raise ConfigError(f"{self.active} active of {self.features} features: give 1 to {self.features}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sparse autoencoder {name} is {getattr(self, name)}: give 1 or more")


@dataclass(frozen=True)
class Quality:
    """How well codes stand for vectors they were not trained on."""

    unexplained: float
    """Fraction of variance unexplained: squared error over variance around the mean."""
    cosine: float
    """Mean cosine of a standardised vector and its reconstruction."""
    active: float
    """Mean number of active features (L0)."""
    dead_share: float
    """Features that fire for no vector at all."""


class SparseAutoencoder(nn.Module):
    """The network; `mean_E` and `scale` standardise vectors and travel with it."""

    mean_E: Tensor
    scale: Tensor
    last_fired_F: Tensor

    def __init__(self, width: int, config: SparseAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        directions_FE = F.normalize(torch.randn(config.features, width), dim=1)
        self.decode_FE = nn.Parameter(directions_FE)
        self.encode_FE = nn.Parameter(directions_FE.clone())
        self.bias_F = nn.Parameter(torch.zeros(config.features))
        self.register_buffer("mean_E", torch.zeros(width))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("last_fired_F", torch.zeros(config.features))  # the step of a latent's last code

    def set_statistics(self, vectors_NE: Tensor) -> None:
        """Measure the mean and the scale that gives centred vectors a mean square length of 1."""
        self.mean_E.copy_(vectors_NE.mean(0))
        self.scale.copy_((vectors_NE - self.mean_E).square().sum(1).mean().sqrt())

    def standard(self, vectors_BE: Tensor) -> Tensor:
        """Vectors as the network sees them."""
        return (vectors_BE - self.mean_E) / self.scale

    def activations(self, standard_BE: Tensor) -> Tensor:
        """(B, F) before any is cut."""
        return F.relu(F.linear(standard_BE, self.encode_FE, self.bias_F))

    def codes(self, vectors_BE: Tensor) -> Tensor:
        """(B, F), at most K of them positive, the others zero."""
        return keep_largest(self.activations(self.standard(vectors_BE)), self.config.active)

    def loss(self, vectors_BE: Tensor, dead_F: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction error with the auxiliary one, and which latents fired (F,)."""
        standard_BE = self.standard(vectors_BE)
        activations_BF = self.activations(standard_BE)
        codes_BF = keep_largest(activations_BF, self.config.active)
        residual_BE = standard_BE - codes_BF @ self.decode_FE
        error = residual_BE.square().sum(1).mean()
        if num_dead := int(dead_F.sum()):
            # Without relu: a dead latent is negative everywhere, and only so does a gradient reach it.
            raw_BD = F.linear(standard_BE, self.encode_FE[dead_F], self.bias_F[dead_F])
            revived_BD = keep_largest(raw_BD, min(self.config.auxiliary_active, num_dead))
            left = (residual_BE.detach() - revived_BD @ self.decode_FE[dead_F]).square().sum(1).mean()
            error = error + self.config.auxiliary_weight * left
        return error, (codes_BF > 0).any(dim=0)

    @torch.no_grad()
    def normalise_directions(self) -> None:
        """Decoder rows back to length 1; otherwise a latent may shrink its code and grow its direction."""
        self.decode_FE.copy_(F.normalize(self.decode_FE, dim=1))

    @torch.no_grad()
    def quality(self, vectors_NE: Tensor) -> Quality:
        """Measured on vectors that were not trained on."""
        standard_NE, codes_NF = self.standard(vectors_NE), self.codes(vectors_NE)
        made_NE = codes_NF @ self.decode_FE
        variance = (standard_NE - standard_NE.mean(0)).square().sum()
        return Quality(
            unexplained=float((standard_NE - made_NE).square().sum() / variance),
            cosine=float(F.cosine_similarity(standard_NE, made_NE).mean()),
            active=float((codes_NF > 0).sum(1).float().mean()),
            dead_share=float(1 - (codes_NF > 0).any(0).float().mean()),
        )


def keep_largest(values_BF: Tensor, count: int) -> Tensor:
    """The `count` largest of each row, the others zero."""
    largest_BK, places_BK = values_BF.topk(count, dim=1, sorted=False)
    return torch.zeros_like(values_BF).scatter(1, places_BK, largest_BK)
