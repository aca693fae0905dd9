"""A thread of a worker that looks after its connections: a dead one must not keep rows for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from pleinair.krablet.connections import Session

QUIET_SECONDS = 30.0
"""After so long without an answer the server is asked, over another connection, whether it is still at it."""


class LineWatch:
    """Checks sessions until it is closed; see `Session.check_line`."""

    def __init__(self, sessions: Callable[[], Iterable[Session]], quiet_seconds: float | None = None) -> None:
        """`sessions()` gives those in use now; it is called from this thread."""
        self._sessions = sessions
        self._quiet_seconds = QUIET_SECONDS if quiet_seconds is None else quiet_seconds
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pleinair-line-watch", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closing.wait(min(1.0, self._quiet_seconds)):
            for session in self._sessions():
                session.check_line(self._quiet_seconds)

    def close(self) -> None:
        """Stop; a check under way, which may take as long as a connection, is left to itself."""
        self._closing.set()
