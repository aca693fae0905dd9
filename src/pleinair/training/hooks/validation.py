"""Loss of held-out rows at fixed timesteps: comparable over a run, over resolutions' shifts and between runs.

The training loss moves with its timesteps: another shift gives another number for the same model. Here every row is seen
at every timestep of a grid, with the same noise each time. Given a reference, also what was lost against it, and how far the
velocity has drifted from its: a loss can stay where it is while the velocity moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pleinair.flow import interpolate
from pleinair.packs.loader import LatentBatch
from pleinair.records.errors import ConfigError
from pleinair.training.averaging import MovingAverage
from pleinair.training.engine import Loader, Run
from pleinair.training.mesh import Mesh
from pleinair.training.random import RowRandom
from pleinair.training.records import StepRecord
from pleinair.training.reductions import mean_metrics
from pleinair.training.rows import num_rows, on_device


class TimestepErrors(Protocol):
    """A stage whose error can be had at a given timestep."""

    @property
    def model(self) -> nn.Module:
        """The network, put into evaluation mode meanwhile."""
        ...

    def velocity_errors(self, batch: Any, timestep_B: Tensor, random: RowRandom) -> Tensor:
        """(B,) error of each row."""
        ...


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How often, where, on how much."""

    every: int = 500
    """Steps between measurements; the last step is always measured. 0 for none at all."""
    timesteps: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """The grid."""
    num_batches: int = 4
    """Batches of the held-out loader."""
    seed: int = 1_000_003
    """Seed of the noise."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.num_batches < 1:
            raise ConfigError(
                f"every is {self.every} and num_batches {self.num_batches}: give a number of steps, or 0 for never, and at "
                "least 1 batch"
            )
        if not self.timesteps or not all(0 < t <= 1 for t in self.timesteps):
            raise ConfigError(f"timesteps is {self.timesteps}: give some in (0, 1]")


class Validation:
    """The hook: adds `validation/t0.1` ... and their mean `validation/loss`, and `validation_ema/...` given an average.

    Given a reference, another model of the same errors, also `validation_rise/...`: what the run has lost against it; and
    `validation_drift/t0.1` ... with their mean `validation_drift/mean`: the mean square of velocity less the reference's.
    """

    def __init__(
        self,
        loader: Loader[Any],
        config: ValidationConfig,
        average: MovingAverage | None = None,
        reference: TimestepErrors | None = None,
    ) -> None:
        self.loader, self.config, self.average, self.reference = loader, config, average, reference
        self._of_reference: dict[float, float] | None = None

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Measure when due."""
        if (record.step + 1) % self.config.every and record.step + 1 != run.total_steps:
            return {}
        stage: Any = run.main_stage
        with run.autocast():
            losses = self._losses(stage, run.mesh)
            measured = _named("validation", losses)
            if self.reference is not None:
                if self._of_reference is None:
                    self._of_reference = self._losses(self.reference, run.mesh)
                rises = {timestep: loss - self._of_reference[timestep] for timestep, loss in losses.items()}
                drifts = velocity_drift(
                    stage.model,
                    self.reference.model,
                    self._batches(),
                    self.config.timesteps,
                    self.config.seed,
                    run.mesh,
                )
                measured |= {**_named("validation_rise", rises), **_named("validation_drift", drifts, "mean")}
            if self.average is not None:
                with self.average.applied(stage.model):
                    measured |= _named("validation_ema", self._losses(stage, run.mesh))
        return measured

    def _losses(self, stage: TimestepErrors, mesh: Mesh) -> dict[float, float]:
        return validation_losses(stage, self._batches(), self.config.timesteps, self.config.seed, mesh)

    def _batches(self) -> list[Any]:
        return [self.loader.batch(number) for number in range(self.config.num_batches)]


def validation_losses(
    stage: TimestepErrors, batches: Sequence[Any], timesteps: Sequence[float], seed: int, mesh: Mesh
) -> dict[float, float]:
    """Mean error of all rows at each timestep; deterministic."""
    with evaluating(stage.model):
        return _over_grid(stage.velocity_errors, batches, timesteps, seed, mesh)


def velocity_drift(
    model: nn.Module,
    reference: nn.Module,
    batches: Sequence[LatentBatch],
    timesteps: Sequence[float],
    seed: int,
    mesh: Mesh,
) -> dict[float, float]:
    """Mean square of two models' difference in velocity at each timestep, in the noise of `validation_losses`; deterministic."""

    def apart(batch: LatentBatch, timestep_B: Tensor, random: RowRandom) -> Tensor:
        latents_BCHW = batch.latents_BCHW.float()
        noisy_BCHW = interpolate(latents_BCHW, random.normal(*latents_BCHW.shape[1:]), timestep_B)
        inputs = (noisy_BCHW, timestep_B, batch.text_features_BTLD, batch.text_mask_BT)
        difference_BCHW: Tensor = model(*inputs).float() - reference(*inputs).float()
        return difference_BCHW.square().mean(dim=(1, 2, 3))

    with evaluating(model), evaluating(reference):
        return _over_grid(apart, batches, timesteps, seed, mesh)


@torch.no_grad()
def _over_grid(
    measure: Callable[[Any, Tensor, RowRandom], Tensor],
    batches: Sequence[Any],
    timesteps: Sequence[float],
    seed: int,
    mesh: Mesh,
) -> dict[float, float]:
    """The mean over all rows of what `measure` gives, (B,), at each timestep; a row's noise is the same at all of them."""
    sums = torch.zeros(len(timesteps), device=mesh.device)
    for number, batch in enumerate(on_device(batch, mesh.device) for batch in batches):
        count = num_rows(batch)
        first = mesh.data_rank * count
        for place, timestep in enumerate(timesteps):
            random = RowRandom(seed, number, range(first, first + count), mesh.device)
            timestep_B = torch.full((count,), timestep, device=mesh.device)
            sums[place] += measure(batch, timestep_B, random).float().mean()
    means = mean_metrics({f"{place:04}": total / len(batches) for place, total in enumerate(sums)}, mesh)
    return dict(zip(timesteps, means.values(), strict=True))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode inside the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _named(group: str, values: Mapping[float, float], mean: str = "loss") -> dict[str, float]:
    named = {f"{group}/t{timestep:g}": value for timestep, value in values.items()}
    return {**named, f"{group}/{mean}": sum(values.values()) / len(values)}
