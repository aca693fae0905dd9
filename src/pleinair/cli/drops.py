"""`pleinair drops`: what was dropped and why, as a folder of pages; or everything about one picture."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.curate import add_warehouse_options, open_warehouse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pleinair.krablet import Database, Table


def register(verbs: Any) -> None:
    """Add the verb `drops`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "drops",
        help="pages of what was dropped and why, or everything about one picture",
        description="Write a folder of pages: every stage and reason, its pictures, and each picture with its whole row. "
        "With --picture, tell in the terminal why one picture is in the set or not.",
    )
    parser.add_argument("--out", type=Path, default=Path("drops"), help="the folder (default: %(default)s)")
    parser.add_argument("--most", type=int, default=400, help="pictures shown of one reason (default: %(default)s)")
    parser.add_argument("--picture", metavar="NAME", help="a name or part of one, an address, an MD5, a stored path")
    add_warehouse_options(parser)
    parser.set_defaults(run=drops)


def drops(options: argparse.Namespace) -> int:
    """Write the pages, or tell of one picture; exit code 1 when there is none or several."""
    from pleinair.cli.progress import ProgressLine
    from pleinair.curation import ObjectStore, images_table
    from pleinair.curation.drops.folder import write_drop_pages

    with open_warehouse(options) as db:
        images = images_table(db)
        if options.picture is not None:
            return tell(db, images, options.picture)
        line, store = ProgressLine("pictures"), ObjectStore(options.home / "store")
        done = write_drop_pages(db, images, store, options.out, most=options.most, on_progress=line.update)
    line.close()
    print(f"{options.out / 'index.html'}: {done.num_dropped} drops, {done.num_pictures} pictures shown")
    return 0


def tell(db: Database, images: Table, name: str) -> int:
    """Print everything about a picture."""
    from pleinair.curation.drops.reading import drop_stages, find_names, read_rows, why
    from pleinair.records.errors import ConfigError

    names = find_names(images, name)
    if not names:
        raise ConfigError(f"no picture is called {name!r}, or has it in its name or address: no source listed it")
    if len(names) > 1:
        print(f"{len(names)} pictures or more have {name!r}; name one of:")
        print("\n".join(f"  {one}" for one in names))
        return 1
    [row] = read_rows(db, images, names)
    stages = drop_stages(images)
    print(f"{names[0]}\n{why(row, stages)}")
    _print_row(row, stages)
    if keeper := row.get("duplicate_of"):
        print("\nkept instead:")
        for other in read_rows(db, images, [keeper]):
            print(f"  {keeper}: {why(other, stages)}, {other['width']} x {other['height']} {other['format']}")
    return 0


def _print_row(row: Mapping[str, Any], stages: list[str]) -> None:
    from pleinair.curation.drops import facts

    print("\nverdicts")
    for stage, verdict, tried, failures in facts.history(row, stages):
        print(f"  {stage:<12} {verdict}{f'  ({tried})' if tried else ''}{f'  {failures}' if failures else ''}")
    for claim in facts.claims(row):
        if claim.get("holds") is False:
            print(f"  does not hold: {claim.get('text')} (by {claim.get('by')}, score {claim.get('score')})")
    parts = {"where it came from": facts.origin(row), "captions": facts.captions(row), "measured": facts.measured(row)}
    for heading, values in parts.items():
        print(f"\n{heading}")
        for name, value in values.items():
            print(textwrap.fill(f"{name:<18} {value}", 118, initial_indent="  ", subsequent_indent=" " * 21))
