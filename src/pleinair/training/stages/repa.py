"""iREPA: pretraining whose early blocks are pulled towards a frozen image encoder's patch features, in a first phase.

    loss = flow matching + weight * mean over tokens of -cos(projector(h), y')
    h    image tokens after block `depth`, on their grid          projector: one 3x3 convolution
    y'   (y - 0.6 mean) / (deviation + 1e-6), both over the tokens of a picture

Left on, it caps what the model learns (Krea 2 report: the first epoch at 256 px only); so the projector is the stage's head,
which leaves optimiser and checkpoint with its phase. After Singh et al., "What matters for representation alignment", 2025.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.model.packed_text import images_of
from pleinair.records.errors import ConfigError
from pleinair.training.engine import LossOutput
from pleinair.training.patch_features import PackedPatchBatch, PatchBatch
from pleinair.training.random import RowRandom
from pleinair.training.stages.derived import DerivedStage
from pleinair.training.stages.pretrain import Pretrain


@dataclass(frozen=True, kw_only=True)
class RepaConfig:
    """Where and how strongly to align."""

    depth: int = 8
    """Blocks before the aligned tokens."""
    weight: float = 1.0
    """Of the alignment beside the flow loss."""
    mean_share: float = 0.6
    """How much of a picture's mean feature is taken out; 1 leaves only what differs between its tokens."""

    def __post_init__(self) -> None:
        if self.depth < 1 or self.weight <= 0:
            raise ConfigError(
                f"depth is {self.depth} and weight {self.weight}: give at least 1 block and a positive weight"
            )


class Repa(DerivedStage):
    """The stage: `Pretrain` with a projector beside the model."""

    def __init__(self, pretrain: Pretrain, feature_width: int, config: RepaConfig) -> None:
        if config.depth > pretrain.model.config.num_layers:
            raise ConfigError(f"depth is {config.depth}: the model has only {pretrain.model.config.num_layers} blocks")
        super().__init__(pretrain)
        self.pretrain, self.config = pretrain, config
        self.head = nn.Conv2d(pretrain.model.config.width, feature_width, 3, padding=1)

    def loss(self, batch: PatchBatch | PackedPatchBatch, random: RowRandom) -> LossOutput:
        """Flow loss and alignment; both are logged."""
        with self._tokens_kept() as kept:
            flow = self.pretrain.loss(batch, random).loss
        rows, columns = batch.patches_BDHW.shape[-2:]
        image_BID = _image_tokens(kept[0], batch, rows * columns)
        grid_BDHW = image_BID.transpose(1, 2).unflatten(2, (rows, columns))
        target_BDHW = spatially_normalised(batch.patches_BDHW, self.config.mean_share)
        cosine = F.cosine_similarity(self.head(grid_BDHW).float(), target_BDHW, dim=1).mean()
        return LossOutput(flow - self.config.weight * cosine, {"flow": flow.detach(), "repa_cosine": cosine.detach()})

    @contextmanager
    def _tokens_kept(self) -> Iterator[list[Tensor]]:
        kept: list[Tensor] = []
        block = self.model.transformer_blocks[self.config.depth - 1]
        handle = block.register_forward_hook(
            lambda module, inputs, output: kept.append(output[0] if isinstance(output, tuple) else output)
        )
        try:
            yield kept
        finally:
            handle.remove()


def _image_tokens(x_BSD: Tensor, batch: PatchBatch | PackedPatchBatch, num_image: int) -> Tensor:
    """(B, I, D) out of a block's tokens: a row's text comes first, and packed rows lie end to end."""
    if isinstance(batch, PackedPatchBatch):
        return images_of(x_BSD[0], batch.text.lengths, num_image)
    return x_BSD[:, -num_image:]


def spatially_normalised(features_BDHW: Tensor, mean_share: float) -> Tensor:
    """Each feature over the tokens of its picture: less a share of the mean, over the deviation."""
    mean_BD11 = features_BDHW.mean(dim=(2, 3), keepdim=True)
    deviation_BD11 = torch.std(features_BDHW, dim=(2, 3), keepdim=True)
    return (features_BDHW - mean_share * mean_BD11) / (deviation_BD11 + 1e-6)
