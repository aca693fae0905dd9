"""A worker process of `run_workers`: `python -m pleinair.krablet.workers.process FD`.

FD is a socket to the supervisor. It brings one line of JSON, what to do; it takes one line per settled claim; and its
end-of-file says that the supervisor is gone, however it died, and that this process must go too.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from pleinair.krablet.claims import Settled
from pleinair.krablet.connections import Session, not_allowed
from pleinair.krablet.moves import resume_moves
from pleinair.krablet.places import opener
from pleinair.krablet.shards import Shards
from pleinair.krablet.stages import Stage, StageSpec
from pleinair.krablet.tables import load_stage, load_table
from pleinair.krablet.workers.functions import Work
from pleinair.krablet.workers.loop import work
from pleinair.krablet.workers.memory import Ceiling, be_the_first_to_go
from pleinair.records.errors import PleinairError, QueueError

ORPHAN_GRACE_SECONDS = 5.0


def main(arguments: Sequence[str]) -> int:
    link = socket.socket(fileno=int(arguments[0]))
    # Ctrl-C reaches the whole foreground group; the supervisor decides when its workers stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    be_the_first_to_go()
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # an outage is ours to report, once, if it lasts
    with link, link.makefile("r", encoding="utf-8") as lines:
        job = json.loads(lines.readline())
        threading.Thread(target=_end_with_supervisor, args=(link,), name="pleinair-lifeline", daemon=True).start()
        try:
            run_job(job, link)
        except PleinairError as error:
            _tell(link, {"fatal": str(error)})
            return 1
        except psycopg.errors.InsufficientPrivilege as error:
            _tell(link, {"fatal": str(not_allowed(error, job["dsn"]))})
            return 1
    return 0


def run_job(job: Mapping[str, Any], link: socket.socket) -> None:
    """Load the functions, then work until told to stop."""
    sys.path.extend(entry for entry in job["path"] if entry not in sys.path)
    open_place = opener(
        job["dsn"],
        None if job["home"] is None else Path(job["home"]),
        attach=None,
        patience_seconds=job["patience_seconds"],
        application="pleinair worker",
        secrets=job["secrets"],
    )
    catalog = Session(job["dsn"], patience_seconds=job["patience_seconds"], application="pleinair worker")
    shards = Shards(catalog, open_place, resume_moves)
    specs = [StageSpec(**spec) for spec in job["stages"]]
    try:
        stages = [load_stage(load_table(shards, spec.table), spec.stage) for spec in specs]
    finally:
        shards.close()
    ceiling = None if job["memory_mb"] is None else Ceiling(job["memory_mb"], lambda: _tell(link, {"ready": True}))
    work(
        stages,
        {f"{spec.table}.{spec.stage}": load_function(spec) for spec in specs},
        slots=job["slots"],
        own_slots={f"{spec.table}.{spec.stage}": spec.slots for spec in specs if spec.slots is not None},
        stop=ceiling or (lambda: False),
        idle="wait",
        batches={f"{spec.table}.{spec.stage}": spec.batch for spec in specs if spec.batch is not None},
        on_settled=_Reports(link).report,
        patience_seconds=job["patience_seconds"],
    )
    if ceiling is not None and ceiling.reached:
        _tell(link, {"retired": True})


def load_function(spec: StageSpec) -> Work:
    """The function or actor a stage names, with its arguments bound. Raises QueueError if it cannot be imported."""
    module_name, _, name = spec.function.partition(":")
    try:
        function: Work = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise QueueError(
            f"the function {spec.function!r} of stage {spec.table}.{spec.stage} cannot be imported ({error}): "
            "give it as 'module:function' or 'module:Class'"
        ) from error
    return partial(function, **spec.arguments) if spec.arguments else function


class _Reports:
    """One line per settled claim, with the processor time of this process since the line before."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._told_cpu = time.process_time()

    def report(self, stage: Stage, settled: Settled) -> None:
        before, self._told_cpu = self._told_cpu, time.process_time()
        _tell(
            self._link,
            {
                "table": stage.table.name,
                "stage": stage.name,
                "completed": settled.completed,
                "failed": settled.failed,
                "cpu_seconds": self._told_cpu - before,
            },
        )


def _tell(link: socket.socket, message: Mapping[str, object]) -> None:
    try:
        link.sendall(json.dumps(message).encode() + b"\n")
    except (BrokenPipeError, ConnectionResetError):
        # The supervisor is gone; the lifeline thread ends this process.
        return


def _end_with_supervisor(link: socket.socket) -> None:
    while link.recv(1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
