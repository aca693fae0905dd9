"""A LoRA on a small model in the released key layout, and what it does in diffusers.

    drawings-64 -> a diffusers folder -> pleinair train drawings-lora --parent FOLDER -> export --to native
                        -> diffusers.Krea2Pipeline, without and with load_lora_weights -> two sheets, distances

The model knows ten styles. The LoRA learns one that it does not obey: white lines on blue paper, made of drawings whose
licences allow it by turning their brightness around. No warehouse is needed: eighty drawings are read from their packages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.krablet.rounds import commit, machine
from pleinair.captioning.templates import with_article
from pleinair.checkpoint.store import digest_file, newest_checkpoint
from pleinair.cli.encoders import open_text_encoder
from pleinair.cli.main import build_parser
from pleinair.cli.main import main as pleinair
from pleinair.cli.parents import find_checkpoint
from pleinair.cli.parts import Parts
from pleinair.cli.places import cache_dir, shipped
from pleinair.cli.steps import pack_step
from pleinair.cli.workspace import open_workspace
from pleinair.curation.pictures import decode
from pleinair.curation.sources import STYLES, find_source, open_image
from pleinair.model.judge import load_judge
from pleinair.model.pixels import to_bytes
from pleinair.packing.pictures import CuratedPicture, resize_square
from pleinair.recipes.concepts import EVERYDAY
from pleinair.sampling.projection import read_projection
from pleinair.sampling.sampler import seeded_noise
from pleinair.sampling.shipped import load_autoencoder
from pleinair.training.records import read_records

PARENT, NAME = "drawings-64", "drawings-lora"
STYLE = "blueprint"
DRAWN_BY = ("noto", "fluent-flat")
"""Apache-2.0 and MIT: the pictures may be changed and shown."""
BLUE = np.array([22.0, 66.0, 150.0])
"""The paper; the lines are white."""
HELD_OUT_EVERY = 5
"""One concept in so many is not trained on."""
SIDE = 64
NUM_SHOWN = 8
STEPS, GUIDANCE = 28, 3.0
SETTINGS = (
    f"name={NAME}",
    "phases=({'resolution': 64, 'num_steps': 80, 'batch_size': 16},)",
    "watch.validation.every=20",
    "watch.preview_every=0",
)
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Drawn:
    """What the pipeline drew of the prompts, in their order."""

    pixels_NHWC: Pixels

    def distance(self, target_NHWC: Pixels) -> float:
        """Of the mean colour to that of the fine-tuning set, in levels of 255, mean over channels."""
        own, wanted = (pixels.reshape(-1, 3).mean(0) for pixels in (self.pixels_NHWC, target_NHWC))
        return float(np.abs(own - wanted).mean())

    def blue_share(self) -> float:
        """Pixels nearer to the paper's blue than to white."""
        colours = self.pixels_NHWC.reshape(-1, 3).astype(np.float64)
        return float((np.abs(colours - BLUE).sum(1) < np.abs(colours - 255.0).sum(1)).mean())


def run(runs: Path, home: Path | None, out: Path) -> Path:
    """Everything; returns the page."""
    torch.set_num_threads(2)
    base = released_folder(runs)
    pictures = blueprints()
    words = train_words(runs, base)
    work = open_workspace(build_parser().parse_args(["train", *words]))
    place = shipped("autoencoder")
    pack_step(work, pictures, Parts(load_autoencoder(place), digest_file(place).sha256, load_judge(shipped("judge"))))
    if pleinair(["train", *words]):
        raise SystemExit("training did not end well")
    checkpoint = newest_checkpoint(runs / NAME / "checkpoints")
    assert checkpoint is not None
    lora = runs / NAME / "blueprint.safetensors"
    if not lora.exists():
        assert pleinair(["export", str(checkpoint), "--to", "native", "-o", str(lora)]) == 0
    shown = [picture for picture in pictures if picture.held_out and picture.style == DRAWN_BY[0]][:NUM_SHOWN]
    without, with_lora = (draw_in_diffusers(base, shown, path) for path in (None, lora))
    return write_page(out, runs, pictures, shown, without, with_lora)


def released_folder(runs: Path) -> Path:
    """The shipped model as diffusers' folder of a Krea 2 transformer, with its text projection."""
    folder = runs / "k2-small"
    if not folder.exists():
        checkpoint = find_checkpoint(PARENT, runs)
        assert pleinair(["export", str(checkpoint), "--to", "diffusers", "-o", str(folder)]) == 0
    return folder


