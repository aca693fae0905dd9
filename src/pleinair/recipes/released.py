"""Fine-tuning weights of the released size: a LoRA on K2, from a pack of its own text features and latents.

pleinair mix photos.toml
pleinair pack mixes/photos --text-encoder K2 --autoencoder K2        K2: the release's folder in diffusers' layout
pleinair train k2-lora --parent K2 --autoencoder K2 --set pack=mixes/photos.pack
"""

from __future__ import annotations

from pleinair.model.lora import LoraConfig
from pleinair.model.parallelize import ParallelConfig
from pleinair.model.transformer import TransformerConfig
from pleinair.recipes.recipe import FinetuneConfig, PhaseConfig, Recipe
from pleinair.training.engine import EngineConfig
from pleinair.training.optimisers import OptimiserConfig

PARENT = "raw.safetensors"
"""Name of the release's file, looked for where the command runs."""
PACK = "mixes/k2.pack"


def k2_lora() -> Recipe:
    """A LoRA of rank 16 on the released transformer, its blocks in 8 bits, at 512 px: planned at 15.3 GB (docs/formats.md)."""
    return Recipe(
        name="k2-lora",
        title="A LoRA on the released weights",
        concepts=(),
        pack=PACK,
        parent=PARENT,
        transformer=TransformerConfig(),
        text_dim=TransformerConfig().text_dim,
        phases=(PhaseConfig(resolution=512, num_steps=2000, batch_size=1),),
        engine=EngineConfig(optimiser=OptimiserConfig(learning_rate=1e-4, warmup_steps=50)),
        parallel=ParallelConfig(checkpointing="full"),
        finetune=FinetuneConfig(lora=LoraConfig(rank=16), base_bits=8),
    )
