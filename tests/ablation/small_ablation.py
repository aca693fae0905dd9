"""A recipe and a pack so small that an ablation takes seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pleinair.packing.latents import write_pack
from pleinair.packing.pictures import CuratedPicture
from tests.packs.small_packs import Letters, PooledPixels, picture

SIZES = (
    "transformer.width=32",
    "transformer.num_layers=2",
    "transformer.num_heads=2",
    "transformer.in_channels=3",
    "transformer.timestep_dim=16",
    "transformer.text_dim=4",
    "transformer.num_text_layers=2",
    "transformer.text_num_heads=2",
    "transformer.text_num_kv_heads=2",
    "text_dim=4",
    "phases=({'resolution': 8, 'num_steps': 1, 'batch_size': 8}, {'resolution': 16, 'num_steps': 1, 'batch_size': 8})",
    "engine.optimiser.warmup_steps=2",
    "engine.asynchronous_checkpoints=False",
)
SHORT = (
    "--short",
    "16",
    "--long",
    "32",
    "--config",
    "merge_last=2",
    "--config",
    "merge_every=4",
    "--config",
    "cost_rounds=2",
    "--config",
    "validation_batches=2",
    "--config",
    "rate_multiples=()",
)


def drawn(concept: int, style: int) -> CuratedPicture:
    one = picture(20 * concept + style)
    return dataclasses.replace(one, key=f"c{concept}s{style}", concept=f"c{concept}", style=f"s{style}")


def make_runs(directory: Path) -> Path:
    """A folder of runs with the pack of `ablations` in it."""
    rows = [drawn(concept, style) for concept in range(10) for style in range(6)]
    run = directory / "ablations"
    run.mkdir(parents=True)
    write_pack(rows, run / "pack", codec=PooledPixels(), autoencoder_sha256="a", text_encoder=Letters(), text_dim=4)
    return directory


def arguments(runs: Path, *more: str) -> list[str]:
    sets = [word for one in SIZES for word in ("--set", one)]
    return ["ablate", "ablations", "--runs", str(runs), *sets, *SHORT, "--config", "unseen_share=0.3", *more]