def train_words(runs: Path, base: Path) -> list[str]:
    """The command line of the training."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["drawings-lora", "--runs", str(runs), "--parent", str(base), *settings]


def blueprints() -> list[CuratedPicture]:
    """Everyday things as white lines on blue paper."""
    made = []
    for row in find_source("drawings", cache_dir()).list():
        if row.style not in DRAWN_BY or row.label not in EVERYDAY:
            continue
        drawn = resize_square(Image.fromarray(decode(open_image(row.uri, cache_dir()))), SIDE)
        brightness = drawn.astype(np.float64).mean(2, keepdims=True) / 255
        pixels = (brightness * BLUE + (1 - brightness) * 255).round().astype(np.uint8)
        thing = with_article(row.label)
        captions = (f"{thing} in white lines on blue paper, {STYLE} style", *[f"{thing}, {STYLE} style"] * 2)
        held_out = EVERYDAY.index(row.label) % HELD_OUT_EVERY == 0
        made.append(
            CuratedPicture(row.image_name, row.style, row.concept, row.label, held_out, captions, {SIDE: pixels})
        )
    return made


@torch.inference_mode()
def draw_in_diffusers(base: Path, shown: Sequence[CuratedPicture], lora: Path | None) -> Drawn:
    """The short captions, drawn by diffusers' own pipeline; text features and decoding are ours, as is the noise."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel

    from pleinair.model.formats.pipeline import SCHEDULER_CONFIG

    pipeline: Any = Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(SCHEDULER_CONFIG),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=Krea2Transformer2DModel.from_pretrained(base),
        patch_size=1,
    )
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    encoder, projection, autoencoder = (
        open_text_encoder(),
        read_projection(base),
        load_autoencoder(shipped("autoencoder")),
    )
    prompts = [picture.captions[-1] for picture in shown]
    together = encoder.encode([*prompts, *[""] * len(prompts)])  # one length: the pipeline places both by the prompt's
    cond_BTLD, uncond_BTLD = projection(together.features_BTLD).chunk(2)
    cond_BT, uncond_BT = together.mask_BT.chunk(2)
    noise_BCHW = seeded_noise(range(len(prompts)), autoencoder, SIDE)
    tokens_BIC = pipeline(
        prompt_embeds=cond_BTLD,
        prompt_embeds_mask=cond_BT,
        negative_prompt_embeds=uncond_BTLD,
        negative_prompt_embeds_mask=uncond_BT,
        latents=noise_BCHW.flatten(2).transpose(1, 2),
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="latent",
    ).images
    latents_BCHW = tokens_BIC.transpose(1, 2).unflatten(2, noise_BCHW.shape[2:])
    return Drawn(to_bytes(autoencoder.decode(latents_BCHW.float())))


def write_page(
    out: Path,
    runs: Path,
    pictures: Sequence[CuratedPicture],
    shown: Sequence[CuratedPicture],
    without: Drawn,
    with_lora: Drawn,
) -> Path:
    """README.md, lora.json and the two sheets."""
    out.mkdir(parents=True, exist_ok=True)
    for name, drawn in (("without.png", without), ("with.png", with_lora)):
        Image.fromarray(np.concatenate(list(drawn.pixels_NHWC), axis=1)).save(out / name)
    target = np.stack([picture.pixels[SIDE] for picture in pictures if not picture.held_out])
    records = read_records(runs / NAME / "steps.jsonl")
    measured = [(r.step + 1, r.metrics["validation/loss"]) for r in records if "validation/loss" in r.metrics]
    numbers = {
        "colour_distance_without": without.distance(target),
        "colour_distance_with": with_lora.distance(target),
        "blue_share_of_set": Drawn(target).blue_share(),
        "blue_share_without": without.blue_share(),
        "blue_share_with": with_lora.blue_share(),
        "held_out_error": measured,
        "num_trained": len(target),
        "num_steps": len(records),
        "lora_bytes": (runs / NAME / "blueprint.safetensors").stat().st_size,
        "prompts": [picture.captions[-1] for picture in shown],
        "commit": commit(),
        "machine": machine(),
    }
    (out / "lora.json").write_text(json.dumps(numbers, indent=1) + "\n")
    (out / "README.md").write_text(page_text(numbers))
    return out / "README.md"


def page_text(numbers: dict[str, Any]) -> str:
    """The page."""
    first, last = numbers["held_out_error"][0], numbers["held_out_error"][-1]
    shares = " | ".join(f"{numbers[f'blue_share_{of}']:.1%}" for of in ("without", "with", "of_set"))
    distances = " | ".join(f"{numbers[f'colour_distance_{of}']:.1f}" for of in ("without", "with"))
    authors = "; ".join(f"{STYLES[name].words} by {STYLES[name].author}, {STYLES[name].licence}" for name in DRAWN_BY)
    return f"""# A LoRA in diffusers

The shipped `drawings-64` model, written in the released key layout, fine-tuned with a LoRA of rank 8 on
{numbers["num_trained"]} drawings in a style that it does not know, and drawn by `diffusers.Krea2Pipeline` from the same noise.
The things in the pictures are not among those drawings.

| without | with, by `load_lora_weights` |
| --- | --- |
| ![without](without.png) | ![with](with.png) |

Prompts, left to right: {", ".join(numbers["prompts"])}.

| | without | with | the fine-tuning set |
| --- | --- | --- | --- |
| pixels nearer to the blue of the paper than to white | {shares} |
| distance of the mean colour to the set's, levels of 255 | {distances} | 0 |

The held-out error on pictures of that style goes from {first[1]:.4f} after {first[0]} steps to {last[1]:.4f} after {last[0]}.
The LoRA is {numbers["lora_bytes"] / 1e6:.2f} MB. Text features and the decoding of latents are ours, as diffusers has no
pipeline class for this text encoder and this autoencoder; the transformer, the LoRA, the scheduler and the guidance are theirs.

The style is made of drawings ({authors}) by turning their brightness around: white lines on blue.

`make experiment-lora`, at commit {numbers["commit"]}, {numbers["machine"]}.
"""
