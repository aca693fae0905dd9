"""`pleinair krablet rpc`: the read service."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pleinair.cli.dsns import HOW, several
from pleinair.cli.krablet import add_directory
from pleinair.records.errors import ConfigError

if TYPE_CHECKING:
    from pleinair.krablet.addresses import Address


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb `rpc` below `krablet`."""
    rpc = verbs.add_parser("rpc", help="serve reads of all shards to other programs and machines")
    rpc.add_argument("--listen", default="127.0.0.1:8815", help="HOST:PORT; port 0 takes a free one (%(default)s)")
    told = f"a shard, with the login of a reader; repeat it per shard; {HOW}"
    rpc.add_argument("--dsn", action="extend", type=several, help=told)
    add_directory(rpc)
    rpc.add_argument("--token-file", type=Path, help="who may read: tokens, one a line; read again when it changes")
    rpc.add_argument("--tls-cert", type=Path, help="the certificate of this service, PEM")
    rpc.add_argument("--tls-key", type=Path, help="its key, PEM")
    rpc.add_argument("--insecure", action="store_true", help="listen beyond this machine without tokens or TLS")
    rpc.add_argument("--pool-size", type=int, default=8, help="reads at once = connections to each shard (%(default)s)")
    rpc.add_argument("--max-rows", type=int, default=100_000_000, help="rows one read may give (%(default)s)")
    rpc.add_argument("--max-bytes", type=int, default=64 * 2**30, help="bytes one read may give (%(default)s)")
    rpc.add_argument("--max-seconds", type=float, default=600.0, help="how long one read may take (%(default)s)")
    rpc.add_argument("--drain-seconds", type=float, default=30.0, help="how long SIGTERM waits for reads (%(default)s)")
    rpc.add_argument("--metrics", metavar="HOST:PORT", help="serve /metrics for Prometheus there")
    rpc.set_defaults(run=run_rpc)


def run_rpc(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C, then drain."""
    from pleinair.krablet.reading.limits import Limits
    from pleinair.krablet.reading.pools import ReadPools
    from pleinair.krablet.rpc.server import ReadService, ServiceConfig, serve
    from pleinair.krablet.watching.prometheus import metrics_served
    from pleinair.krablet.watching.services import reads_text

    address = _tcp_address(args.listen)
    config = ServiceConfig(
        host=address.host,
        port=address.port,
        token_file=args.token_file,
        tls_certificate=args.tls_cert,
        tls_key=args.tls_key,
        limits=Limits(rows=args.max_rows, bytes=args.max_bytes, seconds=args.max_seconds),
        insecure=args.insecure,
        drain_seconds=args.drain_seconds,
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as stack:
        dsns = args.dsn or _embedded_readers(stack, args.directory)
        service = ReadService(ReadPools(dsns, size=args.pool_size), config)
        print(f"reads of {len(dsns)} shard(s) are served at {service.address}", flush=True)
        with metrics_served(args.metrics, lambda: reads_text(service.stats.snapshot())) as url:
            print(f"metrics: {url}\n" * (url is not None), end="", flush=True)
            clean = serve(service, stop)
    if not clean:
        print("stopped; a reader that did not read was cut off", flush=True)
        os._exit(0)  # its thread waits in gRPC and would keep the process
    print("stopped")
    return 0


def _tcp_address(text: str) -> Address:
    from pleinair.krablet.addresses import parse_address

    address = parse_address(text)
    if address.is_unix:
        raise ConfigError(f"--listen is {text!r}: write HOST:PORT, such as 127.0.0.1:8815")
    return address


def _embedded_readers(stack: ExitStack, directory: Path) -> list[str]:
    """The embedded servers with the login of their reader, which is made if need be."""
    from psycopg import conninfo

    from pleinair import krablet
    from pleinair.krablet.reading.reader import READER, make_reader

    database = stack.enter_context(krablet.connect(directory=directory))
    database.shards.each(make_reader)
    return [conninfo.make_conninfo(dsn, user=READER) for dsn in database.shards.dsns]
