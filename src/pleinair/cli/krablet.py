"""`pleinair krablet up | down | status | stuck | dag` and `pleinair sql`: the warehouse from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli import pluck

if TYPE_CHECKING:
    from pleinair.krablet import Database, Stage
    from pleinair.krablet.connections import Connection

WIDEST_CELL = 60


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the noun `krablet` and its verbs."""
    noun = subparsers.add_parser("krablet", help="the warehouse that is the queue: start, stop, look")
    verbs = noun.add_subparsers(dest="verb", required=True, metavar="VERB")
    up = verbs.add_parser("up", help="start the embedded Postgres and leave it running")
    _add_directory(up)
    up.set_defaults(run=_up)
    down = verbs.add_parser("down", help="stop the embedded Postgres, whoever uses it")
    _add_directory(down)
    down.set_defaults(run=_down)
    status = verbs.add_parser("status", help="every stage with its rows by state, its rate and its oldest row")
    _add_database(status)
    status.set_defaults(run=_status)
    stuck = verbs.add_parser("stuck", help="the rows that keep failing, and why")
    _add_database(stuck)
    stuck.add_argument("--attempts", type=int, default=4, help="list rows that failed this often (default: 4)")
    stuck.add_argument("--limit", type=int, default=20, help="rows per stage (default: 20)")
    stuck.add_argument("--retry", action="store_true", help="let every failed row be tried again at once")
    stuck.set_defaults(run=_stuck)
    dag = verbs.add_parser("dag", help="which stage waits for which, from the declared conditions")
    _add_database(dag)
    dag.set_defaults(run=_dag)
    pluck.register(verbs)


def register_sql(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `sql`."""
    sql = subparsers.add_parser("sql", help="run one SELECT, read-only, and print a table")
    sql.add_argument("query", help='such as "SELECT count(*) FROM images"')
    sql.add_argument("--limit", type=int, default=1000, help="print at most this many rows (default: 1000)")
    _add_database(sql)
    sql.set_defaults(run=_sql)


def _add_directory(parser: argparse.ArgumentParser) -> None:
    from pleinair.cli.places import data_home

    default = data_home() / "postgres"
    parser.add_argument(
        "--directory", type=Path, default=default, help="where the embedded Postgres keeps its data (%(default)s)"
    )


def _add_database(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dsn", help="a Postgres of your own: postgresql://user@host:5432/database")
    _add_directory(parser)


@contextmanager
def _opened(args: argparse.Namespace) -> Iterator[Database]:
    from pleinair import krablet

    with krablet.connect(args.dsn, directory=args.directory) as database:
        yield database


def _up(args: argparse.Namespace) -> int:
    from pleinair.krablet.embedded import open_server

    server = open_server(args.directory, stays=True)
    server.leave()
    print(f"Postgres runs in {server.directory}\nDSN: {server.dsn}\nstop it with: pleinair krablet down")
    return 0


def _down(args: argparse.Namespace) -> int:
    from pleinair.krablet.embedded import stop_server

    print(f"Postgres in {args.directory} {'stopped' if stop_server(args.directory) else 'was not running'}")
    return 0


def _status(args: argparse.Namespace) -> int:
    from pleinair.krablet.embedded import running

    if args.dsn is None and running(args.directory) is None:
        print(f"Postgres in {args.directory} is not running; start it with: pleinair krablet up")
        return 1
    with _opened(args) as database:
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
    with _opened(args) as database:
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
    from pleinair.krablet.dag import draw

    with _opened(args) as database:
        lines = draw(database.declared_stages(), _depth_note)
    print("\n".join(lines) or "no stages are declared")
    return 0


def _depth_note(stage: Stage) -> str:
    depth = stage.depth()
    return f"{depth.pending} pending" + (f", {depth.stuck} stuck" if depth.stuck else "")


def _sql(args: argparse.Namespace) -> int:
    import psycopg

    from pleinair.records.errors import QueueError

    with _opened(args) as database, closing(database.connection()) as connection:
        connection.read_only = True
        try:
            names, rows = _first_rows(connection, args.query, args.limit + 1)
        except psycopg.Error as error:
            raise QueueError(f"the query failed: {str(error).splitlines()[0]}; give one SELECT") from error
    print_table(names, rows[: args.limit])
    if len(rows) > args.limit:
        print(f"... and more rows; raise --limit to see more than {args.limit}", file=sys.stderr)
    return 0


def _first_rows(connection: Connection, query: str, count: int) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and at most `count` rows; the rest never leaves the server."""
    # A cursor is declared for one statement: a second, which could end the read-only transaction, is refused.
    with connection.transaction(), connection.cursor(name="pleinair_sql") as cursor:
        cursor.execute(query.rstrip().removesuffix(";"))
        return [column.name for column in cursor.description or ()], cursor.fetchmany(count)


def print_table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns aligned by their widest cell, numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    right = [bool(rows) and all(isinstance(row[place], int | float) for row in rows) for place in range(len(names))]
    for line in [list(names), ["-" * width for width in widths], *cells]:
        aligned = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ]
        print("  ".join(aligned).rstrip())


def _cell(value: Any) -> str:
    text = "" if value is None else " ".join(str(value).split())
    return text if len(text) <= WIDEST_CELL else text[: WIDEST_CELL - 3] + "..."
