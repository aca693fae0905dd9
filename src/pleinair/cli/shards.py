"""`pleinair krablet shards | shard add|rebalance|drain|remove|resume | migrate`: the servers of a warehouse."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.dsns import one
from pleinair.cli.krablet import add_database, opened, print_table
from pleinair.cli.progress import ProgressLine

if TYPE_CHECKING:
    from pleinair.krablet import Database


def register(verbs: Any) -> None:
    """Add `shards`, `shard` and `migrate` to the verbs of `krablet`."""
    shards = verbs.add_parser("shards", help="every server with its version, size, lag and slots")
    add_database(shards)
    shards.set_defaults(run=_shards)
    shard = verbs.add_parser("shard", help="add, fill, empty and remove servers while everybody works")
    actions = shard.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, function, told in (
        ("add", _add, "take a server in, empty: --server DSN, or one more embedded one"),
        ("rebalance", _rebalance, "move slots until every server has as many as the others"),
        ("drain", _drain, "move all slots of a server to the others"),
        ("remove", _remove, "forget a drained server"),
        ("resume", _resume, "finish or undo moves whose process is gone"),
    ):
        action = actions.add_parser(name, help=told)
        add_database(action)
        action.set_defaults(run=function)
        if function is _add:
            action.add_argument(
                "--server", metavar="DSN", type=one, help="the new server or @FILE; default: another embedded one"
            )
        if function in (_drain, _remove):
            action.add_argument("number", type=int, help="the server's number, as `shards` prints it")
    migrate = verbs.add_parser("migrate", help="run a file of SQL once on every server, one transaction each")
    migrate.add_argument("file", type=Path, help="SQL statements; the file's name is the migration's name")
    add_database(migrate)
    migrate.set_defaults(run=_migrate)


def _shards(args: argparse.Namespace) -> int:
    from pleinair.krablet.watching.shard_status import shard_statuses

    with opened(args) as database:
        found = shard_statuses(database.shards, lambda shard: shard.where)
    rows = [
        (
            s.number,
            s.place,
            s.version,
            f"{s.size_bytes / 2**20:.0f} MiB",
            s.lag_seconds,
            s.connections,
            s.slots,
            s.error,
        )
        for s in found
    ]
    print_table(("shard", "server", "version", "size", "lag s", "connections", "slots", "problem"), rows)
    return 1 if any(s.error for s in found) else 0


def _add(args: argparse.Namespace) -> int:
    with opened(args) as database:
        if args.server:
            database.add_server(args.server)
        else:
            database.add_embedded()
        print(f"{len(database.shards)} shards; rows move with: pleinair krablet shard rebalance")
    return 0


def _rebalance(args: argparse.Namespace) -> int:
    from pleinair.krablet.moves import rebalance

    with opened(args) as database:
        line = ProgressLine("slots moved")
        print(f"{rebalance(database.shards, on_progress=line.update)} slots moved; {_held(database)}")
    return 0


def _drain(args: argparse.Namespace) -> int:
    from pleinair.krablet.moves import drain

    with opened(args) as database:
        line = ProgressLine("slots moved")
        print(f"{drain(database.shards, args.number, on_progress=line.update)} slots moved; {_held(database)}")
    return 0


def _held(database: Database) -> str:
    return ", ".join(f"{shard.name}: {len(database.shards.slots(shard.number))}" for shard in database.shards)


def _remove(args: argparse.Namespace) -> int:
    from pleinair.krablet.moves import remove_shard

    with opened(args) as database:
        remove_shard(database.shards, args.number)
        print(f"shard {args.number} is no part of the warehouse any more; its server was left as it is")
    return 0


def _resume(args: argparse.Namespace) -> int:
    from pleinair.krablet.moves import resume_moves

    with opened(args) as database:
        print(f"{resume_moves(database.shards)} slots brought in; {_held(database)}")
    return 0


def _migrate(args: argparse.Namespace) -> int:
    with opened(args) as database:
        new = database.migrate(args.file.stem, args.file.read_text())
        print(f"{args.file.stem}: run on {new} of {len(database.shards)} shards")
    return 0
