"""An exponential moving average of the weights, kept beside training to compare with merged checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pleinair.records.errors import ConfigError
from pleinair.training.engine import Run
from pleinair.training.records import StepRecord


class MovingAverage:
    """A hook: average = decay * average + (1 - decay) * weights after every step, float32, in every checkpoint.

    The report keeps none, as averaged checkpoints are as good and cost no memory; this is for measuring that.
    """

    stored_file = "ema.safetensors"

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"decay is {decay}: give a number between 0 and 1")
        self.decay = decay
        self._average: dict[str, Tensor] = {}

    def begin(self, run: Run[Any]) -> None:
        """Start from the weights."""
        self.start(run.stage.model)

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Move a little towards the weights."""
        self.move(run.stage.model)
        return {}

    def start(self, model: nn.Module) -> None:
        """Be the model's trained weights."""
        trained = model.named_parameters()
        self._average = {name: values.detach().float().clone() for name, values in trained if values.requires_grad}

    @torch.no_grad()
    def move(self, model: nn.Module) -> None:
        """Move a little towards the model's weights."""
        weights = dict(model.named_parameters())
        for name, average in self._average.items():
            average.lerp_(weights[name].detach().float(), 1 - self.decay)

    def tensors(self) -> Mapping[str, Tensor]:
        """The average, by the parameters' names."""
        return self._average

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with averaged weights inside the block, its own again after it."""
        weights = dict(model.named_parameters())
        kept = {name: weights[name].detach().clone() for name in self._average}
        with torch.no_grad():
            for name, average in self._average.items():
                weights[name].copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, values in kept.items():
                    weights[name].copy_(values)
