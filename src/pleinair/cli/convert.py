"""`pleinair convert IN OUT --to LAYOUT`: transformer weights and LoRA files from any layout into any other.

The input is recognised by what is in it. Weights go through one tensor at a time, so that a file larger than memory
can be converted; nothing is overwritten, and what is written appears whole or not at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

_LAYOUTS = ("diffusers", "native", "native-mixed", "pleinair")
_DIALECTS = ("diffusers", "native", "ai-toolkit", "kohya")
_DTYPES = ("bfloat16", "float16", "float32")


def register(verbs: Any) -> None:
    """Add the verb `convert`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "convert", help="rewrite K2 weights or a LoRA as another program reads them"
    )
    parser.add_argument(
        "input", help="a .safetensors file or a folder: weights in any layout, or a LoRA of any dialect"
    )
    parser.add_argument("output", help="where to write; must not exist yet")
    parser.add_argument(
        "--to",
        required=True,
        choices=sorted({*_LAYOUTS, *_DIALECTS}),
        help=f"weights: {', '.join(_LAYOUTS)}; a LoRA: {', '.join(_DIALECTS)} (native is what ComfyUI reads)",
    )
    parser.add_argument("--dtype", choices=_DTYPES, help="store weights in this dtype; default: as they are")
    parser.add_argument(
        "--shard-bytes", type=int, default=10_000_000_000, help="largest file of a diffusers folder (default 10 GB)"
    )
    parser.add_argument("--keep-alpha", action="store_true", help="write a LoRA's alpha beside it; ComfyUI reads it")
    parser.set_defaults(run=convert)


def convert(options: argparse.Namespace) -> int:
    """Recognise the input, write the output, say what was read and where it went."""
    from pleinair.records.errors import require

    require("torch", "train")
    require("safetensors", "train")
    from pleinair.model.formats import is_lora

    written = _convert_lora(options) if is_lora(options.input) else _convert_weights(options)
    print(written)
    return 0


def _convert_lora(options: argparse.Namespace) -> str:
    from pleinair.model.formats import read_lora, write_lora
    from pleinair.records.errors import ConfigError

    if options.to not in _DIALECTS or options.dtype is not None:
        refused = f"--to {options.to}" if options.to not in _DIALECTS else f"--dtype {options.dtype}"
        raise ConfigError(f"{options.input} is a LoRA, and {refused} is for weights: use --to {', '.join(_DIALECTS)}")
    state, dialect = read_lora(options.input)
    path = write_lora(state, options.output, options.to, keep_alpha=options.keep_alpha)
    return f"LoRA of {len(state)} layers, {dialect} to {options.to}: {path}"


def _convert_weights(options: argparse.Namespace) -> str:
    import torch

    from pleinair.checkpoint.whole import in_one_piece
    from pleinair.model.formats import open_weights, write_weights
    from pleinair.records.errors import ConfigError

    if options.to not in _LAYOUTS or options.keep_alpha:
        refused = f"--to {options.to}" if options.to not in _LAYOUTS else "--keep-alpha"
        raise ConfigError(f"{options.input} holds weights, and {refused} is for a LoRA: use --to {', '.join(_LAYOUTS)}")
    if options.dtype is not None and options.to == "native-mixed":
        raise ConfigError(f"--dtype {options.dtype} with --to native-mixed, which has its own dtypes: leave one out")
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    with in_one_piece(Path(options.input)) as place:
        weights = open_weights(place)
        path: Path = write_weights(
            weights.config,
            weights.tensors,
            options.output,
            options.to,
            dtype=dtype,
            shard_bytes=options.shard_bytes,
            latent_space=weights.latent_space,
        )
    return f"{len(weights.tensors)} tensors, {weights.layout} to {options.to}: {path}"
