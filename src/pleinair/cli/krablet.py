"""`pleinair krablet up | down | status | stuck | dag`: the warehouse from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.dsns import HOW, several

if TYPE_CHECKING:
    from pleinair.krablet import Database, Stage

WIDEST_CELL = 60


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the noun `krablet` and its verbs."""
    from pleinair.cli import funnel, pluck, roles, rpc, shards, watch, worker

    noun = subparsers.add_parser("krablet", help="the warehouse that is the queue: start, stop, look")
    verbs = noun.add_subparsers(dest="verb", required=True, metavar="VERB")
    up = verbs.add_parser("up", help="start the embedded Postgres and leave it running")
    add_directory(up)
    up.add_argument(
        "--shards", type=int, default=1, help="servers to spread over (default: 1, or as many as there are)"
    )
    up.set_defaults(run=_up)
    down = verbs.add_parser("down", help="stop the embedded Postgres, whoever uses it")
    add_directory(down)
    down.set_defaults(run=_down)
    status = verbs.add_parser("status", help="every stage with its rows by state, its rate and its oldest row")
    add_database(status)
    status.set_defaults(run=_status)
    stuck = verbs.add_parser("stuck", help="the rows that keep failing, and why")
    add_database(stuck)
    stuck.add_argument("--attempts", type=int, default=4, help="list rows that failed this often (default: 4)")
    stuck.add_argument("--limit", type=int, default=20, help="rows per stage (default: 20)")
    stuck.add_argument("--retry", action="store_true", help="let every failed row be tried again at once")
    stuck.set_defaults(run=_stuck)
    dag = verbs.add_parser("dag", help="which stage waits for which, from the declared conditions")
    add_database(dag)
    dag.add_argument("--svg", type=Path, help="write a drawing to this file instead of text")
    dag.set_defaults(run=_dag)
    rpc.register(verbs)
    funnel.register(verbs)
    shards.register(verbs)
    roles.register(verbs)
    watch.register(verbs)
    pluck.register(verbs)
    worker.register(verbs)


def add_directory(parser: argparse.ArgumentParser) -> None:
    """Add --directory, where the embedded Postgres is, and --home, the folder it is in, as other verbs name it."""
    from pleinair.cli.places import data_home

    default = data_home() / "postgres"
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--directory", type=Path, default=default, help="where the embedded Postgres keeps its data (%(default)s)"
    )
    place.add_argument(
        "--home",
        dest="directory",
        type=lambda home: Path(home) / "postgres",
        default=argparse.SUPPRESS,
        metavar="HOME",
        help="the same by the folder that other verbs call --home: HOME/postgres",
    )


def add_database(parser: argparse.ArgumentParser) -> None:
    """Add --dsn and --directory."""
    told = f"a Postgres of your own: postgresql://user@host:5432/database; once per shard, the catalog's first; {HOW}"
    parser.add_argument("--dsn", action="extend", type=several, help=told)
    add_directory(parser)


@contextmanager
def opened(args: argparse.Namespace) -> Iterator[Database]:
    """The warehouse the options name."""
    from psycopg.errors import InsufficientPrivilege

    from pleinair import krablet
    from pleinair.krablet.connections import not_allowed

    with krablet.connect(args.dsn, directory=args.directory) as database:
        try:
            yield database
        except InsufficientPrivilege as error:
            raise not_allowed(error, database.dsn) from error


def _up(args: argparse.Namespace) -> int:
    from pleinair import krablet
    from pleinair.krablet.postgres.embedded import keep_running

    with krablet.connect(directory=args.directory) as database:
        if (missing := args.shards - len(database.shards)) > 0:
            database.add_embedded(missing)
        for server in database.servers:
            keep_running(server)
            print(f"Postgres runs in {server.directory}\nDSN: {server.dsn}")
    print("stop it with: pleinair krablet down")
    return 0


def _down(args: argparse.Namespace) -> int:
    from pleinair.krablet.postgres.embedded import stop_server

    beside = sorted(args.directory.parent.glob(f"{args.directory.name}-[0-9]*"))
    for directory in [*beside, args.directory]:
        print(f"Postgres in {directory} {'stopped' if stop_server(directory) else 'was not running'}")
    return 0


def _status(args: argparse.Namespace) -> int:
    from pleinair.krablet.postgres.embedded import running

    if args.dsn is None and running(args.directory) is None:
        print(f"Postgres in {args.directory} is not running; start it with: pleinair krablet up")
        return 1
    with opened(args) as database:
        stages = database.declared_stages()
        rows = [_status_row(stage) for stage in stages]
    print_table(("stage", "ready", "leased", "done", "failed", "attempts", "rows/s", "oldest try"), rows)
    return 0


def _status_row(stage: Stage) -> tuple[object, ...]:
    stats = stage.stats()
    oldest = "" if stats.oldest_seconds is None else f"{stats.oldest_seconds:.0f} s ago"
    rate = f"{stats.rows_per_second:.1f}"
    return (stage.label, stats.ready, stats.leased, stats.done, stats.failed, stats.most_attempts, rate, oldest)


def _stuck(args: argparse.Namespace) -> int:
    with opened(args) as database:
        stages = database.declared_stages()
        if args.retry:
            print(f"{sum(stage.retry() for stage in stages)} rows will be tried again at once")
            return 0
        found = [
            (stage.label, row) for stage in stages for row in stage.stuck(attempts=args.attempts, limit=args.limit)
        ]
    rows = [(label, row.key, row.attempts, row.error, row.not_before) for label, row in found]
    print_table(("stage", "key", "attempts", "error", "next try"), rows)
    return 0


def _dag(args: argparse.Namespace) -> int:
    from pleinair.krablet.watching.dag import draw
    from pleinair.krablet.watching.dag_svg import draw_svg

    with opened(args) as database:
        if args.svg is not None:
            args.svg.write_text(draw_svg(database.declared_stages(), lambda stage: stage.depth()), "utf-8")
            print(args.svg)
            return 0
        lines = draw(database.declared_stages(), _depth_note)
    print("\n".join(lines) or "no stages are declared")
    return 0


def _depth_note(stage: Stage) -> str:
    depth = stage.depth()
    return f"{depth.pending} pending" + (f", {depth.stuck} stuck" if depth.stuck else "")


def print_table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns aligned by their widest cell, numbers to the right."""
    print("\n".join(table_lines(names, rows)))


def table_lines(names: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a table: columns aligned by their widest cell, numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[place], int | float) for row in rows) for place in range(len(names))]
    lines = []
    for line in [list(names), ["-" * width for width in widths], *cells]:
        aligned = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip())
    return lines


def _cell(value: Any) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= WIDEST_CELL else text[: WIDEST_CELL - 3] + "..."
