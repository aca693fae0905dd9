"""Which slots a shard has, asked by many clients at once and read once for all of them.

    ask, ask, ask --> one reading begun after them --> answers

A client whose slot has moved asks every funnel it knows; the servers themselves say what they own, so no client needs the
catalog. Reading goes over a connection of its own: a flush that waits for a lock holds up no question.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from pleinair.krablet.connections import Connection, Session
from pleinair.krablet.queries import query
from pleinair.records.errors import DatabaseError

logger = logging.getLogger("pleinair.krablet.funnel.funnel")

Placement = tuple[bytes, dict[str, list[str]]]
"""The slots a server owns, a bit each, and the key and its type of every table."""
_PAUSE_SECONDS = 0.5


class PlacementDesk:
    """Answers questions for the placement, in one event loop."""

    def __init__(self, session: Session, heal: Callable[[], object]) -> None:
        """`heal` is called before every reading: it brings in slots whose mover is gone."""
        self._session = session
        self._heal = heal
        self._asking: list[Callable[[Placement], None]] = []
        self._reading: asyncio.Task[None] | None = None

    def ask(self, answer: Callable[[Placement], None]) -> None:
        """Call `answer` with a placement read after now."""
        self._asking.append(answer)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_for_all())

    async def _read_for_all(self) -> None:
        while self._asking:
            asking, self._asking = self._asking, []
            placement = await asyncio.to_thread(self._read)
            if placement is None:
                self._asking = asking + self._asking
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            for answer in asking:
                answer(placement)

    def _read(self) -> Placement | None:
        with suppress(DatabaseError):  # the catalog's server may be away
            self._heal()
        try:
            return self._session.run(_placement)
        except DatabaseError as outage:
            logger.warning("the funnel cannot say which slots are here: %s", outage)
            return None

    def close(self) -> None:
        """After the event loop has ended."""
        self._session.close()


def _placement(connection: Connection) -> Placement:
    [(owned,)] = connection.execute(query("shards", "owned_here")).fetchall()
    keys = connection.execute(query("funnel", "table_keys")).fetchall()
    return int(owned, 2).to_bytes(len(owned) // 8), {table: [key, type_] for table, key, type_ in keys}
