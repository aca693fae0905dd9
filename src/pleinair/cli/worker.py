"""`pleinair krablet worker TABLE.STAGE=module:function ...`: worker processes from the command line."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pleinair.krablet import RunSummary, StageSpec


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb below `pleinair krablet`."""
    from pleinair.cli.krablet import add_database

    worker = verbs.add_parser("worker", help="do stages with functions of yours, until nothing is pending")
    worker.add_argument(
        "stages", nargs="+", metavar="TABLE.STAGE=MODULE:FUNCTION", help="what does which stage; looked for here first"
    )
    worker.add_argument("--processes", type=int, default=2, help="worker processes (default: %(default)s)")
    worker.add_argument("--slots", type=int, default=1, help="batches in work at once in each (default: %(default)s)")
    worker.add_argument("--batch", type=int, help="rows a batch (default: what each stage declares)")
    worker.add_argument("--memory-mb", type=float, help="replace a process that has more resident memory than this")
    worker.add_argument("--wait", action="store_true", help="stay when nothing is pending, until SIGTERM or Ctrl-C")
    add_database(worker)
    worker.set_defaults(run=_worker)


def _worker(args: argparse.Namespace) -> int:
    from pleinair import krablet
    from pleinair.cli.curate import show_workers
    from pleinair.cli.krablet import opened
    from pleinair.cli.progress import ProgressLine
    from pleinair.krablet.workers.sigterm import on_sigterm

    specs = [_spec(text, args.batch) for text in args.stages]
    sys.path.insert(0, os.getcwd())
    line, asked = ProgressLine("work"), list[bool]()
    with opened(args) as database, on_sigterm(lambda: asked.append(True)):
        done = krablet.run_workers(
            database,
            specs,
            processes=args.processes,
            slots=args.slots,
            memory_mb=args.memory_mb,
            idle="wait" if args.wait else "exit",
            stop=lambda: bool(asked),
            on_progress=lambda now: show_workers(line, now),
        )
    line.close()
    return _report(done)


def _spec(text: str, batch: int | None) -> StageSpec:
    from pleinair.krablet import StageSpec
    from pleinair.records.errors import ConfigError

    label, _, function = text.partition("=")
    table, _, stage = label.partition(".")
    if not (table and stage and ":" in function):
        raise ConfigError(f"{text!r} does not say what does which stage: write TABLE.STAGE=MODULE:FUNCTION")
    return StageSpec(table, stage, function, batch=batch)


def _report(done: RunSummary) -> int:
    """Print what became of each stage; exit code 1 when rows are stuck."""
    from pleinair.cli.krablet import print_table

    rows = [
        (stage, completed, done.failed[stage], len(done.stuck[stage])) for stage, completed in done.completed.items()
    ]
    print_table(("stage", "completed", "failed", "stuck"), rows)
    return 1 if any(done.stuck.values()) else 0
