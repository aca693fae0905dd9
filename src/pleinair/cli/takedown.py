"""`pleinair takedown`: pictures that must not be here, refused again whenever a source brings them."""

from __future__ import annotations

import argparse
from typing import Any

from pleinair.cli.curate import add_warehouse_options, open_warehouse


def register(verbs: Any) -> None:
    """Add the verb `takedown`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "takedown",
        help="take pictures out and refuse them from now on",
        description="Take pictures out of the warehouse and refuse them whenever a source brings them again.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    add = actions.add_parser("add", help="refuse a picture and all that looks like it")
    add.add_argument("picture", help="a picture's file, its MD5 or SHA-256, or its URL")
    add.add_argument("--reason", required=True, help="why, kept with every row it concerns")
    add.add_argument("--near", type=int, metavar="BITS", help="radius of the perceptual hash; 0: the same bytes only")
    add_warehouse_options(add)
    add.set_defaults(run=takedown_add)
    listing = actions.add_parser("list", help="all takedowns, oldest first")
    add_warehouse_options(listing)
    listing.set_defaults(run=takedown_list)


def takedown_add(options: argparse.Namespace) -> int:
    """Record the takedown and act on it."""
    from pleinair.curation import images_table
    from pleinair.curation.store import ObjectStore
    from pleinair.curation.takedowns import NEAR_BITS, add_takedown, enforce, read_takedowns, write_snapshot

    near = NEAR_BITS if options.near is None else options.near
    with open_warehouse(options) as db:
        images, store = images_table(db), options.home / "store"
        added = add_takedown(db, images, options.picture, options.reason, near=near)
        # Workers that run now refuse it from their next batch on.
        write_snapshot(store, read_takedowns(db))
        num_rows = enforce(db, images, ObjectStore(store))
    looks = f"and what looks like it within {added.near} bits " if added.near else ""
    print(f"{added.takedown} {looks}is refused from now on; pictures taken out: {num_rows}")
    return 0


def takedown_list(options: argparse.Namespace) -> int:
    """Print every takedown."""
    from pleinair.curation.takedowns import read_takedowns

    with open_warehouse(options) as db:
        for one in read_takedowns(db):
            print(f"{one.added_at:%Y-%m-%d %H:%M}  {one.takedown}  near {one.near}  {one.reason}")
    return 0
