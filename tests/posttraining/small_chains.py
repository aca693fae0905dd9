"""A base, packs, rewards and a judge so small that a whole chain takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pleinair.checkpoint.store import save_checkpoint
from pleinair.config import to_document
from pleinair.evaluation.prompted import prompts_of
from pleinair.model.judge import Judge
from pleinair.packing.delta_pairs import DeltaConfig
from pleinair.packing.latents import write_pack
from pleinair.packing.pictures import CuratedPicture
from pleinair.packs.pack import Pack
from pleinair.posttraining.links import (
    Chain,
    DistilLink,
    FlowLink,
    GatesConfig,
    PreferenceLink,
    RewardLink,
    SideBySideConfig,
    StudentConfig,
)
from pleinair.posttraining.materials import Materials
from pleinair.records.rewards import Pictures, RewardContext, RewardValues
from pleinair.rewards.gold import Gold
from pleinair.sampling import SamplingConfig
from pleinair.sampling.projection import PROJECTION_FILE
from pleinair.training.engine import EngineConfig, Hook
from pleinair.training.hooks.validation import ValidationConfig
from pleinair.training.hooks.watching import WatchConfig
from pleinair.training.optimisers import HeadConfig, OptimiserConfig
from pleinair.training.rollouts.drawing import DrawingConfig
from pleinair.training.rollouts.loader import RolloutConfig
from pleinair.training.stages.on_policy_distillation import OnPolicyConfig
from pleinair.training.stages.tdm import TdmConfig
from tests.packs.small_packs import Letters
from tests.rewards.shapes import LEARNS_SHAPES, STYLES, THINGS, shape
from tests.rewards.small_rewards import Brightness
from tests.training.small_rollouts import tiny_sampler

SIDE = 8
RULE = OptimiserConfig(learning_rate=1e-3, warmup_steps=1, decay_share=0.0)
GATES = GatesConfig(every=2, num_rows=3, num_pictures=2, num_steps=2)


def small_chain(**changes: Any) -> Chain:
    """Every link, two or three steps each."""
    drawing = DrawingConfig(num_steps=4, resolution=SIDE, window_size=2)
    settings = Chain(
        name="small",
        title="A small chain",
        base="base",
        resolution=SIDE,
        midtrain=FlowLink(num_steps=3, batch_size=4, optimiser=RULE),
        sft=FlowLink(
            num_steps=2, batch_size=2, optimiser=RULE, domains={"filled": ("filled",), "outline": ("outline",)}
        ),
        stpo=PreferenceLink(
            num_steps=3,
            batch_size=4,
            optimiser=RULE,
            num_pairs=8,
            pairs=DeltaConfig(
                sampling=SamplingConfig(num_steps=3, resolution=SIDE, precision="fp32"),
                fewer_steps=1,
                when_unsure="say",
            ),
            gates=GATES,
        ),
        calibrate=PreferenceLink(num_steps=3, batch_size=4, optimiser=RULE, gates=GATES),
        rl=RewardLink(
            num_iterations=2,
            batch_size=4,
            optimiser=RULE,
            weights={"brightness": 1.0},
            rollout=RolloutConfig(num_groups=2, group_size=4, drawing=drawing),
        ),
        tdm=DistilLink(
            num_steps=2,
            batch_size=4,
            optimiser=replace(RULE, betas=(0.0, 0.95), head=HeadConfig(rate_factor=5.0)),
            tdm=TdmConfig(num_steps=2),
        ),
        engine=EngineConfig(
            num_threads=1,
            precision="fp32",
            checkpoint_seconds=1e-9,
            checkpoint_by="time",
            asynchronous_checkpoints=False,
        ),
        watch=WatchConfig(validation=ValidationConfig(every=2, num_batches=1)),
        side_by_side=SideBySideConfig(
            num_prompts=4,
            pictures_per_prompt=2,
            num_features=2,
            num_shown=2,
            sampling=SamplingConfig(num_steps=2, precision="fp32"),
        ),
    )
    return replace(settings, **changes)


def on_policy(link: FlowLink) -> FlowLink:
    """Its specialists teach one student, three steps."""
    told = OnPolicyConfig(num_steps=3, num_visits=1, anchor_weight=0.1)
    return replace(link, combine="on_policy", student=StudentConfig(num_steps=3, optimiser=RULE, distillation=told))


def picture(thing: str, style: str, number: int, held_out: bool) -> CuratedPicture:
    colour = (40 * number % 256, 90, 220 - 30 * number % 200)
    pixels = np.asarray(Image.fromarray(shape(thing, style=style, colour=colour)).resize((SIDE, SIDE)))
    captions = (f"a {thing} at length, {style} style", f"one {thing}, {style} style", f"{thing} {style}")
    return CuratedPicture(f"{thing}-{style}-{number}", style, thing, thing, held_out, captions, {SIDE: pixels})


def write_packs(folder: Path) -> dict[str, Path]:
    """All pictures, the two styles alone, and held-out ones; all read text as the base does."""
    sampler = tiny_sampler()
    rows = [picture(thing, style, n, False) for n in range(2) for thing in THINGS for style in STYLES]
    held_out = [picture(thing, style, 7, True) for thing in THINGS for style in STYLES]
    sets = {"all": rows, "held-out": held_out, **{name: [row for row in rows if row.style == name] for name in STYLES}}
    for name, pictures in sets.items():
        write_pack(
            pictures, folder / name, codec=sampler.codec, autoencoder_sha256="a", text_encoder=Letters(), text_dim=4,
            projection=sampler.projection,
        )  # fmt: skip
    return {name: folder / name for name in sets}


def write_base(folder: Path, **changes: Any) -> Path:
    """A checkpoint of random weights that has learned nothing."""
    sampler = tiny_sampler()
    tensors = {
        "transformer.safetensors": sampler.transformer.state_dict(),
        PROJECTION_FILE: sampler.projection.state_dict(),
    }
    config = {
        "transformer": to_document(sampler.transformer.config),
        "latent_space": sampler.codec.describe().identity,
    }
    return save_checkpoint(folder, 0, tensors, {"config.json": {**config, **changes}}, config_digest="base")


class Redness:
    """Watched: the mean of the first channel."""

    name, identity, parts, pointwise = "redness", "redness of version 1", frozenset({"redness"}), True

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        return RewardValues(values={"redness": (pictures[..., 0].mean(axis=(1, 2)) / 255).astype(np.float32)})


@cache
def untaught_judge() -> Judge:
    """One that has the names and knows nothing."""
    torch.manual_seed(3)
    return Judge(LEARNS_SHAPES).eval()


def materials(
    folder: Path, hooks: Callable[[str], Sequence[Hook]] | None = None, said: list[str] | None = None, **changes: Any
) -> Materials:
    """With packs that are written when they are not there."""
    names = ("all", "held-out", *STYLES)
    packs = {name: folder / name for name in names} if (folder / "all").exists() else write_packs(folder)
    sampler = tiny_sampler()
    told = {
        "codec": sampler.codec,
        "text_encoder": Letters(),
        "judge": untaught_judge(),
        "packs": packs,
        "held_out": packs["held-out"],
        "prompts": list(dict.fromkeys(prompts_of(Pack(packs["all"])))),
        "asked": prompts_of(Pack(packs["held-out"])),
        "rewards": (Brightness(),),
        "gold": (Gold(Redness()),),
        "commit": "c0ffee",
        "say": ([] if said is None else said).append,
    }
    if hooks is not None:
        told["hooks"] = hooks
    return Materials(**{**told, **changes})
