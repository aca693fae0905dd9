"""The `pleinair` command: one module per noun, each registering its parsers; heavy imports happen inside the verbs."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence

from pleinair import __version__
from pleinair.records.errors import PleinairError

_FULL = (errno.ENOSPC, errno.EDQUOT)
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells expect."""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from pleinair.cli import (
        caption,
        cluster,
        convert,
        curate,
        detector,
        drops,
        duplicates,
        embed,
        entities,
        export,
        fetch,
        filters,
        ingest,
        krablet,
        mix,
        pick,
        run,
        sample,
        sql,
        tags,
        takedown,
        tower,
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
    for noun in (run, sample, *curating, export, convert, fetch, krablet):
        noun.register(verbs)
    sql.register_sql(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; our own errors become one sentence on standard error and exit code 1."""
    options = build_parser().parse_args(arguments)
    try:
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


if __name__ == "__main__":
    sys.exit(main())
