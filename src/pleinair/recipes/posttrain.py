"""Whole chains of post-training on the drawings: one on the shipped model, one on the demo's for experiments."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from pleinair.packing.delta_pairs import DeltaConfig
from pleinair.posttraining.links import (
    Chain,
    DistilLink,
    FlowLink,
    PreferenceLink,
    RewardLink,
    SideBySideConfig,
)
from pleinair.recipes.drawings import SHORT_CAPTIONS
from pleinair.recipes.later_stages import DOMAINS, LONG_CAPTIONS
from pleinair.records.errors import ConfigError
from pleinair.sampling import SamplingConfig
from pleinair.training.hooks.validation import ValidationConfig
from pleinair.training.hooks.watching import WatchConfig
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.rollouts.drawing import DrawingConfig
from pleinair.training.rollouts.loader import RolloutConfig
from pleinair.training.stages.grpo import GrpoConfig
from pleinair.training.stages.tdm import TdmConfig


def drawings_posttrain() -> Chain:
    """Every link on the model that ships with the package, at 64 px, with two specialists merged."""
    return Chain(
        name="drawings-posttrain",
        title="The shipped model, post-trained",
        base="drawings-64",
        data="drawings-64",
        resolution=64,
        midtrain=FlowLink(num_steps=200, optimiser=_muon(1e-3, decay_share=0.3), loader=LONG_CAPTIONS),
        sft=FlowLink(num_steps=60, optimiser=_muon(3e-4, decay_share=0.5), loader=LONG_CAPTIONS, domains=dict(DOMAINS)),
        stpo=_preferences(64, num_pairs=256, num_steps=120),
        calibrate=_choices(num_steps=40),
        rl=_rewards(64, num_iterations=30),
        tdm=_few_steps(300),
        watch=WatchConfig(validation=ValidationConfig(every=50)),
        side_by_side=SideBySideConfig(explore="all"),
        call_seconds=0.0076,
    )


def posttrain_small() -> Chain:
    """The same order at 32 px on a run of the recipe `demo`: for experiments of several seeds. One SFT model, no merge."""
    return replace(
        drawings_posttrain(),
        name="posttrain-small",
        title="A small model, post-trained",
        base="runs/demo",
        data="demo",
        resolution=32,
        midtrain=FlowLink(num_steps=100, optimiser=_muon(1e-3, decay_share=0.3), loader=SHORT_CAPTIONS),
        sft=FlowLink(
            num_steps=30,
            optimiser=_muon(3e-4, decay_share=0.5),
            loader=SHORT_CAPTIONS,
            domains={"solid": DOMAINS["solid"]},
        ),
        stpo=_preferences(32, num_pairs=128, num_steps=80),
        calibrate=_choices(num_steps=30),
        rl=_rewards(32, num_iterations=20),
        tdm=_few_steps(150),
        side_by_side=SideBySideConfig(num_prompts=32, sampling=SamplingConfig(num_steps=16)),
        call_seconds=0.0033,
    )


CHAINS: dict[str, Callable[[], Chain]] = {"drawings-posttrain": drawings_posttrain, "posttrain-small": posttrain_small}


def find_posttrain(name: str) -> Chain:
    """The chain of that name. Raises ConfigError naming the nearest one."""
    if name not in CHAINS:
        near = difflib.get_close_matches(name, CHAINS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known ones: {', '.join(CHAINS)}"
        raise ConfigError(f"unknown chain '{name}': {hint}")
    return CHAINS[name]()


def _preferences(resolution: int, num_pairs: int, num_steps: int) -> PreferenceLink:
    """Ways of drawing whose order the judge does not find are left out.

    Of the shipped model's pairs it found 27 of 32 winners better than losers of two steps, and 6 of 16 than losers of four.
    """
    sampling = SamplingConfig(num_steps=28, resolution=resolution)
    pairs = DeltaConfig(sampling=sampling, fewer_steps=2, when_unsure="drop")
    return PreferenceLink(num_steps=num_steps, num_pairs=num_pairs, pairs=pairs, optimiser=_gently())


def _choices(num_steps: int) -> PreferenceLink:
    """A short link, as choices of people are few: no rate is raised for them."""
    return PreferenceLink(num_steps=num_steps, optimiser=_gently())


def _gently() -> OptimiserConfig:
    return OptimiserConfig(learning_rate=3e-5, warmup_steps=10, decay_share=0.0, weight_decay=0.0)


def _rewards(resolution: int, num_iterations: int) -> RewardLink:
    return RewardLink(
        num_iterations=num_iterations,
        optimiser=OptimiserConfig(learning_rate=1e-4, warmup_steps=2, decay_share=0.0, weight_decay=0.0),
        grpo=GrpoConfig(kl_weight=0.01),
        rollout=RolloutConfig(drawing=DrawingConfig(resolution=resolution)),
    )


def _few_steps(num_steps: int) -> DistilLink:
    """The teacher was climbed without guidance, so rewards have given it a part of what guidance gives: less is folded in."""
    return DistilLink(num_steps=num_steps, tdm=TdmConfig(guidance=1.0))


def _muon(learning_rate: float, decay_share: float) -> OptimiserConfig:
    return OptimiserConfig(rule="muon", learning_rate=learning_rate, warmup_steps=10, decay_share=decay_share)
