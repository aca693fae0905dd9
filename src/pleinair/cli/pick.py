"""`pleinair pick`: choose and order a small set per domain by hand, at the keyboard."""

from __future__ import annotations

import argparse
import getpass
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.curate import add_warehouse_options, open_warehouse

if TYPE_CHECKING:
    from pleinair.krablet import Database, Table

PORT = 8741
MOST = 1000


def register(verbs: Any) -> None:
    """Add the verb `pick`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "pick",
        help="choose and order a small set per domain by hand",
        description="Serve a page, on this machine only, that shows pictures and takes decisions from the keyboard. Every "
        "decision is an event in the warehouse; the page says which keys there are at '?'.",
    )
    parser.add_argument(
        "--domain", action="append", default=[], metavar="NAME", help="a set to fill (repeatable; the first is current)"
    )
    parser.add_argument("--where", metavar="SQL", help="which pictures (default: kept and not held out)")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--like", metavar="WORDS", help="those that fit these words best first; needs 'pleinair tower'")
    order.add_argument("--from-list", type=Path, metavar="FILE", help="those a file names: .parquet, .jsonl or lines")
    parser.add_argument("--most", type=int, default=MOST, help="pictures to show (default: %(default)s)")
    parser.add_argument("--person", default=getpass.getuser(), help="who decides (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="0 takes any (default: %(default)s)")
    parser.add_argument(
        "--export", nargs=2, metavar=("DOMAIN", "FILE"), help="write a set to a .parquet or .jsonl file, and end"
    )
    parser.add_argument("--sets", action="store_true", help="print the sets there are, and end")
    add_warehouse_options(parser)
    parser.set_defaults(run=pick)


def pick(options: argparse.Namespace) -> int:
    """Serve the page until interrupted, or export, or list."""
    from pleinair.curation import images_table

    with open_warehouse(options) as db:
        if options.export:
            return _export(db, images_table(db), options.export[0], Path(options.export[1]))
        if options.sets:
            return _print_sets(db)
        return _serve(db, images_table(db), options)


def _serve(db: Database, images: Table, options: argparse.Namespace) -> int:
    from pleinair.curation import ObjectStore
    from pleinair.curation.picks.board import Board
    from pleinair.curation.picks.candidates import candidates, pickable, read_names
    from pleinair.curation.picks.server import board_served
    from pleinair.pages.loopback import kept_token

    where = options.where or pickable(images)
    names = read_names(options.from_list) if options.from_list else None
    if options.like:
        from pleinair.cli.tower import fitting

        names = [name for name, _ in fitting(db, options.home, options.like, where)]
    shown = candidates(images, where, options.most, names)
    board = Board(db, images, shown, options.domain, options.person)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    token = kept_token(options.home / "pick-token")
    with board_served(board, ObjectStore(options.home / "store"), token, options.port) as address:
        print(f"{len(shown)} pictures for {', '.join(board.domains)}; Ctrl-C ends: {address}", flush=True)
        stop.wait()
    return 0


def _export(db: Database, images: Table, domain: str, path: Path) -> int:
    from pleinair.curation.picks.export import export_set

    done = export_set(db, images, domain, path)
    print(f"{path}: {done.num_pictures} pictures of {domain}, in their order")
    for name in done.left_out[:5]:
        print(f"left out, gone, dropped or held out since it was picked: {name}", file=sys.stderr)
    if len(done.left_out) > 5:
        print(f"and {len(done.left_out) - 5} more of these", file=sys.stderr)
    return 0


def _print_sets(db: Database) -> int:
    from pleinair.curation.picks.events import Picks, picks_table, read_events

    events = read_events(picks_table(db))
    picks = Picks(events)
    for domain in sorted(picks.by_domain):
        persons = sorted({event.person for event in events if event.domain == domain})
        num_events = sum(event.domain == domain for event in events)
        print(f"{domain}: {len(picks.chosen(domain))} pictures, {num_events} events by {', '.join(persons)}")
    return 0
