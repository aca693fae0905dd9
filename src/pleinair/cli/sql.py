"""`pleinair sql "SELECT ..."`: a person's query, to one Postgres, to several, or through the read service."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.dsns import HOW, several
from pleinair.cli.krablet import add_directory, print_table

if TYPE_CHECKING:
    import pyarrow as pa

    from pleinair.krablet.reading.scan import BatchStream
    from pleinair.krablet.rpc import Reading

PRINTED_ROWS = 1000


def register_sql(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `sql`."""
    sql = verbs.add_parser(
        "sql",
        help="run one SELECT, read-only, and print a table or write Parquet",
        description="Run one SELECT, read-only. With several --dsn it may only filter one table (no joins, aggregates, "
        "ORDER BY or OFFSET); the shards' rows come one after another, and a LIMIT at its end holds for all of them.",
    )
    sql.add_argument("query", help='such as "SELECT count(*) FROM images"')
    sql.add_argument("-o", "--output", type=Path, help="write all rows to this Parquet file instead of printing")
    sql.add_argument(
        "--limit", type=int, default=PRINTED_ROWS, help="print at most this many rows (default: %(default)s)"
    )
    sql.add_argument(
        "--dsn",
        action="extend",
        type=several,
        help=f"a Postgres of your own: postgresql://user@host:5432/database; repeat it per shard; {HOW}",
    )
    add_directory(sql)
    sql.add_argument(
        "--rpc", metavar="ADDRESS", help="a read service instead: grpc+tls://host:port or grpc://host:port"
    )
    sql.add_argument("--token-file", type=Path, help="the file with the token of that service")
    sql.add_argument("--tls-roots", type=Path, help="the certificate that signed that service's")
    sql.set_defaults(run=run_sql)


def run_sql(args: argparse.Namespace) -> int:
    with _opened(args) as stream:
        if args.output is not None:
            count = _write_parquet(stream, args.output)
            print(f"{count:,} rows: {args.output}")
            return 0
        rows = _first_rows(stream, args.limit + 1)
    print_table(stream.schema.names, rows[: args.limit])
    if len(rows) > args.limit:
        print(f"... and more rows; raise --limit to see more than {args.limit}", file=sys.stderr)
    return 0


@contextmanager
def _opened(args: argparse.Namespace) -> Iterator[Reading | BatchStream]:
    with ExitStack() as stack:
        if args.rpc is not None:
            from pleinair.krablet import rpc
            from pleinair.krablet.rpc.tokens import read_token

            token = None if args.token_file is None else read_token(args.token_file)
            client = stack.enter_context(rpc.connect(args.rpc, token=token, tls_roots=args.tls_roots))
            yield stack.enter_context(client.sql(args.query))
        else:
            from pleinair import krablet
            from pleinair.krablet.reading.pools import ReadPools
            from pleinair.krablet.reading.requests import SqlRequest
            from pleinair.krablet.reading.scan import sql

            dsns = args.dsn or stack.enter_context(krablet.connect(directory=args.directory)).shards.dsns
            pools = stack.enter_context(ReadPools(dsns))
            yield stack.enter_context(sql(pools, SqlRequest(query=args.query)))


def _first_rows(stream: Reading | BatchStream, count: int) -> list[tuple[Any, ...]]:
    """At most `count` rows; little more than these leaves the server."""
    rows: list[tuple[Any, ...]] = []
    for batch in stream:
        columns = [column.to_pylist() for column in batch.slice(0, count - len(rows)).columns]
        rows.extend(zip(*columns, strict=True))
        if len(rows) >= count:
            break
    return rows


def _write_parquet(stream: Reading | BatchStream, path: Path) -> int:
    """The file appears whole or not at all."""
    import pyarrow.parquet as pq

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    count = 0
    try:
        with closing(pq.ParquetWriter(partial, stream.schema)) as writer:
            for batch in stream:
                count += _written(writer, batch)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _written(writer: Any, batch: pa.RecordBatch) -> int:
    writer.write_batch(batch)
    return int(batch.num_rows)
