"""DiffusionNFT: learn from good and bad pictures by the flow loss itself, without probabilities of steps.

    x_t  = (1 - t) x0 + t noise                         x0 a rollout's sample, drawn by v_old with any solver
    v+   = beta v + (1 - beta) v_old                    the policy that x0 should be more likely under where it is good
    v-   = (1 + beta) v_old - beta v                    and its mirror image, where it is bad
    loss = (a / beta) mean [ r |x0(v+) - x0|^2 / w+  +  (1 - r) |x0(v-) - x0|^2 / w- ]  +  kl_weight mean |v - v_ref|^2
    r    = clip(A / (2 a) + 1/2, 0, 1),    x0(v) = x_t - t v,    w = mean |x0(v) - x0| of the row, without gradient

v_old draws the rollouts. It follows the model after each iteration, v_old <- decay v_old + (1 - decay) v, with a decay that
grows from 0: at first it is the model, later it trails. It is part of the run's state: `OldPolicy` is the hook that moves
it and stores it in every checkpoint. After Zheng et al., "DiffusionNFT", 2025; a is `largest_advantage`, and the factor
a / beta is theirs, so that `kl_weight` means the same here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pleinair.flow import interpolate
from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from pleinair.training.engine import LossOutput, Run
from pleinair.training.random import RowRandom
from pleinair.training.records import StepRecord
from pleinair.training.rollouts.loader import RolloutBatch
from pleinair.training.stages.derived import DerivedStage
from pleinair.training.stages.finetune import Finetune
from pleinair.training.stages.grpo import reference_document, velocities
from pleinair.training.stages.pretrain import Pretrain


@dataclass(frozen=True, kw_only=True)
class NftConfig:
    """How strongly and how near."""

    beta: float = 1.0
    """Distance of the two implicit policies from the old one, in differences between model and old."""
    largest_advantage: float = 5.0
    """a: an advantage at which a picture counts as wholly good; its negative is wholly bad."""
    kl_weight: float = 1e-4
    """Of the squared distance to the reference's velocity; 0 needs no reference, and with one only measures it."""
    shift_mu: float | None = None
    """Mean of the logit of the training timesteps; None for those that the model was trained at, at the resolution drawn."""
    sigma: float = 1.0
    """Their deviation where `shift_mu` is given."""
    decay_per_iteration: float = 0.001
    """How fast the old policy's decay grows."""
    largest_decay: float = 0.5
    """Where it stops growing."""

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.largest_advantage <= 0 or self.kl_weight < 0:
            raise ConfigError(
                f"beta is {self.beta}, largest_advantage {self.largest_advantage}, kl_weight {self.kl_weight}: give positive "
                "numbers, and 0 or more for kl_weight"
            )
        if self.decay_per_iteration < 0 or not 0 <= self.largest_decay < 1:
            raise ConfigError(
                f"decay_per_iteration is {self.decay_per_iteration} and largest_decay {self.largest_decay}: give 0 or more, "
                "and a share below 1"
            )

    def decay(self, num_iterations: int) -> float:
        """Share of the old policy that is kept after so many iterations."""
        return min(self.decay_per_iteration * num_iterations, self.largest_decay)


