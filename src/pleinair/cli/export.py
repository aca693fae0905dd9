"""`pleinair export CHECKPOINT --to diffusers|native|native-mixed|package|pipeline -o OUT`: for other programs, or to ship.

The first three are `pleinair convert` under the name one looks for after training; a package is smaller and has the
text projection with it. A pipeline is a whole folder for diffusers, with the text encoder and the autoencoder that are
named. The checkpoint of a LoRA is written as a LoRA, in one of its dialects; in a package or a pipeline it is merged.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

LORA_ONLY = ("ai-toolkit", "kohya")
DIALECTS = ("diffusers", "native", *LORA_ONLY)


def register(verbs: Any) -> None:
    """Add the verb `export`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "export", help="write a transformer as diffusers or the official release reads it"
    )
    parser.add_argument("checkpoint", help="a checkpoint folder, or weights in any layout pleinair reads")
    parser.add_argument(
        "--to",
        required=True,
        choices=["diffusers", "native", "native-mixed", "package", "pipeline", "ai-toolkit", "kohya"],
        help="a folder, one .safetensors file (mixed: as the release stores it), a file of 8 bits per weight with "
        "all that `sample` needs, or a whole folder for diffusers' Krea2Pipeline; a LoRA: diffusers, native (ComfyUI), "
        "ai-toolkit or kohya",
    )
    parser.add_argument("--text-encoder", metavar="FOLDER", help="for a pipeline: Qwen3-VL, or a pipeline that has it")
    parser.add_argument(
        "--autoencoder", metavar="FOLDER", help="for a pipeline: Qwen-Image's, or a pipeline that has it"
    )
    parser.add_argument("-o", "--output", required=True, help="where to write; must not exist yet")
    parser.set_defaults(run=export)


def export(options: argparse.Namespace) -> int:
    """Convert, say where."""
    from pleinair.records.errors import require

    require("torch", "train")
    require("safetensors", "train")
    if options.to == "package":
        print(f"package: {export_package(Path(options.checkpoint), Path(options.output))}")
        return 0
    if options.to == "pipeline":
        parts = (options.text_encoder, options.autoencoder)
        print(f"pipeline: {export_pipeline(Path(options.checkpoint), Path(options.output), *parts)}")
        return 0
    from pleinair.sampling.adapters import holds_adapter

    write = export_adapter if holds_adapter(Path(options.checkpoint)) else export_weights
    print(f"{options.to}: {write(Path(options.checkpoint), options.to, Path(options.output))}")
    return 0


def export_weights(checkpoint: Path, layout: Any, output: Path) -> Path:
    """The transformer; into a folder also the text projection it was trained on, by which `--parent` knows it again."""
    import shutil

    from pleinair.checkpoint.whole import in_one_piece
    from pleinair.model.formats import open_weights, write_weights
    from pleinair.records.errors import ConfigError
    from pleinair.sampling.projection import PROJECTION_FILE

    if layout in LORA_ONLY:
        raise ConfigError(f"{checkpoint} holds weights, and --to {layout} is for a LoRA: use another layout")
    with in_one_piece(checkpoint) as place:
        weights = open_weights(place)
        written: Path = write_weights(
            weights.config, weights.tensors, output, layout, latent_space=weights.latent_space
        )
    if written.is_dir() and (checkpoint / PROJECTION_FILE).exists():
        shutil.copyfile(checkpoint / PROJECTION_FILE, written / PROJECTION_FILE)
    return written


def export_adapter(checkpoint: Path, dialect: Any, output: Path) -> Path:
    """The LoRA of a checkpoint in a dialect. Raises ConfigError for a layout of weights, CheckpointError for damage."""
    from pleinair.checkpoint.store import verify_checkpoint
    from pleinair.model.formats import write_lora
    from pleinair.records.errors import ConfigError
    from pleinair.sampling.adapters import read_adapter

    if dialect not in DIALECTS:
        raise ConfigError(f"{checkpoint} holds a LoRA, and --to {dialect} is for weights: use {', '.join(DIALECTS)}")
    verify_checkpoint(checkpoint)
    written: Path = write_lora(read_adapter(checkpoint), output, dialect)
    return written


