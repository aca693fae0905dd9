"""What is measured along the runs of the experiment on preference optimisation; nothing of it was trained on.

    weights --no guidance, fixed noise, held-out prompts--> pictures --gold judge--> gold, its mean log chance
           '--held-out pack, 5 timesteps------------------> drift |v - v_ref|^2, rise of the loss
           '--held-out pairs, 5 timesteps x 2 noises------> D_w and D_l of each pair, winners that got worse

The noise of pictures goes by the seed of the run: what the choice of noise does is within the intervals over seeds, while
options of one seed share it. The gold reward that options are compared at is fixed by the base alone, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.experiments.drawn import SIDE
from benchmarks.experiments.results import once
from benchmarks.experiments.stpo_arms import Arm
from benchmarks.experiments.stpo_page import Curve, Measured
from benchmarks.experiments.stpo_training import (
    GUIDANCE,
    LEAST_CHANCE,
    Ground,
    Trained,
    draw_pairs,
    likelihood,
    pretrain_of,
    prompts_of,
)
from pleinair.config import config_digest
from pleinair.evaluation.prompted import Prompted
from pleinair.packs.loader import LatentBatch, LatentLoader
from pleinair.packs.pairs import PairBatch, PairLoader, PairLoaderConfig, Pairs
from pleinair.packs.plan import LoaderConfig
from pleinair.pages.picture import Pixels
from pleinair.sampling import Sampler, SamplingConfig
from pleinair.training.hooks.samples import high_frequency_shares
from pleinair.training.hooks.validation import evaluating, validation_losses, velocity_drift
from pleinair.training.mesh import Mesh
from pleinair.training.random import RowRandom
from pleinair.training.stages.pretrain import Pretrain

TIMESTEPS = (0.1, 0.3, 0.5, 0.7, 0.9)
NUM_NOISES = 2
"""Of each held-out pair at each timestep."""
NUM_SHOWN = 6
TARGET_SHARE = 0.25
"""Options are compared where they have won this share of what guidance adds to the base's gold reward."""
PAIR_SEED, NOISE_SEED = 1, 1_000_003
"""Of held-out pairs; of the noise in which models are set against each other."""


@dataclass(frozen=True, kw_only=True)
class MeasurePlan:
    """How much is measured: with other numbers runs are measured anew, and not trained."""

    num_prompts: int = 80
    each: int = 4
    """Pictures of a prompt."""
    num_steps: int = 8
    """Euler steps of a picture."""
    guidance: float = GUIDANCE
    """Of the base, for the target."""
    num_pairs: int = 128
    num_rows: int = 64
    """Held-out rows whose velocity is looked at."""