class Nft(DerivedStage):
    """The stage: the transformer, the old policy that rollouts are drawn with, and a frozen copy to stay near."""

    def __init__(self, base: Pretrain | Finetune, config: NftConfig, reference: Transformer | None = None) -> None:
        """`old` begins as the model is when training begins; hand it to the sampler of the rollouts."""
        if config.kl_weight > 0 and reference is None:
            raise ConfigError(f"kl_weight is {config.kl_weight}: give a reference, or set kl_weight=0")
        self.config = config
        self.old = copy.deepcopy(base.model).eval().requires_grad_(False)
        self.reference = None if reference is None else reference.eval().requires_grad_(False)
        self.pretrain = base.pretrain if isinstance(base, Finetune) else base
        super().__init__(base, {"reference.json": reference_document(self.reference)})

    def loss(self, batch: RolloutBatch, random: RowRandom) -> LossOutput:
        """The loss at one timestep of each row."""
        config, x0_BCHW = self.config, batch.samples_BCHW.float()
        if config.shift_mu is None:
            timestep_B = self.pretrain.timesteps(x0_BCHW, random)
        else:
            timestep_B = random.logit_normal(config.shift_mu, config.sigma)
        noisy_BCHW = interpolate(x0_BCHW, random.normal(*x0_BCHW.shape[1:]), timestep_B)
        velocity_BCHW = velocities(self.model, batch, noisy_BCHW, timestep_B)
        with torch.no_grad():
            old_BCHW = velocities(self.old, batch, noisy_BCHW, timestep_B)
        positive_B, negative_B = (
            self_normalised_errors(noisy_BCHW - timestep_B[:, None, None, None] * implicit_BCHW, x0_BCHW)
            for implicit_BCHW in (
                config.beta * velocity_BCHW + (1 - config.beta) * old_BCHW,
                (1 + config.beta) * old_BCHW - config.beta * velocity_BCHW,
            )
        )
        goodness_B = (batch.advantages_B / (2 * config.largest_advantage) + 0.5).clamp(0, 1)
        mixed_B = goodness_B * positive_B + (1 - goodness_B) * negative_B
        loss = config.largest_advantage / config.beta * mixed_B.mean()
        metrics = {
            "reward": batch.rewards_B.mean(),
            "rl/old_drift": (velocity_BCHW - old_BCHW).square().mean().detach(),
        }
        if self.reference is not None:
            with torch.no_grad():
                reference_BCHW = velocities(self.reference, batch, noisy_BCHW, timestep_B)
            drift = (velocity_BCHW - reference_BCHW).square().mean()
            loss = loss + config.kl_weight * drift
            metrics["rl/velocity_drift"] = drift.detach()
        return LossOutput(loss, metrics)


def self_normalised_errors(predicted_BCHW: Tensor, x0_BCHW: Tensor) -> Tensor:
    """(B,) mean square error over the mean absolute error, the latter without gradient."""
    error_BCHW = predicted_BCHW - x0_BCHW
    weight_B = error_BCHW.detach().abs().flatten(1).mean(1).clamp_min(1e-5)
    return error_BCHW.square().flatten(1).mean(1) / weight_B


class OldPolicy:
    """The hook that keeps `Nft.old`: the model's weights at the start, mixed with the model's after each iteration."""

    stored_file = "old_policy.safetensors"

    def __init__(self, stage: Nft, steps_per_iteration: int) -> None:
        """`steps_per_iteration` is that of the rollouts."""
        self.stage, self.steps_per_iteration = stage, steps_per_iteration

    def begin(self, run: Run[Any]) -> None:
        """Start from the weights. Raises ConfigError on several ranks."""
        if run.mesh.world_size > 1:
            raise ConfigError(
                f"this run has {run.mesh.world_size} ranks and an old policy is held by one process whole: start one rank, or "
                "train with the stage Grpo"
            )
        self._mix(0.0)

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Follow the model once an iteration is over."""
        num_iterations, rest = divmod(record.step + 1, self.steps_per_iteration)
        if rest:
            return {}
        decay = self.stage.config.decay(num_iterations)
        self._mix(decay)
        return {"rl/old_decay": decay}

    def tensors(self) -> Mapping[str, Tensor]:
        """The old policy's weights, of what is trained."""
        old = self.stage.old.state_dict()
        return {name: old[name] for name, _ in self._trained()}

    @torch.no_grad()
    def _mix(self, decay: float) -> None:
        old = self.stage.old.state_dict()
        for name, weights in self._trained():
            old[name].copy_(decay * old[name] + (1 - decay) * weights)

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, weights) for name, weights in self.stage.model.named_parameters() if weights.requires_grad]
