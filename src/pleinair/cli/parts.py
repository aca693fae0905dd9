"""Autoencoder and judge of a run: those that come with the package, or trained here with --from-scratch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pleinair.checkpoint.store import digest_file, read_tensors
from pleinair.cli.encoders import open_codec
from pleinair.cli.places import shipped
from pleinair.cli.progress import ProgressLine
from pleinair.cli.workspace import Workspace
from pleinair.config import config_digest
from pleinair.model.autoencoder import Autoencoder, LatentCodec
from pleinair.model.pixels import to_signed_unit
from pleinair.packs.pictures import PictureSet, load_pictures, save_pictures
from pleinair.sampling.shipped import load_autoencoder, save_autoencoder

if TYPE_CHECKING:
    from pleinair.krablet import Database
    from pleinair.model.judge import Judge

PICTURE_SIZE = 64
AUTOENCODER_STEPS = 2600
AUTOENCODER_BATCH = 32
NUM_STATISTICS_PICTURES = 2048
MIN_STYLES_PER_CONCEPT = 4
"""A concept drawn in fewer styles is no class of the judge."""


@dataclass(frozen=True)
class Parts:
    """What a run needs beside its own model."""

    autoencoder: LatentCodec
    autoencoder_sha256: str
    judge: Judge


def ready_parts(work: Workspace, db: Database) -> Parts:
    """The parts, trained first when the run is from scratch; a training that was stopped goes on."""
    from pleinair.model.judge import load_judge

    if work.from_scratch:
        for name, train in (("autoencoder", train_autoencoder), ("judge", train_judge_on)):
            named = name == "autoencoder" and work.recipe.autoencoder is not None
            if not named and not part_path(work, name).exists():
                train(work, training_pictures(work, db), part_path(work, name))
    return Parts(*codec_of(work), load_judge(part_path(work, "judge")))


def codec_of(work: Workspace) -> tuple[LatentCodec, str]:
    """The autoencoder that the recipe names, or the run's own, and a digest of it."""
    if work.recipe.autoencoder is not None:
        codec = open_codec(work.recipe.autoencoder)
        return codec, codec.describe().digest
    place = part_path(work, "autoencoder")
    return load_autoencoder(place), digest_file(place).sha256


def part_path(work: Workspace, name: str) -> Path:
    """Where a part is: in the package, or beside the run when that is from scratch."""
    return work.run_dir / "parts" / f"{name}.safetensors" if work.from_scratch else shipped(name)


def training_pictures(work: Workspace, db: Database) -> PictureSet:
    """All curated drawings that may be trained on, read once and kept beside the run."""
    from pleinair.curation.sources import TRAINING_STYLES
    from pleinair.curation.stages import images_table, kept_where
    from pleinair.curation.store import ObjectStore
    from pleinair.packing.pictures import picture_set, read_curated

    path = work.run_dir / "parts" / "pictures.npz"
    if path.exists():
        return load_pictures(path)
    images, line = images_table(db), ProgressLine("pictures read")
    where = f"{kept_where(images)} AND NOT held_out AND style = ANY(%s)"
    total = images.count(where, params=(list(TRAINING_STYLES),))
    pictures = read_curated(
        images,
        ObjectStore(work.store),
        [PICTURE_SIZE],
        where=where,
        params=(list(TRAINING_STYLES),),
        on_progress=lambda done: line.update(done, total),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_pictures(picture_set(pictures, PICTURE_SIZE), path)
    return load_pictures(path)


def train_autoencoder(work: Workspace, pictures: PictureSet, path: Path) -> None:
    """Train the autoencoder, measure its latents' statistics, and write it in 8 bits."""
    from pleinair.packs.pictures import PictureLoader
    from pleinair.training.engine import EngineConfig, Phase, train
    from pleinair.training.hooks.progress import EachStep
    from pleinair.training.optimisers import OptimiserConfig
    from pleinair.training.stages.autoencode import Autoencode, AutoencodeConfig

    config = EngineConfig(optimiser=OptimiserConfig(learning_rate=2e-3), num_threads=work.recipe.engine.num_threads)
    torch.manual_seed(config.seed)
    stage = Autoencode(Autoencoder(), AutoencodeConfig())
    phase = Phase(
        "autoencoder", AUTOENCODER_STEPS, AUTOENCODER_BATCH, PictureLoader(pictures, AUTOENCODER_BATCH, config.seed)
    )
    line, run_dir = ProgressLine("autoencoder"), path.parent / "autoencoder"
    digest = config_digest([config, stage.config, stage.autoencoder.config, AUTOENCODER_STEPS, pictures.keys])
    final = train(
        stage,
        [phase],
        config,
        run_dir,
        config_digest=digest,
        hooks=[EachStep(lambda record, total: line.update(record.step + 1, total, f"{record.metrics['psnr']:.1f} dB"))],
    )
    stage.model.load_state_dict(read_tensors(final, stage.weights_file))
    chosen = np.random.default_rng(0).permutation(len(pictures))[:NUM_STATISTICS_PICTURES]
    stage.autoencoder.eval().set_latent_statistics(to_signed_unit(pictures.pixels_NHWC[chosen]))
    save_autoencoder(stage.autoencoder, path)


def train_judge_on(work: Workspace, pictures: PictureSet, path: Path) -> None:
    """Train the judge on concepts drawn in enough styles, and write it in 8 bits."""
    from collections import Counter

    from pleinair.curation.sources import TRAINING_STYLES
    from pleinair.evaluation.judge_training import train_judge
    from pleinair.model.judge import JudgeConfig, save_judge

    counts = Counter(pictures.concepts)
    concepts = tuple(sorted(concept for concept, count in counts.items() if count >= MIN_STYLES_PER_CONCEPT))
    index = {concept: i for i, concept in enumerate(concepts)}
    known = pictures.where(np.array([concept in index for concept in pictures.concepts]))
    styles = tuple(TRAINING_STYLES)
    line = ProgressLine("judge")
    judge = train_judge(
        known.pixels_NHWC,
        np.array([styles.index(style) for style in known.styles]),
        np.array([index[concept] for concept in known.concepts]),
        JudgeConfig(style_names=styles, concept_names=concepts),
        on_progress=lambda now: line.update(now.step, now.num_steps, f"concept loss {now.concept_loss:.2f}"),
        resume_dir=path.parent / "judge",
    )
    save_judge(judge, path)