def export_package(checkpoint: Path, output: Path) -> Path:
    """A checkpoint's transformer and text projection in 8 bits, as models come with the package. Never overwrites."""
    from pleinair.checkpoint.store import read_document
    from pleinair.records.errors import CheckpointError
    from pleinair.sampling.checkpoints import read_model
    from pleinair.sampling.shipped import save_model
    from pleinair.sampling.stored import sampling_of

    if output.exists():
        raise CheckpointError(f"{output} exists already: remove it or name another output")
    latents = read_document(checkpoint, "config.json").get("latent_space", "")
    save_model(*read_model(checkpoint), sampling_of(checkpoint), output, latent_space=latents)
    return output


def export_pipeline(checkpoint: Path, output: Path, text_encoder: str | None, autoencoder: str | None) -> Path:
    """A folder that `DiffusionPipeline.from_pretrained` runs: the transformer, a LoRA merged, with the parts it was trained on.

    Raises ConfigError for a part that is not named and for text features of a projection, CheckpointError for parts that
    do not fit.
    """
    from pleinair.cli.encoders import open_codec
    from pleinair.cli.latents import require_latents
    from pleinair.model.autoencoders.qwen_image import QwenImageCodec
    from pleinair.model.formats import save_pipeline
    from pleinair.model.text_encoders.qwen3_vl import K2_LAYERS
    from pleinair.records.errors import CheckpointError, ConfigError

    if text_encoder is None or autoencoder is None:
        raise ConfigError(
            "a pipeline has a text encoder and an autoencoder: name them with --text-encoder and --autoencoder"
        )
    if output.exists():
        raise CheckpointError(f"{output} exists already: remove it or name another output")
    transformer, latents, distilled = _read_for_pipeline(checkpoint)
    codec = open_codec(autoencoder)
    if not isinstance(codec, QwenImageCodec):
        raise ConfigError(
            f"{autoencoder} holds no autoencoder of Qwen-Image, and diffusers' Krea2Pipeline decodes with no other: "
            "give a folder of AutoencoderKLQwenImage"
        )
    require_latents(latents, codec, checkpoint)
    model, tokenizer = _read_text_encoder(Path(text_encoder))
    written: Path = save_pipeline(
        output,
        transformer,
        vae=codec.vae,
        text_encoder=model,
        tokenizer=tokenizer,
        text_layers=K2_LAYERS,
        is_distilled=distilled,
    )
    return written


def _read_for_pipeline(checkpoint: Path) -> tuple[Any, str, bool]:
    """The transformer of a checkpoint or of weights in any layout, whose latents it knows, and whether it is distilled."""
    from pleinair.checkpoint.manifests import MANIFEST
    from pleinair.checkpoint.store import read_document
    from pleinair.model.formats import load_transformer, open_weights
    from pleinair.records.errors import ConfigError
    from pleinair.sampling.checkpoints import read_transformer
    from pleinair.sampling.projection import projection_of
    from pleinair.sampling.stored import sampling_of

    if not (checkpoint / MANIFEST).exists():
        return load_transformer(checkpoint), open_weights(checkpoint).latent_space, False
    projection = projection_of(checkpoint)
    if projection is not None and not projection.passes_on:
        raise ConfigError(
            f"{checkpoint} reads text features through a projection that was fitted, which Krea2Pipeline does not have: export "
            "it as a package, or as weights alone"
        )
    latents = read_document(checkpoint, "config.json").get("latent_space", "")
    return read_transformer(checkpoint), latents, sampling_of(checkpoint).distilled


def _read_text_encoder(folder: Path) -> tuple[Any, Any]:
    """The whole model of a folder, in its own dtype, and its tokenizer."""
    from pleinair.model.text_encoders.folder import model_folder
    from pleinair.records.errors import require

    transformers = require("transformers", "train")
    words = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(words, local_files_only=True)
    return transformers.AutoModel.from_pretrained(model_folder(folder), dtype="auto", local_files_only=True), tokenizer
