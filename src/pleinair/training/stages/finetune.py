"""Fine-tuning a part of a model: what requires gradients is trained, what a callable gives is stored.

Midtraining and supervised fine-tuning need no stage of their own: they are `Pretrain` from a parent checkpoint, with their
own rate and data. This one is for adapters: freeze the base, add a LoRA, and only that is trained and stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from pleinair.model.transformer import Transformer
from pleinair.packs.loader import LatentBatch
from pleinair.packs.packed_loader import PackedLatentBatch
from pleinair.records.errors import ConfigError
from pleinair.training.engine import LossOutput
from pleinair.training.random import RowRandom
from pleinair.training.stages.pretrain import Pretrain


class Finetune:
    """The stage: pretraining's loss for the parameters of its model that require gradients."""

    def __init__(
        self,
        pretrain: Pretrain,
        state: Callable[[], Mapping[str, Tensor]],
        *,
        weights_file: str = "lora.safetensors",
        base: Mapping[str, Any],
    ) -> None:
        """`state` gives the live tensors to store and to load into; `base` tells which weights they belong to."""
        parameters = list(pretrain.model.parameters())
        if all(parameter.requires_grad for parameter in parameters):
            raise ConfigError("every parameter requires gradients: freeze the base, or train it with Pretrain")
        self.pretrain, self.state, self.weights_file, self.base = pretrain, state, weights_file, base

    @property
    def model(self) -> Transformer:
        """The whole network."""
        return self.pretrain.model

    def weights(self) -> Mapping[str, Tensor]:
        """What is stored."""
        return self.state()

    def documents(self) -> Mapping[str, Any]:
        """The transformer's configuration, and the base."""
        return {**self.pretrain.documents(), "base.json": dict(self.base)}

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The text projection."""
        return self.pretrain.tensors()

    def loss(self, batch: LatentBatch | PackedLatentBatch, random: RowRandom) -> LossOutput:
        """As for pretraining."""
        return self.pretrain.loss(batch, random)

    def velocity_errors(self, batch: LatentBatch | PackedLatentBatch, timestep_B: Tensor, random: RowRandom) -> Tensor:
        """As for pretraining."""
        return self.pretrain.velocity_errors(batch, timestep_B, random)