class Measures:
    """Who measures, and the base's numbers."""

    def __init__(self, ground: Ground, plan: MeasurePlan) -> None:
        """Draws the held-out pairs where they are not there."""
        self.ground, self.plan = ground, plan
        unseen = ground.shared.unseen_prompts
        places = np.linspace(0, len(unseen) - 1, min(plan.num_prompts, len(unseen))).round().astype(int)
        self.prompts: list[Prompted] = [unseen[place] for place in places for _ in range(plan.each)]
        self.score = likelihood(ground.shared.fitted["gold"])
        self.policy, self.reference = pretrain_of(ground.shared), pretrain_of(ground.shared)
        self.pairs = self._held_out_pairs()
        self.rows = held_out_rows(ground, plan.num_rows)
        constants = [TIMESTEPS, NUM_NOISES, PAIR_SEED, NOISE_SEED, LEAST_CHANCE, NUM_SHOWN]
        self.digest = config_digest([plan, constants, [prompt for prompt, _, _ in self.prompts]])[:8]

    def of_base(self, seed: int) -> dict[str, dict[str, Any]]:
        """The base's pictures in the noise of a seed, `plain` and `guided`: gold and high frequencies."""

        def made() -> dict[str, Any]:
            ways = {"plain": 0.0, "guided": self.plan.guidance}
            return {way: self._looks(self.reference, seed, guidance) for way, guidance in ways.items()}

        found: dict[str, dict[str, Any]] = once(self.ground.folder / f"base-{self.digest}-{seed}.json", made)
        return found

    def target(self, seeds: Sequence[int]) -> float:
        """The gain of gold reward at which options are compared."""
        added = [self.of_base(seed)["guided"]["gold"] - self.of_base(seed)["plain"]["gold"] for seed in seeds]
        return TARGET_SHARE * float(np.mean(added))

    def of_run(self, arm: Arm, run: Trained, swept: bool) -> Measured:
        """The curve of a run, from the base on."""

        def made() -> dict[str, Any]:
            looks = self.of_base(arm.seed)["plain"]
            points = [{"step": 0.0, **self._unmoved(), **numbers(looks)}]
            for step in run.steps:
                self.policy.model.load_state_dict(load_file(run.weights(step)))
                looks = self._looks(self.policy, arm.seed)
                points.append({"step": float(step), **self._moved(), **numbers(looks)})
            curve: Curve = {name: [point[name] for point in points] for name in points[0]}
            return {"curve": curve, "pictures": looks["pictures"]}

        found = once(run.folder / f"measured-{self.digest}.json", made)
        return Measured(
            arm=arm.name, level=arm.level, strength=arm.strength, seed=arm.seed, swept=swept, seconds=run.seconds,
            stopped=run.stopped, **found,
        )  # fmt: skip

    def _looks(self, model: Pretrain, seed: int, guidance: float = 0.0) -> dict[str, Any]:
        """What a model draws of the held-out prompts in the noise of a seed, and a few of its pictures."""
        source, texts = self.ground.source.sampler, [prompt for prompt, _, _ in self.prompts]
        sampler = Sampler(model.model, source.codec, source.text_encoder, source.projection)
        config = SamplingConfig(num_steps=self.plan.num_steps, guidance=guidance, resolution=SIDE)
        first = seed * len(texts)
        pixels: Pixels = sampler.sample(texts, range(first, first + len(texts)), config)
        return {
            "gold": float(self.score(texts, pixels).mean()),
            "high_frequency": float(high_frequency_shares(pixels).mean()),
            "pictures": pixels[:: self.plan.each][:NUM_SHOWN].tolist(),
        }

    @property
    def shown(self) -> list[str]:
        """The prompts of the pictures that are kept."""
        return [prompt for prompt, _, _ in self.prompts[:: self.plan.each][:NUM_SHOWN]]

    def _unmoved(self) -> dict[str, float]:
        """What `_moved` gives of the base itself."""
        still = ("drift", "rise", "winner_rise", "loser_rise", "winners_worse")
        return {**dict.fromkeys(still, 0.0), "margin_accuracy": 0.5}

    def _moved(self) -> dict[str, float]:
        """How far the policy is from the base: in velocity, in loss, on both sides of pairs."""
        grid = (self.rows, TIMESTEPS, NOISE_SEED, Mesh())
        drift = velocity_drift(self.policy.model, self.reference.model, *grid)
        losses = validation_losses(self.policy, *grid)
        winner_B, loser_B = (
            mine - theirs for mine, theirs in zip(pair_errors(self.policy, self.pairs), self._of_reference, strict=True)
        )
        return {
            "drift": mean(drift),
            "rise": mean(losses) - self._reference_loss,
            "winner_rise": float(winner_B.mean()),
            "loser_rise": float(loser_B.mean()),
            "winners_worse": float((winner_B > 0).float().mean()),
            "margin_accuracy": float((winner_B < loser_B).float().mean()),
        }

    @cached_property
    def _of_reference(self) -> tuple[Tensor, Tensor]:
        return pair_errors(self.reference, self.pairs)

    @cached_property
    def _reference_loss(self) -> float:
        return mean(validation_losses(self.reference, self.rows, TIMESTEPS, NOISE_SEED, Mesh()))

    def _held_out_pairs(self) -> PairBatch:
        """Pairs made as those that are trained on, of the prompts after theirs and of other noise."""
        ground, count = self.ground, self.plan.num_pairs
        plan = replace(ground.plan, seed=PAIR_SEED, num_pairs=count)
        folder = ground.folder / f"held-out-pairs-{config_digest([plan])[:8]}"
        draw_pairs(folder, prompts_of(ground.shared, ground.plan.num_pairs, count), ground.source, plan)
        config = PairLoaderConfig(batch_size=count)
        return PairLoader(Pairs(folder), config, ground.source.identity).batch(0)


def numbers(looks: dict[str, Any]) -> dict[str, float]:
    """Without the pictures."""
    return {name: value for name, value in looks.items() if name != "pictures"}


def mean(values: dict[float, float]) -> float:
    """Over timesteps."""
    return float(np.mean(list(values.values())))


def held_out_rows(ground: Ground, count: int) -> list[LatentBatch]:
    """The first rows of the base's held-out pack, in one batch, with their prompts."""
    pack = ground.shared.held_out
    rows = min(count, pack.manifest.num_rows)
    return [LatentLoader(pack, SIDE, LoaderConfig(batch_size=rows, drop_caption=0.0)).batch(0)]


@torch.no_grad()
def pair_errors(stage: Pretrain, pairs: PairBatch) -> tuple[Tensor, Tensor]:
    """(B,) errors of winners and losers, the mean over timesteps and noises, which both sides of all models share."""
    found = []
    with evaluating(stage.model):
        for latents_BCHW in (pairs.winner_BCHW, pairs.loser_BCHW):
            side = LatentBatch(pairs.keys, latents_BCHW, pairs.text_features_BTLD, pairs.text_mask_BT)
            rows = range(len(pairs.keys))
            draws = [
                stage.velocity_errors(side, torch.full((len(rows),), timestep), RowRandom(NOISE_SEED, noise, rows))
                for noise in range(NUM_NOISES)
                for timestep in TIMESTEPS
            ]
            found.append(torch.stack(draws).mean(0))
    return found[0], found[1]
