"""Preference optimisation: pairs of pictures, one preferred, and a frozen reference that tells what has moved.

    PairBatch --same timestep and noise for both--> l_w, l_l of policy and reference --one of six losses--> loss
    AnchoredPairBatch: rows of the pretraining pack beside --policy against reference--> drift (anchor)

The losses are in `preference_losses`. What a run must be watched for is measured at every step: errors against the reference,
winners that got worse, margins, and the drift of the velocity on pretraining data; `hooks.divergence` ends a run by them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from pleinair.config import to_document
from pleinair.flow import interpolate, velocity_target
from pleinair.model.lora import DEFAULT, set_lora_strengths
from pleinair.model.transformer import Transformer
from pleinair.packs.pairs import AnchoredPairBatch, PairBatch
from pleinair.records.errors import ConfigError
from pleinair.training.engine import LossOutput
from pleinair.training.preference_losses import (
    PairErrors,
    dpo_loss,
    dpop_loss,
    mapo_loss,
    passing,
    safe_share,
    saturated,
    stpo_loss,
)
from pleinair.training.random import RowRandom
from pleinair.training.stages.derived import DerivedStage
from pleinair.training.stages.finetune import Finetune
from pleinair.training.stages.pretrain import Pretrain

Method = Literal["dpo", "dpo_sft", "dpop", "sdpo", "mapo", "stpo"]
METHODS: tuple[Method, ...] = get_args(Method)
MARGIN_BETA, MAPO_BETA = 50.0, 0.1
"""What `beta` is where nothing is given: of the losses that count a margin, and MaPO's as published."""


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Which loss, and how strong its parts are. Errors are means over latent values, about 0.1 to 1 for unit latents."""

    method: Method = "stpo"
    """One of the losses of `preference_losses`."""
    beta: float | None = None
    """How soon a won pair stops to count: one over the margin, in units of the error, that is about enough (DPO's counts half).
    DPO's published ones are 2000 to 5000, at tiny rates and large batches. MaPO: the weight of its margin. None: 50, and
    MaPO's published 0.1."""
    sft_weight: float = 1.0
    """Of the winner's own loss beside DPO, in units of DPO's pull on the winner at the start: it adds `sft_weight` beta / 4 l_w."""
    dpop_penalty: float = 5.0
    """How much more a winner counts whose error rises."""
    sdpo_mu: float = 0.9
    """How much of the winner's fall is kept safe by `sdpo`: 0 lets it stand still, 1 stops the loser's gradient."""
    mapo_scale: float = 1000.0
    """Factor inside MaPO's sigmoid: its diffusion steps."""
    mapo_sharpness: float = 0.5
    """How fast MaPO's odds fall with an error."""
    saturation: float | None = 0.25
    """STPO's rho: credit for the loser ends at (1 + rho) times the reference's error; None pays without end."""
    winner_weight: float = 0.5
    """STPO's alpha, of the winner's own loss; never of a pair whose winner is worse than the policy. 0 for none."""
    anchor_weight: float = 0.1
    """STPO's gamma, of |v - v_ref|^2 on pretraining rows; 0 only measures it."""
    loser_mu: float | None = 0.5
    """STPO's own share of SDPO's scaling; None lets the loser's whole gradient pass."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method is {self.method!r}: give one of {', '.join(METHODS)}")
        for name in ("beta", "mapo_scale", "mapo_sharpness"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(f"{name} is {value}: it must be positive")
        for name in ("sft_weight", "dpop_penalty", "winner_weight", "anchor_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give 0 (off) or more")
        for name in ("sdpo_mu", "loser_mu"):
            if (mu := getattr(self, name)) is not None and not 0 <= mu <= 1:
                raise ConfigError(f"{name} is {mu}: give a number from 0 to 1")
        if self.saturation is not None and self.saturation <= 0:
            raise ConfigError(f"saturation is {self.saturation}: give a positive one, or None for none")

    @property
    def strength(self) -> float:
        """`beta`, or the method's own."""
        if self.beta is not None:
            return self.beta
        return MAPO_BETA if self.method == "mapo" else MARGIN_BETA


class Reference(Protocol):
    """The policy before training."""

    def velocity(self, latents_BCHW: Tensor, timestep_B: Tensor, features_BTLD: Tensor, mask_BT: Tensor) -> Tensor:
        """Its velocity, without a graph."""
        ...


class FrozenCopy:
    """A second copy of the weights. Make it of the parent's, before a resumed run loads its own."""

    def __init__(self, model: Transformer) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def velocity(self, latents_BCHW: Tensor, timestep_B: Tensor, features_BTLD: Tensor, mask_BT: Tensor) -> Tensor:
        """As the copy sees it."""
        velocity_BCHW: Tensor = self.model(latents_BCHW, timestep_B, features_BTLD, mask_BT)
        return velocity_BCHW


class WithoutLora:
    """The policy itself with its LoRA off: no second copy."""

    def __init__(self, model: Transformer, name: str = DEFAULT) -> None:
        self.model, self.name = model, name

    @torch.no_grad()
    def velocity(self, latents_BCHW: Tensor, timestep_B: Tensor, features_BTLD: Tensor, mask_BT: Tensor) -> Tensor:
        """As the frozen base sees it."""
        with self._off():
            velocity_BCHW: Tensor = self.model(latents_BCHW, timestep_B, features_BTLD, mask_BT)
        return velocity_BCHW

    @contextmanager
    def _off(self) -> Iterator[None]:
        set_lora_strengths(self.model, {self.name: 0.0})
        try:
            yield
        finally:
            set_lora_strengths(self.model, {self.name: 1.0})


class Preference(DerivedStage):
    """The stage."""

    def __init__(
        self, base: Pretrain | Finetune, reference: Reference, config: PreferenceConfig, *, reference_identity: str
    ) -> None:
        """`reference_identity` is that of the checkpoint that `reference` is."""
        told = {"reference": reference_identity, "config": to_document(replace(config, beta=config.strength))}
        super().__init__(base, {"preference.json": told})
        self.reference, self.config = reference, config
        self.pretrain = base.pretrain if isinstance(base, Finetune) else base

    def loss(self, batch: PairBatch, random: RowRandom) -> LossOutput:
        """The chosen loss, mean over pairs, with every gate metric."""
        config = self.config
        errors, winner_BCHW, loser_BCHW = self._errors(batch, random)
        share = self._loser_share(winner_BCHW, loser_BCHW)
        weak_B = batch.weak_winner_B
        loss_B = pair_losses(errors, share, weak_B, config)
        loss, metrics = loss_B.mean(), gate_metrics(errors, share)
        if isinstance(batch, AnchoredPairBatch):
            drift = self._drift(batch, random)
            metrics["drift"] = drift.detach()
            if config.method == "stpo" and config.anchor_weight:
                loss = loss + config.anchor_weight * drift
        elif config.method == "stpo" and config.anchor_weight:
            raise ConfigError(
                f"anchor_weight is {config.anchor_weight} and the batch has no pretraining rows: put the loaders together "
                "with packs.pairs.Anchored, or set it to 0"
            )
        return LossOutput(loss, metrics)

    def _errors(self, batch: PairBatch, random: RowRandom) -> tuple[PairErrors, Tensor, Tensor]:
        """Errors of policy and reference, and the policy's velocity less target of winner and loser, without graph."""
        timestep_B = self.pretrain.timesteps(batch.winner_BCHW, random)
        noise_BCHW = random.normal(*batch.winner_BCHW.shape[1:])
        latents = torch.cat([batch.winner_BCHW, batch.loser_BCHW]).float()
        noise, timestep = torch.cat([noise_BCHW, noise_BCHW]), torch.cat([timestep_B, timestep_B])
        text = torch.cat([batch.text_features_BTLD, batch.text_features_BTLD])
        inputs = (interpolate(latents, noise, timestep), timestep, text, torch.cat([batch.text_mask_BT] * 2))
        target = velocity_target(latents, noise)
        off = self.model(*inputs).float() - target
        winner, loser = off.square().mean(dim=(1, 2, 3)).chunk(2)
        seen = self.reference.velocity(*inputs).float() - target
        reference_winner, reference_loser = seen.square().mean(dim=(1, 2, 3)).chunk(2)
        return PairErrors(winner, loser, reference_winner, reference_loser), *off.detach().chunk(2)

    def _drift(self, batch: AnchoredPairBatch, random: RowRandom) -> Tensor:
        """Mean |v - v_ref|^2 on noisy pretraining rows; with a graph only where it is trained on."""
        latents_BCHW = batch.anchor_BCHW.float()
        timestep_B = self.pretrain.timesteps(latents_BCHW, random)
        noisy_BCHW = interpolate(latents_BCHW, random.normal(*latents_BCHW.shape[1:]), timestep_B)
        inputs = (noisy_BCHW, timestep_B, batch.anchor_features_BTLD, batch.anchor_mask_BT)
        trained = self.config.method == "stpo" and self.config.anchor_weight > 0
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            velocity_BCHW: Tensor = self.model(*inputs).float()
        return (velocity_BCHW - self.reference.velocity(*inputs).float()).square().mean()

    def _loser_share(self, winner_BCHW: Tensor, loser_BCHW: Tensor) -> Tensor:
        """The share of the loser's gradient that passes, one for all rows of a rank's micro-batch; 1 where nothing holds it."""
        mu = {"sdpo": self.config.sdpo_mu, "stpo": self.config.loser_mu}.get(self.config.method)
        return winner_BCHW.new_ones(()) if mu is None else safe_share(winner_BCHW, loser_BCHW, mu)


def pair_losses(errors: PairErrors, share: Tensor, weak_B: Tensor, config: PreferenceConfig) -> Tensor:
    """(B,) the chosen loss without the anchor; `weak_B` pairs teach nothing by their winner alone."""
    winner_rise_B, loser_rise_B = errors.winner_rise, passing(errors.loser_rise, share)
    beta = config.strength
    if config.method == "mapo":
        return mapo_loss(errors.winner, errors.loser, beta, config.mapo_scale, config.mapo_sharpness)
    if config.method == "dpop":
        return dpop_loss(winner_rise_B, loser_rise_B, beta, config.dpop_penalty)
    if config.method != "stpo":
        loss_B = dpo_loss(winner_rise_B, loser_rise_B, beta)
        own = config.sft_weight * beta / 4 if config.method == "dpo_sft" else 0.0
        return loss_B + own * errors.winner
    credit_B = loser_rise_B
    if config.saturation is not None:
        credit_B = saturated(loser_rise_B, errors.reference_loser, config.saturation)
    loss_B = stpo_loss(winner_rise_B, credit_B, beta)
    return loss_B + config.winner_weight * torch.where(weak_B, 0.0, errors.winner)


@torch.no_grad()
def gate_metrics(errors: PairErrors, share: Tensor) -> dict[str, float | Tensor]:
    """What a run is judged by: means over the pairs of a batch."""
    winner_rise_B, loser_rise_B = errors.winner_rise, errors.loser_rise
    return {
        "winner_error": errors.winner.mean(),
        "loser_error": errors.loser.mean(),
        "winner_rise": winner_rise_B.mean(),
        "loser_rise": loser_rise_B.mean(),
        "winners_worse": (winner_rise_B > 0).float().mean(),
        "margin_accuracy": (winner_rise_B < loser_rise_B).float().mean(),
        "loser_share": share,
    }
