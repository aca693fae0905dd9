"""What comes after pretraining, on the drawings: midtraining, supervised fine-tuning by domain, a LoRA.

    drawings-64 --> drawings-midtrain --> drawings-sft-solid, drawings-sft-line --merge--> a generalist
           \\--> drawings-lora

Each is pretraining's loss from a parent, on other data, at a lower rate and for few steps. The parent is the shipped model
unless `--parent` names another: a run of `drawings-midtrain`, for the order above.
"""

from __future__ import annotations

from dataclasses import replace

from pleinair.model.lora import LoraConfig
from pleinair.packs.plan import LoaderConfig
from pleinair.recipes.concepts import EVERYDAY
from pleinair.recipes.drawings import drawings_64
from pleinair.recipes.recipe import EvaluationConfig, FinetuneConfig, PhaseConfig, Recipe
from pleinair.training.engine import EngineConfig
from pleinair.training.hooks.validation import ValidationConfig
from pleinair.training.hooks.watching import WatchConfig
from pleinair.training.optimisers import OptimiserConfig

PARENT = "drawings-64"
DOMAINS = {"solid": ("fluent-3d",), "line": ("high-contrast", "monotone")}
"""Visual domains as author sets: rendered solids, and black lines on white."""
LONG_CAPTIONS = LoaderConfig(caption_weights=(0.5, 0.25, 0.25))
"""Mostly long ones, as the report trains."""
_PROMPTS = ("a red apple, fluent 3d style", "a penguin, high contrast style", "a house, noto style", "a guitar")


def drawings_midtrain() -> Recipe:
    """All drawings again with mostly long captions, at a third of pretraining's rate: about ten minutes."""
    return replace(
        drawings_64(),
        name="drawings-midtrain",
        title="240 things in ten styles, midtrained",
        parent=PARENT,
        phases=(PhaseConfig(resolution=64, num_steps=300, batch_size=64),),
        engine=_engine(1e-3, decay_share=0.3),
        watch=_watch(100),
        loader=LONG_CAPTIONS,
        minutes={"ingest": 1, "curate": 4, "parts": 0.1, "pack": 3, "train": 10, "evaluate": 8, "report": 0.3},
    )


def drawings_sft(domain: str) -> Recipe:
    """A few epochs of one domain's drawings, at a tenth of pretraining's rate: a specialist in about three minutes."""
    return replace(
        drawings_64(),
        name=f"drawings-sft-{domain}",
        title=f"240 things, {domain} ones only",
        styles=DOMAINS[domain],
        parent=PARENT,
        phases=(PhaseConfig(resolution=64, num_steps=60, batch_size=64),),
        engine=_engine(3e-4, decay_share=0.5),
        watch=_watch(20),
        loader=LONG_CAPTIONS,
        evaluation=EvaluationConfig(num_train_pairs=100, samples_per_heldout_pair=2, grid_concepts=EVERYDAY),
        minutes={"ingest": 1, "curate": 4, "parts": 0.1, "pack": 1, "train": 3, "evaluate": 3, "report": 0.3},
    )


def drawings_lora() -> Recipe:
    """A LoRA of rank 8 on one style, the model itself frozen: about three minutes."""
    return replace(
        drawings_sft("solid"),
        name="drawings-lora",
        title="A LoRA for rendered solids",
        finetune=FinetuneConfig(lora=LoraConfig(rank=8)),
        engine=EngineConfig(optimiser=OptimiserConfig(learning_rate=2e-3, warmup_steps=10, decay_share=0.3)),
    )


def _engine(learning_rate: float, decay_share: float) -> EngineConfig:
    rule = OptimiserConfig(rule="muon", learning_rate=learning_rate, warmup_steps=10, decay_share=decay_share)
    return EngineConfig(optimiser=rule)


def _watch(every: int) -> WatchConfig:
    return WatchConfig(validation=ValidationConfig(every=every), preview_every=every, preview_prompts=_PROMPTS)
