"""What the stages that improve a policy share: they stand on another stage, whose model they train and as which it is stored.

Pretrain | Finetune (all weights, or a LoRA) --base--> PolicyStage + a loss = Preference, Grpo, Nft
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pleinair.model.transformer import Transformer
from pleinair.packs.loader import LatentBatch
from pleinair.training.random import RowRandom
from pleinair.training.saving import weights_of
from pleinair.training.stages.finetune import Finetune
from pleinair.training.stages.pretrain import Pretrain


class DerivedStage:
    """A stage without its loss (`engine.Stage`)."""

    def __init__(self, base: Pretrain | Finetune, told: Mapping[str, Any] | None = None) -> None:
        """`told` are documents to store beside the base's, by file name."""
        self.base, self._told = base, told or {}
        self.weights_file = base.weights_file

    @property
    def model(self) -> Transformer:
        """What is trained."""
        return self.base.model

    def weights(self) -> Mapping[str, Tensor]:
        """What the base stage stores: all of its model, or an adapter."""
        return weights_of(self.base)

    def documents(self) -> Mapping[str, Any]:
        """As for the base stage, and what was told beside."""
        return {**self.base.documents(), **self._told}

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """As for the base stage."""
        return self.base.tensors()

    def velocity_errors(self, batch: LatentBatch, timestep_B: Tensor, random: RowRandom) -> Tensor:
        """As for the base stage, of held-out rows: what the model has kept of its data's velocity (`hooks.validation`)."""
        return self.base.velocity_errors(batch, timestep_B, random)
