"""`pleinair krablet key | pluck-worker`: the keys that sign jobs of pluck, and the workers that do them."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pleinair.cli.dsns import HOW, several

if TYPE_CHECKING:
    from pleinair.krablet.pluck.runner import Confinement

UNPRIVILEGED = "nobody"


def register(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs below `pleinair krablet`."""
    key = verbs.add_parser("key", help="make a key that signs jobs for workers on other machines")
    key.add_argument("file", type=Path, help="where to write it, readable by you alone")
    key.add_argument("--pair", action="store_true", help="an Ed25519 pair: FILE signs, workers get FILE.pub")
    key.set_defaults(run=_key)
    worker = verbs.add_parser("pluck-worker", help="do signed jobs of pluck until stopped")
    worker.add_argument(
        "--dsn", action="extend", type=several, required=True, help=f"a shard's connection string; repeat; {HOW}"
    )
    worker.add_argument(
        "--key-file", action="append", type=Path, required=True, help="do jobs signed with this key; repeat"
    )
    worker.add_argument("--processes", type=int, default=1, help="how many jobs' functions run at once (default: 1)")
    worker.add_argument("--child-user", help=f"run functions as this user (default for root: {UNPRIVILEGED})")
    worker.add_argument("--python", default=sys.executable, help="the Python that runs functions (%(default)s)")
    worker.add_argument("--env", action="append", default=[], metavar="NAME", help="pass this variable on to functions")
    worker.add_argument("--memory-gib", type=float, help="the most memory a job may ask for")
    worker.add_argument("--call-seconds", type=float, default=3600, help="the longest a call may take (%(default)s)")
    worker.set_defaults(run=_worker)


def _key(args: argparse.Namespace) -> int:
    from pleinair.krablet.pluck.signing import HMAC, PRIVATE, write_keys

    for path in write_keys(args.file, PRIVATE if args.pair else HMAC):
        print(path)
    return 0


def _worker(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from pleinair.krablet.pluck.jobs import GIB, NO_LIMITS
    from pleinair.krablet.pluck.processes import WorkerProcesses, hide_memory, worker_order
    from pleinair.krablet.pluck.signing import load_key
    from pleinair.records.errors import QueueError

    confinement = _confinement(args)
    confinement.check()
    hide_memory()
    memory = None if args.memory_gib is None else int(args.memory_gib * GIB)
    order = worker_order(
        {str(place): dsn for place, dsn in enumerate(args.dsn)},
        [load_key(path) for path in args.key_file],
        confinement=confinement,
        most=replace(NO_LIMITS, memory_bytes=memory, call_seconds=args.call_seconds),
        ledger=args.key_file[0].with_name(args.key_file[0].name + ".jobs"),
    )
    processes = WorkerProcesses(order, args.processes)
    print(f"pluck worker: {args.processes} processes wait for jobs; Ctrl-C ends them", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        processes.wait()
    except KeyboardInterrupt:
        print("pluck worker: giving batches back", file=sys.stderr, flush=True)
        return 0
    finally:
        processes.stop()
    raise QueueError("the worker processes died one after the other: see what they printed")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _confinement(args: argparse.Namespace) -> Confinement:
    from pleinair.krablet.pluck.runner import Confinement

    user = args.child_user or (UNPRIVILEGED if os.geteuid() == 0 else None)
    environment = {name: os.environ[name] for name in args.env if name in os.environ}
    return Confinement(user, args.python, environment, [entry for entry in sys.path if entry])
