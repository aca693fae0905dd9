"""The heartbeat of a worker process: a thread that renews the leases of all rows in work and says what was done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from pleinair.krablet.claims import on_holders, renew_lease
from pleinair.krablet.shards import Shards
from pleinair.krablet.watching.work_log import WorkLog
from pleinair.krablet.workers.parts import Part, by_claim, joined
from pleinair.records.errors import DatabaseError

_FIRST_TOLD_SECONDS, _TOLD_SECONDS = 0.5, 5.0


class Heartbeat:
    """One for all slots, with connections of its own; it needs the interpreter lock now and then."""

    def __init__(
        self, shards: Shards, interval_seconds: float, log: WorkLog, held: Callable[[], Collection[Part]]
    ) -> None:
        """`held()` gives the rows in work; it is called from this thread."""
        self._shards = shards
        self._interval_seconds = interval_seconds
        self._log = log
        self._held = held
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pleinair-heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        renew_at, tell_at = self._interval_seconds, _FIRST_TOLD_SECONDS
        began = time.monotonic()
        # Postgres away now: the next beat tries again, and the claiming session reports it if it stays away.
        while not self._closing.wait(max(0.0, began + min(renew_at, tell_at) - time.monotonic())):
            if (now := time.monotonic() - began) >= renew_at:
                renew_at = now + self._interval_seconds
                self._renew()
            if now >= tell_at:
                tell_at = now + _TOLD_SECONDS
                with suppress(DatabaseError):
                    self._shards.catalog.run(self._log.write)
        with suppress(DatabaseError):
            self._shards.catalog.run(self._log.close)
        self._shards.close()

    def _renew(self) -> None:
        for parts in by_claim(self._held()):
            whole = joined(parts)
            with suppress(DatabaseError):
                on_holders(self._shards, whole.stage, whole.claim, renew_lease)

    def close(self) -> None:
        """Stop, after a last word to the work log."""
        self._closing.set()
        self._thread.join(timeout=15.0)
