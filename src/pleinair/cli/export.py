"""`pleinair export CHECKPOINT --to diffusers|native|native-mixed|package -o OUT`: weights for other programs, or to ship.

The first three are `pleinair convert` under the name one looks for after training; a package is smaller and has the
text projection with it. The checkpoint of a LoRA is written as a LoRA, in one of its dialects; as a package it is merged.
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
        choices=["diffusers", "native", "native-mixed", "package", "ai-toolkit", "kohya"],
        help="a folder, one .safetensors file (mixed: as the release stores it), or a file of 8 bits per weight with "
        "all that `sample` needs; a LoRA: diffusers, native (ComfyUI), ai-toolkit or kohya",
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
