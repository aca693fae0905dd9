"""`pleinair merge`: average the last checkpoints of a run, or combine models fine-tuned from one parent."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(verbs: Any) -> None:
    """Add the verb `merge`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "merge", help="average checkpoints, or combine fine-tuned models"
    )
    parser.add_argument(
        "checkpoints",
        nargs="+",
        help="checkpoint folders, or runs for their newest; with --last, one folder of checkpoints",
    )
    parser.add_argument("--last", type=int, metavar="N", help="take the newest N of the folder")
    parser.add_argument(
        "--weights", default="uniform", choices=["uniform", "linear", "ema"], help="how much later ones count"
    )
    parser.add_argument(
        "--parent",
        help="combine: what all of them were fine-tuned from, as `train --parent` was told, for example drawings-64",
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="combine: where the runs are (default: %(default)s)"
    )
    parser.add_argument(
        "--amount",
        type=float,
        action="append",
        help="combine: share of each one's change, in order; an equal part of 1 for each by default",
    )
    parser.add_argument("-o", "--output", required=True, help="where to write; must not exist yet")
    parser.set_defaults(run=merge)


def merge(options: argparse.Namespace) -> int:
    """Merge, say where."""
    from pleinair.records.errors import require

    require("torch", "train")
    require("safetensors", "train")
    from pleinair.checkpoint.merge import combine_checkpoints, merge_checkpoints
    from pleinair.cli.parents import find_checkpoint

    paths, output = chosen([Path(place) for place in options.checkpoints], options.last), Path(options.output)
    if options.last is None:
        paths = [find_checkpoint(str(path), options.runs) for path in paths]
    if options.parent:
        amounts = options.amount or [1 / len(paths)] * len(paths)
        parent = find_checkpoint(options.parent, options.runs)
        written = combine_checkpoints(parent, paths, amounts, out=output)
    else:
        written = merge_checkpoints(paths, options.weights, out=output)
    print(f"merged {len(paths)} checkpoints: {written}")
    return 0


def chosen(places: list[Path], last: int | None) -> list[Path]:
    """The places, or the newest `last` checkpoints inside the only one. Raises CheckpointError when there are fewer."""
    from pleinair.checkpoint.store import list_checkpoints
    from pleinair.records.errors import CheckpointError

    if last is None:
        return places
    found = list_checkpoints(places[0])
    if len(places) > 1 or not 0 < last <= len(found):
        raise CheckpointError(
            f"--last {last} takes checkpoints of one folder, and {places[0]} has {len(found)}: give another number or place"
        )
    return found[-last:]
