"""What each loss of the autoencoder gives: short runs from the same start on drawings, judged on held-out drawings.

Variants are interleaved (all of a seed before the next seed). Every figure is of pairs of concept and style that no run
saw. "flow loss" is that of a small flow model trained afterwards on the latents at equal variance: lower is easier to
generate, but also where latents hold less, so it is read beside PSNR. The distances are in EfficientNet-Lite0 features
and compare with nothing outside this table; `early` is what the perceptual term trains on, `late` is not.
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.aims import Aim
from benchmarks.krablet.rounds import Result, result
from pleinair.cli.places import cache_dir
from pleinair.curation.pictures import decode
from pleinair.curation.sources import TRAINING_STYLES, DrawingsSource, PictureRow, open_image
from pleinair.flow import interpolate, velocity_target
from pleinair.model.autoencoder import Autoencoder
from pleinair.model.autoencoders.latent_flow import LatentFlow
from pleinair.model.autoencoders.perception import PictureFeatures
from pleinair.model.autoencoders.reconstruction import feature_distance, psnr, ssim
from pleinair.model.efficientnet import fetch_efficientnet, load_efficientnet
from pleinair.model.pixels import to_signed_unit
from pleinair.packing.pictures import resize_square
from pleinair.packs.pictures import PictureLoader, PictureSet, load_pictures, save_pictures
from pleinair.training.engine import EngineConfig, Phase, train
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.stages.autoencode import Autoencode, AutoencodeConfig

SIDE, BATCH = 64, 16
VARIANTS: Mapping[str, AutoencodeConfig] = {
    "default": AutoencodeConfig(),
    "perceptual": AutoencodeConfig(perceptual_weight=0.1),
    "alignment": AutoencodeConfig(alignment_weight=0.1),
    "flow_alignment": AutoencodeConfig(flow_weight=0.1, flow_alignment_weight=0.1),
    "all": AutoencodeConfig(perceptual_weight=0.1, alignment_weight=0.1, flow_weight=0.1, flow_alignment_weight=0.1),
    "flow_loss_into_encoder": AutoencodeConfig(flow_weight=0.1, flow_reaches_encoder=True),
}
FIGURES = ("psnr", "ssim", "early_distance", "late_distance", "flow_loss", "cpu_seconds_a_step")
STEPS, NUM_TRAINING, NUM_HELD_OUT = 300, 4000, 256
AIMS = (
    Aim(what="losses of the autoencoder, held-out drawings", name="autoencoder_*", note="no aim: beside the default"),
)


def drawings(work: Path, num_training: int, num_held_out: int) -> PictureSet:
    """A sample of the drawings at 64 px, read once and kept in `work`."""
    path = work / f"drawings-{num_training}-{num_held_out}.npz"
    if path.exists():
        return load_pictures(path)
    rows = list(DrawingsSource(cache_dir(), TRAINING_STYLES).list())
    random.Random(0).shuffle(rows)
    chosen = [row for row in rows if row.held_out][:num_held_out] + [row for row in rows if not row.held_out][
        :num_training
    ]
    pixels = np.stack([_pixels(row) for row in chosen])
    keys, held_out = [row.image_name for row in chosen], np.array([row.held_out for row in chosen])
    pictures = PictureSet(
        keys, pixels, [row.style or "" for row in chosen], [row.concept or "" for row in chosen], held_out
    )
    work.mkdir(parents=True, exist_ok=True)
    save_pictures(pictures, path)
    return pictures


def _pixels(row: PictureRow) -> np.ndarray:
    return resize_square(Image.fromarray(decode(open_image(row.uri, cache_dir()))), SIDE)


def trained(
    config: AutoencodeConfig, pictures: PictureSet, features: PictureFeatures, steps: int, seed: int
) -> tuple[Autoencoder, float]:
    """An autoencoder with the statistics of its latents, and processor seconds a step."""
    torch.manual_seed(seed)
    stage = Autoencode(Autoencoder(), config, features)
    phase = Phase("autoencoder", steps, BATCH, PictureLoader(pictures, BATCH, seed))
    optimiser = OptimiserConfig(learning_rate=2e-3)
    engine = EngineConfig(optimiser=optimiser, num_threads=1, seed=seed, checkpoint_seconds=1e9)
    with tempfile.TemporaryDirectory() as run_dir:
        began = time.process_time()
        train(stage, [phase], engine, Path(run_dir), config_digest="benchmark")
        seconds = (time.process_time() - began) / steps
    autoencoder = stage.autoencoder.eval()
    autoencoder.set_latent_statistics(to_signed_unit(pictures.pixels_NHWC[:1024]))
    return autoencoder, seconds


@torch.no_grad()
def latents_of(autoencoder: Autoencoder, pictures: PictureSet) -> Tensor:
    """Standardised latents of all pictures."""
    chunks = [pictures.pixels_NHWC[start : start + 128] for start in range(0, len(pictures), 128)]
    return torch.cat([autoencoder.encode(to_signed_unit(chunk)) for chunk in chunks])


def probe_loss(latents_NChw: Tensor, held_out_NChw: Tensor, steps: int, seed: int) -> float:
    """Held-out loss, mean over a grid of t, of a small flow model trained on latents of variance one per channel."""
    torch.manual_seed(seed)
    deviation_C = latents_NChw.std((0, 2, 3), keepdim=True)
    latents_NChw, held_out_NChw = latents_NChw / deviation_C, held_out_NChw / deviation_C
    model, generator = LatentFlow(latents_NChw.shape[1], width=96, num_blocks=4), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(latents_NChw), (64,), generator=generator)
        loss = _flow_loss(model, latents_NChw[rows], torch.rand(64, generator=generator), generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        grid = [torch.full((len(held_out_NChw),), (k + 0.5) / 10) for k in range(10)]
        return statistics.mean(_flow_loss(model, held_out_NChw, t, generator).item() for t in grid)


def _flow_loss(model: LatentFlow, x0: Tensor, timestep_B: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x0.shape, generator=generator)
    return F.mse_loss(model(interpolate(x0, noise, timestep_B), timestep_B)[0], velocity_target(x0, noise))


@torch.no_grad()
def judged(autoencoder: Autoencoder, held_out: PictureSet, features: PictureFeatures) -> dict[str, float]:
    """Means over held-out pictures."""
    values: dict[str, list[Tensor]] = {}
    for start in range(0, len(held_out), 64):
        pictures = to_signed_unit(held_out.pixels_NHWC[start : start + 64])
        seen = autoencoder.decode(autoencoder.encode(pictures))
        early, late = feature_distance(pictures, seen, features)
        of_batch = (psnr(pictures, seen), ssim(pictures, seen), early, late)
        for name, value in zip(FIGURES, of_batch, strict=False):
            values.setdefault(name, []).append(value)
    return {name: torch.cat(parts).mean().item() for name, parts in values.items()}


def measure(rounds: int) -> list[Result]:
    """Every figure of every variant, `rounds` seeds each."""
    torch.set_num_threads(1)
    pictures = drawings(cache_dir() / "bench", NUM_TRAINING, NUM_HELD_OUT)
    seen, unseen = pictures.where(~pictures.held_out), pictures.where(pictures.held_out)
    features = PictureFeatures(load_efficientnet(fetch_efficientnet(cache_dir() / "efficientnet-lite0")))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for seed in range(rounds):
        for name, config in VARIANTS.items():
            autoencoder, seconds = trained(config, seen, features, STEPS, seed)
            figures = judged(autoencoder, unseen, features) | {"cpu_seconds_a_step": seconds}
            latents = (latents_of(autoencoder, each) for each in (seen, unseen))
            figures["flow_loss"] = probe_loss(*latents, STEPS, seed)
            found[name].append(figures)
            print(seed, name, ", ".join(f"{key} {figures[key]:.4f}" for key in FIGURES), flush=True)
    return list(rows(found))


def rows(found: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[Result]:
    """The mean over seeds of every figure, as a ratio to the default's, with each seed's value in the unit."""
    for name, figure in itertools.product(found, FIGURES):
        values = [figures[figure] for figures in found[name]]
        mean, base = statistics.mean(values), statistics.mean(figures[figure] for figures in found["default"])
        yield result(
            f"autoencoder_{name}_{figure}",
            mean,
            "by seed: " + ", ".join(f"{v:.4f}" for v in values),
            "default",
            mean / base,
        )
