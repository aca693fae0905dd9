"""`pleinair krablet errors | stage pause|resume|limit | top | metrics`: seeing and steering a warehouse that works."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from pleinair.cli.krablet import add_database, opened, table_lines
from pleinair.cli.progress import duration

if TYPE_CHECKING:
    from pleinair.krablet import Database, Stage
    from pleinair.krablet.watching.gauges import Watched
    from pleinair.krablet.watching.shard_status import ShardStatus

CLEAR = "\x1b[H\x1b[2J"


def register(verbs: Any) -> None:
    """Add `errors`, `stage`, `top` and `metrics` to the verbs of `krablet`."""
    errors = verbs.add_parser("errors", help="why rows fail, grouped by exception, with a sample row each")
    add_database(errors)
    errors.set_defaults(run=_errors)
    stage = verbs.add_parser("stage", help="pause, resume or limit a stage while workers run")
    actions = stage.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, function, told in (
        ("pause", _pause, "let no worker claim its rows"),
        ("resume", _resume, "undo pause"),
        ("limit", _limit, "claim at most so many rows a second, over all workers"),
    ):
        action = actions.add_parser(name, help=told)
        action.add_argument("stage", help="table.stage, as `status` prints it")
        if function is _limit:
            action.add_argument("rows_per_second", type=float, help="0 takes the limit off")
        add_database(action)
        action.set_defaults(run=function)
    top = verbs.add_parser("top", help="stages, shards and workers, live")
    top.add_argument("--once", action="store_true", help="print once and end")
    top.add_argument("--interval", type=float, default=2.0, help="seconds between looks (default: %(default)s)")
    add_database(top)
    top.set_defaults(run=_top)
    metrics = verbs.add_parser("metrics", help="serve /metrics for Prometheus")
    metrics.add_argument("--listen", default="127.0.0.1:9464", help="HOST:PORT (default: %(default)s)")
    add_database(metrics)
    metrics.set_defaults(run=_metrics)


def _errors(args: argparse.Namespace) -> int:
    with opened(args) as database:
        found = [(stage.label, group) for stage in database.declared_stages() for group in stage.errors()]
    rows = [(label, g.kind, g.rows, g.most_attempts, g.sample_key, g.sample_error) for label, g in found]
    print("\n".join(table_lines(("stage", "exception", "rows", "attempts", "sample key", "sample error"), rows)))
    return 0


@contextmanager
def _named_stage(args: argparse.Namespace) -> Iterator[Stage]:
    from pleinair.records.errors import QueueError

    with opened(args) as database:
        stages = {stage.label: stage for stage in database.declared_stages()}
        if args.stage not in stages:
            raise QueueError(f"no stage {args.stage!r} is declared: name one of {', '.join(stages) or 'none'}")
        yield stages[args.stage]


def _pause(args: argparse.Namespace) -> int:
    with _named_stage(args) as stage:
        stage.pause()
    print(f"{args.stage} is paused; rows in work are finished. Go on with: pleinair krablet stage resume {args.stage}")
    return 0


def _resume(args: argparse.Namespace) -> int:
    with _named_stage(args) as stage:
        stage.resume()
    print(f"{args.stage} goes on")
    return 0


def _limit(args: argparse.Namespace) -> int:
    with _named_stage(args) as stage:
        stage.limit(args.rows_per_second or None)
    told = f"claims at most {args.rows_per_second:g} rows a second" if args.rows_per_second else "has no limit"
    print(f"{args.stage} {told}")
    return 0


def _top(args: argparse.Namespace) -> int:
    from pleinair.krablet.watching.gauges import Watcher
    from pleinair.krablet.watching.shard_status import shard_statuses

    with opened(args) as database, closing(Watcher(database)) as watcher:
        while True:
            page = "\n".join(top_lines(database, watcher.look(), shard_statuses(database.shards, lambda s: s.where)))
            print(page if args.once or not sys.stdout.isatty() else CLEAR + page, flush=True)
            if args.once:
                return 0
            time.sleep(args.interval)


def top_lines(database: Database, watched: Watched, shards: list[ShardStatus]) -> list[str]:
    """One screen: stages with what they have to do and how fast it goes, servers, workers."""
    stages = []
    for stage in database.declared_stages():
        gauges = [g for g in watched.gauges if (g.table, g.stage) == (stage.table.name, stage.name)]
        work, eta = watched.work.get(stage.label), watched.eta_seconds(stage.label)
        counts = [
            sum(getattr(g, name) for g in gauges) for name in ("claimable", "leased", "waiting", "expired", "stuck")
        ]
        control = stage.control()
        note = "paused" if control.paused else f"<= {control.rows_per_second:g}/s" if control.rows_per_second else ""
        rates = (f"{work.completed_per_second:.1f}", f"{work.failed_per_second:.1f}") if work else ("0.0", "0.0")
        workers = sum(stage.label in worker.stages for worker in watched.workers)
        stages.append((stage.label, *counts, *rates, "" if eta is None else duration(eta), workers, note))
    head = ("stage", "claimable", "leased", "waiting", "expired", "stuck", "rows/s", "failed/s", "ETA", "workers", "")
    servers = [
        (s.number, s.place, s.version, f"{s.size_bytes / 2**20:.0f} MiB", s.connections, s.slots, s.error)
        for s in shards
    ]
    workers_rows = [
        (w.host, w.pid, duration(w.age_seconds), f"{w.seen_seconds:.0f} s ago", ", ".join(w.stages))
        for w in watched.workers
    ]
    return [
        *table_lines(head, stages),
        "",
        *table_lines(("shard", "server", "version", "size", "connections", "slots", ""), servers),
        "",
        *table_lines(("host", "pid", "up", "seen", "stages"), workers_rows),
    ]


def _metrics(args: argparse.Namespace) -> int:
    from pleinair.krablet.watching.gauges import Watcher
    from pleinair.krablet.watching.prometheus import metrics_served, metrics_text
    from pleinair.krablet.watching.shard_status import shard_statuses

    with opened(args) as database, closing(Watcher(database)) as watcher:

        def text() -> str:
            return metrics_text(watcher.look(), shard_statuses(database.shards, lambda shard: shard.where))

        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        with metrics_served(args.listen, text) as url:
            print(f"metrics: {url}", flush=True)
            stop.wait()
    return 0
