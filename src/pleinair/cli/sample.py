"""`pleinair sample PROMPT`: a picture from the shipped model, or from a run of your own."""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from pleinair.sampling import Sampler, SamplingConfig

SHIPPED_MODEL = "drawings-64"


def register(verbs: Any) -> None:
    """Add the verb `sample`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "sample", help="draw a prompt with the shipped model or your own"
    )
    parser.add_argument("prompt", help="for example: a red fox, noto style")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("sample.png"), help="PNG to write (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same picture (default: 0)")
    parser.add_argument(
        "--count", type=int, default=1, help="pictures to draw, side by side, with seeds from --seed on"
    )
    parser.add_argument("--steps", type=int, help="Euler steps (default: the model's)")
    parser.add_argument("--guidance", type=float, help="g in cond + g (cond - uncond); 0 is off (default: the model's)")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--run", dest="run_dir", type=Path, help="a run directory, to use its newest checkpoint")
    chosen.add_argument(
        "--model", type=Path, help="a file that `export --to package` wrote (default: the shipped model)"
    )
    parser.add_argument(
        "--text-encoder", metavar="FOLDER", help="the one that the run's pack was made with, as `pack` knew it"
    )
    parser.add_argument("--autoencoder", metavar="FOLDER", help="likewise")
    parser.set_defaults(run=sample_to_file)


def sample_to_file(options: argparse.Namespace) -> int:
    """Draw and write one PNG, by rename."""
    from PIL import Image

    images = sample(
        options.prompt,
        seed=options.seed,
        count=options.count,
        steps=options.steps,
        guidance=options.guidance,
        run_dir=options.run_dir,
        model=options.model,
        text_encoder=options.text_encoder,
        autoencoder=options.autoencoder,
    )
    sheet = Image.new("RGB", (sum(image.width for image in images), images[0].height), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index * image.width, 0))
    staging = options.output.with_name(f".{options.output.name}.partial")
    try:
        sheet.save(staging, "PNG")
        staging.replace(options.output)
    finally:
        staging.unlink(missing_ok=True)
    print(options.output)
    return 0


def sample(
    prompt: str,
    *,
    seed: int = 0,
    count: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    run_dir: Path | None = None,
    model: Path | None = None,
    text_encoder: str | None = None,
    autoencoder: str | None = None,
) -> list[Image]:
    """Pictures of a prompt, one per seed from `seed` on, as PIL images.

    Fetches the text encoder (93 MB) the first time. Raises ConfigError for settings out of range or a prompt too long.
    """
    from PIL import Image

    from pleinair.records.errors import ConfigError
    from pleinair.sampling.stored import with_choices

    if count < 1:
        raise ConfigError(f"count is {count}: give at least 1")
    sampler, config = open_sampler(run_dir, model, text_encoder, autoencoder)
    try:
        config = with_choices(config, steps, guidance)
        pixels = sampler.sample([prompt] * count, [seed + i for i in range(count)], config)
    except ValueError as refused:
        raise ConfigError(str(refused)) from refused
    return [Image.fromarray(picture) for picture in pixels]


@lru_cache(maxsize=1)
def open_sampler(
    run_dir: Path | None = None,
    model: Path | None = None,
    text_encoder: str | None = None,
    autoencoder: str | None = None,
) -> tuple[Sampler, SamplingConfig]:
    """Sampler and settings of a run's newest checkpoint, of a packaged model, or of the one that is shipped.

    Raises ConfigError where the autoencoder gives other latents than the model has learned, or the text encoder does not fit.
    """
    from pleinair.checkpoint.store import read_document
    from pleinair.cli.encoders import open_codec, open_text_encoder
    from pleinair.cli.latents import latents_of_package, require_latents
    from pleinair.cli.places import shipped
    from pleinair.cli.steps import newest_of
    from pleinair.recipes.fits import require_encoders_fit
    from pleinair.sampling import Sampler
    from pleinair.sampling.checkpoints import read_model
    from pleinair.sampling.shipped import load_model
    from pleinair.sampling.stored import sampling_of

    if run_dir is None:
        checkpoint = model or shipped(SHIPPED_MODEL)
        transformer, projection, config = load_model(checkpoint)
        known = latents_of_package(checkpoint)
    else:
        checkpoint = newest_of(run_dir)
        (transformer, projection), config = read_model(checkpoint), sampling_of(checkpoint)
        known = read_document(checkpoint, "config.json").get("latent_space", "")
    own = None if run_dir is None else run_dir / "parts" / "autoencoder.safetensors"
    codec = open_codec(autoencoder or (str(own) if own is not None and own.exists() else "autoencoder"))
    require_latents(known, codec, checkpoint)
    encoder = open_text_encoder(text_encoder)
    require_encoders_fit(transformer.config, codec, encoder, projection.dim)
    return Sampler(transformer, codec, encoder, projection), config
