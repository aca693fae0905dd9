"""`pleinair export CHECKPOINT --to diffusers|native -o OUT`: weights for other programs."""

from __future__ import annotations

import argparse
from typing import Any


def register(verbs: Any) -> None:
    """Add the verb `export`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "export", help="write a transformer as diffusers or the official release reads it"
    )
    parser.add_argument("checkpoint", help="a checkpoint folder, or weights in any layout pleinair reads")
    parser.add_argument(
        "--to", required=True, choices=["diffusers", "native"], help="a folder, or one .safetensors file"
    )
    parser.add_argument("-o", "--output", required=True, help="where to write; must not exist yet")
    parser.set_defaults(run=export)


def export(options: argparse.Namespace) -> int:
    """Load, write, say where."""
    from pleinair.records.errors import require

    require("torch", "train")
    require("safetensors", "train")
    from pleinair.model.formats import load_transformer, save_transformer

    written = save_transformer(load_transformer(options.checkpoint), options.output, layout=options.to)
    print(f"{options.to} weights: {written}")
    return 0
