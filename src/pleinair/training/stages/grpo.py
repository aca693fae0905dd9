"""GRPO: more of the stochastic steps that led to better pictures than their group's, fewer of the others.

    r    = p(step) / p_old(step), corrected            of every step in the window, of a rollout's picture
    loss = mean over steps of  weight * -min(r A, clip(r, 1 - c, 1 + c) A)   +   kl_weight * mean |v - v_ref|^2

Two corrections after GRPO-Guard (Wang et al. 2025). With d = (mean_old - mean) / deviation, the plain log ratio of a step is
-mean(noise d) - mean(d^2) / 2: below zero on average, the more so the smaller the deviation, so that the clip holds one side
only and at some steps only. `guard` takes the second term out and the deviation too: log r = -mean(noise (mean_old - mean)).
`reweight` divides by how far a step's log ratio moves per unit of velocity, in units of the schedule's mean, so that every
step teaches the velocity equally wherever the window lies; on Flow-SDE that is the paper's division by the step's length.

No guidance in rollout or update. The distance to the frozen reference is taken in the velocity, which does not depend on
the kind of steps. At the first update after a rollout the model is its own old policy: ratios that are not 1 there mean
that drawing and training compute differently, and the run stops.

B rows, W steps of the window, S = W + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pleinair.flow.stochastic import Sde, Transition, coefficients, log_probability, transition
from pleinair.model.digest import part_digest
from pleinair.model.transformer import Transformer
from pleinair.records.errors import ConfigError
from pleinair.training.engine import LossOutput
from pleinair.training.random import RowRandom
from pleinair.training.rollouts.loader import RolloutBatch
from pleinair.training.stages.derived import DerivedStage
from pleinair.training.stages.finetune import Finetune
from pleinair.training.stages.pretrain import Pretrain

LARGEST_FIRST_ERROR = 1e-4
"""How far from 1 a ratio of the first update may be, by rounding."""
PUBLISHED_CLIP, PUBLISHED_SIZE = 1e-4, 65536
"""Of Flow-GRPO with SD3.5 at 512 px, whose latents have 16 x 64 x 64 values."""


@dataclass(frozen=True, kw_only=True)
class GrpoConfig:
    """How far an update may go."""

    clip: float | None = None
    """c: a step's ratio teaches no more once it is so far from 1. Small, as log probabilities are means over dimensions: their
    spread falls as one over the root of the latents' size. None: 1e-4 at 65,536 values and so much more at fewer."""
    largest_advantage: float = 5.0
    """Advantages beyond it, to either side, count as this."""
    guard: bool = True
    """Take the mean and the deviation out of the log ratios."""
    reweight: bool = True
    """Weigh steps so that each teaches the velocity equally; weights are 1 on average over the schedule."""
    kl_weight: float = 0.0
    """Of the squared distance to the reference's velocity; 0 needs no reference, and with one only measures it."""

    def __post_init__(self) -> None:
        if (self.clip is not None and self.clip <= 0) or self.largest_advantage <= 0 or self.kl_weight < 0:
            raise ConfigError(
                f"clip is {self.clip}, largest_advantage {self.largest_advantage}, kl_weight {self.kl_weight}: give positive "
                "numbers, and 0 or more for kl_weight"
            )

    def clip_at(self, size: int) -> float:
        """The clip for latents of so many values."""
        return PUBLISHED_CLIP * (PUBLISHED_SIZE / size) ** 0.5 if self.clip is None else self.clip


