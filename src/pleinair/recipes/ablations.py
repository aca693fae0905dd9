"""The recipe of the ablation bench: small enough that a dozen models train in an hour on two cores."""

from __future__ import annotations

from pleinair.model.transformer import TransformerConfig
from pleinair.recipes.concepts import DRAWINGS
from pleinair.recipes.drawings import SHORT_CAPTIONS
from pleinair.recipes.recipe import PhaseConfig, Recipe
from pleinair.training.engine import EngineConfig
from pleinair.training.optimisers import OptimiserConfig

TEXT_DIM = 96


def ablations() -> Recipe:
    """About 240 things in ten styles and a model of half a million parameters, at two resolutions side by side."""
    return Recipe(
        name="ablations",
        title="Small models for ablations",
        concepts=DRAWINGS,
        transformer=TransformerConfig(
            width=96,
            num_layers=4,
            num_heads=4,
            num_kv_heads=1,
            in_channels=16,
            patch_size=1,
            timestep_dim=64,
            text_dim=TEXT_DIM,
            num_text_layers=4,
            text_num_heads=3,
            text_num_kv_heads=3,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
        ),
        text_dim=TEXT_DIM,
        phases=(
            PhaseConfig(resolution=32, num_steps=1200, batch_size=32),
            PhaseConfig(resolution=64, num_steps=1200, batch_size=32),
        ),
        engine=EngineConfig(
            optimiser=OptimiserConfig(rule="adamw", learning_rate=2e-3, warmup_steps=50),
            num_threads=1,
            checkpoint_seconds=60.0,
        ),
        loader=SHORT_CAPTIONS,
    )
