"""`pleinair ingest SOURCE`: list pictures into the warehouse."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from pleinair.cli.curate import add_warehouse_options, open_warehouse

if TYPE_CHECKING:
    from pleinair.curation import Ingested
    from pleinair.curation.sources import FetchProgress

_MOST_NOTES = 20


def register(verbs: Any) -> None:
    """Add the verb `ingest`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "ingest",
        help="list pictures into the warehouse",
        description="List pictures into the warehouse: packages of pictures, your own, or those behind a list of URLs.",
    )
    parser.add_argument(
        "source",
        help="drawings, skin-tones, icons, openclipart, gcompris, cifar-10 or tuxpaint; a folder of pictures, a .parquet "
        "file, a WebDataset .tar, a folder of those; or a list of URLs (.txt, .csv, .parquet)",
    )
    parser.add_argument(
        "--style",
        action="append",
        default=[],
        help="drawings: take this author set only (repeatable); your own pictures: the style of those that name none",
    )
    add_warehouse_options(parser)
    parser.set_defaults(run=ingest)


def ingest(options: argparse.Namespace) -> int:
    """List the source; what is there already stays."""
    from pleinair.cli.places import cache_dir
    from pleinair.curation import find_source
    from pleinair.curation import ingest as ingest_source

    source = find_source(options.source, cache_dir(), styles=options.style, on_progress=_show_fetch)
    with open_warehouse(options) as db:
        done = ingest_source(db, source, on_progress=_show_rows)
    print(
        f"{options.source}: {done.num_listed} pictures listed, {done.num_new} new, {done.num_changed} changed",
        flush=True,
    )
    for note in done.notes[:_MOST_NOTES]:
        print(f"note: {note}", file=sys.stderr)
    if len(done.notes) > _MOST_NOTES:
        print(f"note: and {len(done.notes) - _MOST_NOTES} more of these", file=sys.stderr)
    return 0


def _show_fetch(progress: FetchProgress) -> None:
    print(f"fetching {progress}", file=sys.stderr, flush=True)


def _show_rows(done: Ingested) -> None:
    print(f"listed {done.num_listed} pictures, {done.num_new} new", file=sys.stderr, flush=True)
