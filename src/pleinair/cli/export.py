"""`pleinair export CHECKPOINT --to diffusers|native|native-mixed|package -o OUT`: weights for other programs, or to ship.

The first three are `pleinair convert` under the name one looks for after training; a package is smaller and has the
text projection with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(verbs: Any) -> None:
    """Add the verb `export`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "export", help="write a transformer as diffusers or the official release reads it"
    )
    parser.add_argument("checkpoint", help="a checkpoint folder, or weights in any layout pleinair reads")
    parser.add_argument(
        "--to",
        required=True,
        choices=["diffusers", "native", "native-mixed", "package"],
        help="a folder, one .safetensors file (mixed: as the release stores it), or a file of 8 bits per weight with "
        "all that `sample` needs",
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
    from pleinair.checkpoint.whole import in_one_piece
    from pleinair.model.formats import open_weights, write_weights

    with in_one_piece(Path(options.checkpoint)) as place:
        weights = open_weights(place)
        print(f"{options.to} weights: {write_weights(weights.config, weights.tensors, options.output, options.to)}")
    return 0


def export_package(checkpoint: Path, output: Path) -> Path:
    """A checkpoint's transformer and text projection in 8 bits, as models come with the package. Never overwrites."""
    from pleinair.cli.steps import read_model
    from pleinair.records.errors import CheckpointError
    from pleinair.sampling import SamplingConfig
    from pleinair.sampling.shipped import save_model

    if output.exists():
        raise CheckpointError(f"{output} exists already: remove it or name another output")
    save_model(*read_model(checkpoint), SamplingConfig(), output)
    return output
