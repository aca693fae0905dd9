"""`pleinair caption`: describe, reformat and check every picture that curation kept."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.curate import add_warehouse_options, close_run, drop_table, open_warehouse, show_workers

if TYPE_CHECKING:
    from pleinair.captioning import Captioned


def register(verbs: Any) -> None:
    """Add the verb `caption`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "caption",
        help="caption what curation kept, and check the captions against the pictures",
        description="Read writing, describe, reformat and check every picture that curation kept. Without endpoints the "
        "templates of labels and tags describe. It may be stopped at any time; the same command goes on.",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="e.g. captioner.url=http://127.0.0.1:8000/v1 captioner.model=qwen3-vl budget.dollars=20 (repeatable)",
    )
    parser.add_argument("--processes", type=int, default=2, help="worker processes (default: %(default)s)")
    parser.add_argument(
        "--again",
        default="",
        metavar="STAGE",
        help="do a stage and those after it anew: ocr, describe, reformat or check",
    )
    parser.add_argument(
        "--account",
        type=Path,
        help="folder of the reply cache and of what endpoints cost (default: in the user's cache)",
    )
    add_warehouse_options(parser)
    parser.set_defaults(run=caption)


def caption(options: argparse.Namespace) -> int:
    """Caption; exit code 1 when pictures are stuck or the budget is spent."""
    from pleinair.captioning import CaptioningConfig
    from pleinair.captioning import caption as run_captioning
    from pleinair.cli.places import cache_dir, text_encoder_dir
    from pleinair.cli.progress import ProgressLine
    from pleinair.cli.tower import model_path
    from pleinair.config.overrides import override
    from pleinair.curation import WORDING, images_table, read_drops
    from pleinair.curation.embeddings import embedded_table

    config = override(CaptioningConfig(), options.set)
    if config.small_rewrites:
        from pleinair.model.text_encoders.smollm2 import fetch_smollm2

        fetch_smollm2(text_encoder_dir())
    line = ProgressLine("caption")
    with open_warehouse(options) as db:
        images = embedded_table(db) if config.scorer == "tower" else images_table(db)
        done = run_captioning(
            db,
            images,
            config,
            store=options.home / "store",
            place=options.account or cache_dir() / "endpoints",
            small_model=text_encoder_dir(),
            wording=WORDING,
            tower=model_path(options.home),
            processes=options.processes,
            again=options.again,
            on_progress=lambda now: show_workers(line, now),
        )
        drops = read_drops(images)
    line.close()
    print(drop_table(tuple(drops)), flush=True)
    print(_claims_and_costs(done), flush=True)
    if done.spent:
        print(f"pleinair: {done.spent}; what is done stays, and the same command goes on", file=sys.stderr)
        return 1
    return close_run(options.home, done.run)


def _claims_and_costs(done: Captioned) -> str:
    counts = done.claims
    lines = [f"claims: {counts['hold']} hold, {counts['fail']} fail, {counts['unknown']} could not be judged"]
    if done.costs:
        lines.append(
            f"{'stage':<10} {'model':<24} {'requests':>9} {'cached':>9} {'tokens in':>11} {'out':>9} {'dollars':>9}"
        )
    lines += [
        f"{cost.stage:<10} {cost.model:<24} {cost.requests:>9} {cost.cached:>9} {cost.prompt_tokens:>11} "
        f"{cost.completion_tokens:>9} {cost.dollars:>9.2f}"
        for cost in done.costs
    ]
    return "\n".join(lines)
