"""The `pleinair` command: one module per noun, each registering its parsers; heavy imports happen inside the verbs."""

from __future__ import annotations

import argparse
import errno
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from pleinair import __version__
from pleinair.garbage import look_seldom
from pleinair.records.errors import PleinairError

_FULL = (errno.ENOSPC, errno.EDQUOT)
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells expect."""
_NOISY = ("torchao", "torch.utils._pytree")
"""They warn, when transformers looks at torchao, of kernels for other machines and of deprecations of their own."""
TERMINATED = 143
"""Exit code after SIGTERM, as shells expect."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from pleinair.cli import (
        ablate,
        caption,
        cluster,
        convert,
        curate,
        detector,
        domains,
        drops,
        duplicates,
        embed,
        entities,
        export,
        fetch,
        filters,
        ingest,
        krablet,
        merge,
        mix,
        orders,
        pairs,
        pick,
        posttrain,
        rewards,
        run,
        sample,
        sides,
        sql,
        tags,
        takedown,
        tower,
        train,
    )

    parser = argparse.ArgumentParser(
        prog="pleinair",
        description="The open system behind a Krea-2-class text-to-image model: warehouse, curation, training, sampling.",
        epilog="Start with 'pleinair run demo' (or 'make demo').",
    )
    parser.add_argument("--version", action="version", version=f"pleinair {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    looking = (ingest, curate, filters, drops, caption, embed, detector, cluster, duplicates, tags, tower, entities)
    curating = (*looking, takedown, pick, mix)
    training = (train, posttrain, pairs, ablate, rewards, convert, export, merge, domains)
    for noun in (run, *training, sample, orders, sides, *curating, fetch, krablet):
        noun.register(verbs)
    sql.register_sql(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; our own errors become one sentence on standard error and exit code 1."""
    look_seldom()
    options = build_parser().parse_args(arguments)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with _closing_on_sigterm():
            return int(options.run(options))
    except PleinairError as refused:
        print(f"pleinair: {refused}", file=sys.stderr)
        return 1
    except OSError as refused:
        if refused.errno not in _FULL:
            raise
        print(f"pleinair: the disk is full: {refused}; free space, and the same command goes on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npleinair: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def _closing_on_sigterm() -> Iterator[None]:
    """End by way of every `finally`, as after Ctrl-C: else workers and the embedded Postgres outlive the command.

    A second SIGTERM ends it at once, as it would have without this. Verbs may set handlers of their own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
