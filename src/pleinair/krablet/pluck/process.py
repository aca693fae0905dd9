"""A worker process of pluck: `python -m pleinair.krablet.pluck.process FD`.

FD is a socket to the process that started it. It brings one line of JSON: where the shards are and which keys count, so
that neither is in the command line or the environment, which other processes can read. Its end-of-file says that the
other side is gone, however it died, and that this process must go too.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pleinair.krablet.connections import Session
from pleinair.krablet.pluck.admission import Ledger
from pleinair.krablet.pluck.jobs import Limits
from pleinair.krablet.pluck.processes import REFUSED, hide_memory
from pleinair.krablet.pluck.runner import Confinement
from pleinair.krablet.pluck.signing import parse_key
from pleinair.krablet.pluck.worker import Worker, WorkerSettings
from pleinair.krablet.workers.process import ORPHAN_GRACE_SECONDS
from pleinair.records.errors import PleinairError


def main(arguments: Sequence[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    hide_memory()
    link = socket.socket(fileno=int(arguments[0]))
    with link, link.makefile("r", encoding="utf-8") as lines:
        order = json.loads(lines.readline())
        threading.Thread(target=_end_with_starter, args=(link,), name="pleinair-lifeline", daemon=True).start()
        try:
            return work(order)
        except PleinairError as error:
            print(f"pluck worker: {error}", file=sys.stderr, flush=True)
            return 1


def work(order: Mapping[str, Any]) -> int:
    shards = {
        name: Session(dsn, patience_seconds=60.0, application="pleinair pluck") for name, dsn in order["shards"].items()
    }
    settings = WorkerSettings(
        keys=[parse_key(text, "the starter's order") for text in order["keys"]],
        job=order["job"],
        confinement=Confinement(**order["confinement"]),
        most=Limits(**order["most"]),
        lease_seconds=order["lease_seconds"],
        ledger=Ledger(None if order["ledger"] is None else Path(order["ledger"])),
    )
    try:
        return 0 if Worker(shards, settings).run() else REFUSED
    finally:
        for session in shards.values():
            session.close()


def _end_with_starter(link: socket.socket) -> None:
    while link.recv(1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(ORPHAN_GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
