"""`pleinair duplicates`: which pictures are the same, by their fingerprints and by what they show."""

from __future__ import annotations

import argparse
from typing import Any

from pleinair.cli.curate import add_warehouse_options, open_warehouse


def register(verbs: Any) -> None:
    """Add the verb `duplicates`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "duplicates",
        help="find crops and other copies that fingerprints miss",
        description="Mark duplicates by fingerprints, as `pleinair curate` does at its end; with --semantic, also by what "
        "pictures show: near vectors of `pleinair embed` in one cluster of `pleinair cluster`, confirmed by their pixels.",
    )
    parser.add_argument("--semantic", action="store_true", help="look for crops by vectors and pixels")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="with --semantic: e.g. candidates.nearest=3"
    )
    parser.add_argument("--processes", type=int, default=2, help="worker processes (default: %(default)s)")
    add_warehouse_options(parser)
    parser.set_defaults(run=duplicates)


def duplicates(options: argparse.Namespace) -> int:
    """Mark duplicates; exit code 1 when pairs are stuck."""
    from pleinair.cli.curate import close_run, show_workers
    from pleinair.cli.progress import ProgressLine
    from pleinair.config import override
    from pleinair.curation import CurationConfig, images_table, mark_duplicates
    from pleinair.curation.clusters.semantic_pairs import SemanticConfig, find_semantic_duplicates
    from pleinair.records.errors import ConfigError

    if options.set and not options.semantic:
        raise ConfigError(
            f"--set {options.set[0]} belongs to --semantic: add it, or give the limit to 'pleinair curate'"
        )
    with open_warehouse(options) as db:
        if not options.semantic:
            changed = mark_duplicates(images_table(db), CurationConfig().duplicates)
            print(f"{changed} verdicts changed", flush=True)
            return 0
        line = ProgressLine("pairs")
        done = find_semantic_duplicates(
            db,
            options.home / "store",
            override(SemanticConfig(), options.set),
            processes=options.processes,
            on_progress=lambda now: show_workers(line, now),
        )
    line.close()
    print(
        f"{done.num_pairs} pairs asked for, {sum(done.run.completed.values())} looked at now; "
        f"{done.num_dropped} pictures are duplicates, {done.num_changed} verdicts changed",
        flush=True,
    )
    return close_run(options.home, done.run)
