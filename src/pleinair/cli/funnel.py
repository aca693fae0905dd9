"""`pleinair krablet funnel`: the write path for contended upserts of one shard, as a service."""

from __future__ import annotations

import argparse
import os
import ssl
from contextlib import closing
from pathlib import Path

from pleinair.cli.krablet import add_database, opened
from pleinair.records.errors import ConfigError


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `funnel` to the verbs of `krablet`."""
    funnel = verbs.add_parser("funnel", help="serve the write path for contended upserts of one shard")
    funnel.add_argument("--listen", required=True, help="HOST:PORT, [IPV6]:PORT or unix:/path; port 0 chooses one")
    funnel.add_argument(
        "--token-file", type=Path, help="file with the token clients must show (default: $PLEINAIR_FUNNEL_TOKEN)"
    )
    funnel.add_argument("--cert", type=Path, help="TLS certificate (PEM, with its chain)")
    funnel.add_argument("--key", type=Path, help="private key of the certificate (PEM)")
    funnel.add_argument(
        "--buffer", type=int, default=65_536, help="mutations held before clients are held back (default: %(default)s)"
    )
    funnel.add_argument("--plaintext", action="store_true", help="allow other machines in without TLS")
    funnel.add_argument("--shard", type=int, default=0, help="which server of the warehouse (default: %(default)s)")
    funnel.add_argument("--metrics", metavar="HOST:PORT", help="serve /metrics for Prometheus there")
    add_database(funnel)
    funnel.set_defaults(run=_funnel)


def _funnel(args: argparse.Namespace) -> int:
    import logging

    from pleinair.krablet.funnel.funnel import FunnelSettings
    from pleinair.krablet.funnel.service import ServiceSettings, serve
    from pleinair.krablet.moves import resume_moves

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of every flush that is undone, which is routine
    settings = ServiceSettings(
        listen=args.listen,
        token=_token(args.token_file),
        tls=_tls(args.cert, args.key),
        plaintext=args.plaintext,
        metrics=args.metrics,
    )
    with opened(args) as database, closing(database.shards.fresh(0.0)) as looking:
        known = {shard.number: shard for shard in database.shards}
        if args.shard not in known:
            raise ConfigError(f"there is no shard {args.shard}: name one of {', '.join(map(str, known))}")
        serve(
            known[args.shard].session,
            settings,
            FunnelSettings(buffer_mutations=args.buffer),
            on_ready=lambda address: print(f"the funnel listens on {address}", flush=True),
            heal=lambda: resume_moves(looking),
        )
    return 0


def _token(file: Path | None) -> str | None:
    try:
        return file.read_text().strip() if file is not None else os.environ.get("PLEINAIR_FUNNEL_TOKEN")
    except OSError as error:
        raise ConfigError(f"the token file cannot be read: {error}; correct --token-file") from error


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None or key is None:
        if certificate is not key:
            raise ConfigError("TLS needs a certificate and its key: give both --cert and --key")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ConfigError(f"the certificate {certificate} and key {key} cannot be used: {error}") from error
    return context