class Grpo(DerivedStage):
    """The stage: the pretrained transformer, and a frozen copy of it to stay near."""

    def __init__(self, base: Pretrain | Finetune, config: GrpoConfig, reference: Transformer | None = None) -> None:
        """`reference` holds the weights that the run starts from; it is put into evaluation mode and frozen."""
        if config.kl_weight > 0 and reference is None:
            raise ConfigError(f"kl_weight is {config.kl_weight}: give a reference, or set kl_weight=0")
        self.config = config
        self.reference = None if reference is None else reference.eval().requires_grad_(False)
        super().__init__(base, {"reference.json": reference_document(self.reference)})

    def loss(self, batch: RolloutBatch, random: RowRandom) -> LossOutput:
        """Clipped policy gradient of the window's steps; nothing is drawn. Raises ConfigError where ratios cannot be right."""
        if not batch.means_BWCHW.shape[1]:
            raise ConfigError("the rollouts have no stochastic steps: set window_size, or train with the stage Nft")
        states_NCHW, timestep_N = batch.states_BSCHW[:, :-1].flatten(0, 1), batch.timesteps_BS[:, :-1].flatten()
        velocity_NCHW = velocities(self.model, batch, states_NCHW, timestep_N)
        next_N = batch.timesteps_BS[:, 1:].flatten()
        given = transition(batch.sde, states_NCHW, velocity_NCHW, timestep_N, next_N, batch.noise_level)
        plain_BW, corrected_BW = self._log_ratios(batch, given)
        if batch.num_updates == 0:
            _require_ones(plain_BW)
        ratio_BW = (corrected_BW if self.config.guard else plain_BW).exp()
        limit, clip = self.config.largest_advantage, self.config.clip_at(batch.samples_BCHW[0].numel())
        advantage_B1 = batch.advantages_B.clamp(-limit, limit)[:, None]
        surrogate_BW = clipped(ratio_BW, advantage_B1, clip)
        if self.config.reweight:
            surrogate_BW = self._weights(batch) * surrogate_BW
        loss = -surrogate_BW.mean()
        metrics = {
            "reward": batch.rewards_B.mean(),
            "rl/ratio_off": (ratio_BW - 1).abs().mean().detach(),
            "rl/clipped": ((ratio_BW - 1).abs() > clip).float().mean().detach(),
        }
        if self.reference is not None:
            with torch.no_grad():
                reference_NCHW = velocities(self.reference, batch, states_NCHW, timestep_N)
            drift = (velocity_NCHW - reference_NCHW).square().mean()
            loss = loss + self.config.kl_weight * drift
            metrics["rl/velocity_drift"] = drift.detach()
        return LossOutput(loss, metrics)

    def _log_ratios(self, batch: RolloutBatch, given: Transition) -> tuple[Tensor, Tensor]:
        """(B, W) log ratios of the steps taken: plain, and as Guard corrects them."""
        shape = batch.log_probabilities_BW.shape
        new_BW = log_probability(batch.states_BSCHW[:, 1:].flatten(0, 1), given).view(shape)
        plain_BW = new_BW - batch.log_probabilities_BW
        deviation_BW = given.deviation.view(shape)
        moved_BW = (given.mean - batch.means_BWCHW.flatten(0, 1)).square().flatten(1).mean(1).view(shape)
        return plain_BW, plain_BW * deviation_BW + moved_BW / (2 * deviation_BW)

    def _weights(self, batch: RolloutBatch) -> Tensor:
        """(W,) weights of the window's steps, the same in every row."""
        window_W, schedule_S = (
            inverse_gains(batch.sde, timesteps, batch.noise_level, guard=self.config.guard)
            for timesteps in (batch.timesteps_BS[0].cpu(), torch.tensor(batch.schedule, dtype=torch.float64))
        )
        return (window_W / schedule_S.mean()).to(batch.samples_BCHW)


def inverse_gains(sde: Sde, timesteps: Tensor, noise_level: float, *, guard: bool) -> Tensor:
    """(steps,) float64: how much velocity moves a step's log ratio by one unit of its noise. Steps without noise are left out."""
    step = coefficients(sde, timesteps[:-1], timesteps[1:], noise_level)
    inverse = (1.0 if guard else step.deviation) / step.of_velocity.abs()
    return inverse[step.deviation > 0]


def clipped(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's surrogate: what a ratio earns, without a reward for going further than `clip` from 1."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def velocities(model: Transformer, batch: RolloutBatch, states_NCHW: Tensor, timestep_N: Tensor) -> Tensor:
    """Velocity, float32, at states of a batch's rows, N / B of each row in order."""
    times = len(states_NCHW) // len(batch.text_mask_BT)
    features_NTLD, mask_NT = (
        values.repeat_interleave(times, 0) for values in (batch.text_features_BTLD, batch.text_mask_BT)
    )
    velocity_NCHW: Tensor = model(states_NCHW, timestep_N.float(), features_NTLD, mask_NT)
    return velocity_NCHW.float()


def reference_document(reference: Transformer | None) -> dict[str, str | None]:
    """Which weights a run stayed near, for its checkpoints."""
    return {"sha256": None if reference is None else part_digest(reference)}


@torch.no_grad()
def _require_ones(log_ratio_BW: Tensor) -> None:
    off = float((log_ratio_BW.exp() - 1).abs().max())
    if not off < LARGEST_FIRST_ERROR:
        raise ConfigError(
            f"a ratio of the first update after a rollout is off by {off:.2g}, and none may be by {LARGEST_FIRST_ERROR}: the "
            "rollouts are drawn in another precision or by other weights than those trained; set drawing.precision to the "
            "engine's, fp32 at best"
        )
