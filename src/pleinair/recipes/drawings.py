"""The two recipes on the drawing sets: same data, same architecture, another scale."""

from __future__ import annotations

from pleinair.model.transformer import TransformerConfig
from pleinair.packs.plan import LoaderConfig
from pleinair.recipes.concepts import DRAWINGS, EVERYDAY
from pleinair.recipes.recipe import EvaluationConfig, PhaseConfig, Recipe
from pleinair.training.engine import EngineConfig
from pleinair.training.optimisers import OptimiserConfig

TEXT_DIM = 192

SHORT_CAPTIONS = LoaderConfig(caption_weights=(0.2, 0.4, 0.4))
"""Long captions take 36 tokens, short ones 9, and a 32 px picture only 16: mostly short ones, against the report's rule."""


def drawings_transformer(width: int, num_layers: int) -> TransformerConfig:
    """K2's architecture at a size for two CPU cores: 16 latent channels at 1/8, one token per latent position."""
    return TransformerConfig(
        width=width,
        num_layers=num_layers,
        num_heads=width // 32,
        num_kv_heads=width // 64,
        in_channels=16,
        patch_size=1,
        text_dim=TEXT_DIM,
        num_text_layers=4,
        text_num_heads=6,
        text_num_kv_heads=6,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
    )


def demo() -> Recipe:
    """About forty everyday things in ten styles, in under half an hour."""
    return Recipe(
        name="demo",
        title="Forty everyday things in ten styles",
        concepts=EVERYDAY,
        transformer=drawings_transformer(width=192, num_layers=6),
        text_dim=TEXT_DIM,
        phases=(
            PhaseConfig(resolution=32, num_steps=600, batch_size=64),
            PhaseConfig(resolution=64, num_steps=700, batch_size=64),
        ),
        engine=EngineConfig(optimiser=OptimiserConfig(rule="muon", learning_rate=3e-3, warmup_steps=50)),
        loader=SHORT_CAPTIONS,
        evaluation=EvaluationConfig(num_train_pairs=400, samples_per_heldout_pair=4),
        minutes={"ingest": 1, "curate": 3, "parts": 0.1, "pack": 1, "train": 15, "evaluate": 3, "report": 0.3},
    )


def drawings_64() -> Recipe:
    """About 240 things in ten styles, about two hours: the model that ships with the package."""
    return Recipe(
        name="drawings-64",
        title="240 things in ten styles",
        concepts=DRAWINGS,
        transformer=drawings_transformer(width=256, num_layers=6),
        text_dim=TEXT_DIM,
        phases=(
            PhaseConfig(resolution=32, num_steps=3300, batch_size=64),
            PhaseConfig(resolution=64, num_steps=3000, batch_size=64),
        ),
        engine=EngineConfig(optimiser=OptimiserConfig(rule="muon", learning_rate=3e-3)),
        loader=SHORT_CAPTIONS,
        evaluation=EvaluationConfig(num_train_pairs=400, samples_per_heldout_pair=2, grid_concepts=EVERYDAY),
        minutes={"ingest": 1, "curate": 4, "parts": 0.1, "pack": 3, "train": 115, "evaluate": 8, "report": 0.3},
    )
