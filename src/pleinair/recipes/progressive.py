"""Progressive resolution at a size that is done in minutes: 32, 64, then 128 px, aligned in the first phase."""

from __future__ import annotations

from pleinair.recipes.concepts import EVERYDAY
from pleinair.recipes.drawings import SHORT_CAPTIONS, TEXT_DIM, drawings_transformer
from pleinair.recipes.recipe import EvaluationConfig, PhaseConfig, Recipe
from pleinair.sampling import SamplingConfig
from pleinair.training.engine import EngineConfig
from pleinair.training.hooks.validation import ValidationConfig
from pleinair.training.hooks.watching import WatchConfig
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.stages.repa import RepaConfig


def progressive() -> Recipe:
    """Forty everyday things at 128 px: iREPA at 32 px alone, a stable rate until the last stretch, merged or decayed."""
    return Recipe(
        name="progressive",
        title="Forty everyday things, from 32 to 128 px",
        concepts=EVERYDAY,
        transformer=drawings_transformer(width=128, num_layers=4),
        text_dim=TEXT_DIM,
        phases=(
            PhaseConfig(resolution=32, num_steps=800, batch_size=32),
            PhaseConfig(resolution=64, num_steps=400, batch_size=32),
            PhaseConfig(resolution=128, num_steps=160, batch_size=32),
            PhaseConfig(resolution=128, num_steps=80, batch_size=32, decays=True),
        ),
        repa=RepaConfig(depth=2),
        engine=EngineConfig(optimiser=OptimiserConfig(rule="muon", learning_rate=3e-3, warmup_steps=50), keep_every=40),
        watch=WatchConfig(validation=ValidationConfig(every=40, num_batches=1)),
        loader=SHORT_CAPTIONS,
        sampling=SamplingConfig(resolution=128),
        evaluation=EvaluationConfig(num_train_pairs=100, samples_per_heldout_pair=4),
        minutes={"ingest": 1, "curate": 4, "parts": 0.1, "pack": 2, "train": 7, "evaluate": 5, "report": 0.3},
    )
