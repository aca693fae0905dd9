"""`pleinair embed`: a frozen encoder's vector of every picture that is kept."""

from __future__ import annotations

import argparse
from typing import Any

from pleinair.cli.curate import add_warehouse_options, open_warehouse


def register(verbs: Any) -> None:
    """Add the verb `embed`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "embed",
        help="give every kept picture a frozen encoder's vector",
        description="Embed what `pleinair curate` kept. It may be stopped at any time; the same command goes on.",
    )
    parser.add_argument(
        "--encoder",
        default="efficientnet-lite0",
        help="efficientnet-lite0, or the folder of a vision model such as DINOv3 or SigLIP-2 (default: %(default)s)",
    )
    parser.add_argument("--processes", type=int, default=2, help="worker processes (default: %(default)s)")
    add_warehouse_options(parser)
    parser.set_defaults(run=embed)


def embed(options: argparse.Namespace) -> int:
    """Embed; exit code 1 when pictures are stuck."""
    from pleinair.cli.curate import close_run, show_workers
    from pleinair.cli.places import cache_dir
    from pleinair.cli.progress import ProgressLine
    from pleinair.curation.embeddings import embed_pictures

    if options.encoder == "efficientnet-lite0":
        from pleinair.model.efficientnet import fetch_efficientnet

        fetch_efficientnet(cache_dir() / "efficientnet-lite0")
    line = ProgressLine("embed")
    with open_warehouse(options) as db:
        done = embed_pictures(
            db,
            options.encoder,
            cache=cache_dir(),
            store=options.home / "store",
            processes=options.processes,
            on_progress=lambda now: show_workers(line, now),
        )
    line.close()
    print(f"{sum(done.completed.values())} pictures embedded", flush=True)
    return close_run(options.home, done)
