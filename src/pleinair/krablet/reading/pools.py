"""Read-only connections to every shard, kept open between reads and bounded in number.

    ReadPools -- admits at most `size` reads at once, each with at most one connection per shard
      `- ShardPool  one shard: idle connections, newest first

Bounding the reads instead of the connections of each shard keeps two reads from waiting for each other's connections.
A connection begins every transaction READ ONLY, is wiped (DISCARD ALL) between reads, and is dropped when a read did
not come to its end. A shard that went away and came back is used again: its dead connections are seen before use.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

import psycopg
from psycopg import conninfo

from pleinair.krablet.closing import Closing
from pleinair.krablet.connections import Connection, UnreachableError, describe, open_connection
from pleinair.krablet.reading.limits import Run
from pleinair.krablet.reading.requests import ReadError
from pleinair.krablet.shards import TRANSIT_SECONDS
from pleinair.records.errors import ConfigError, DatabaseError

CANCEL_SECONDS = 2.0
# Settings of the connection itself, so that DISCARD ALL returns to them.
_OPTIONS = "-c default_transaction_read_only=on -c TimeZone=UTC -c idle_in_transaction_session_timeout=60000"


class Shard(Protocol):
    """What a pool needs to know of a shard."""

    @property
    def name(self) -> str: ...

    @property
    def dsn(self) -> str: ...


class ShardPool:
    """The open connections to one shard; any thread may call."""

    def __init__(self, name: str, dsn: str, size: int) -> None:
        self.name = name
        self.dsn = dsn
        self._size = size
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._in_use = 0

    def __repr__(self) -> str:
        return f"ShardPool({self.name!r}, {describe(self.dsn)})"

    @property
    def in_use(self) -> int:
        return self._in_use

    @property
    def idle(self) -> int:
        return len(self._idle)

    def take(self, *, fresh: bool = False) -> tuple[Connection, bool]:
        """A connection, and whether it has just been opened. Raises UnreachableError or DatabaseError naming the shard."""
        with self._lock:
            self._in_use += 1
        try:
            if fresh:
                self.close()
            kept = self._kept()
            return (kept, False) if kept is not None else (self._opened(), True)
        except BaseException:
            self._left()
            raise

    def _kept(self) -> Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if not _speaks(connection):
                return connection
            connection.close()

    def _opened(self) -> Connection:
        dsn = conninfo.make_conninfo(self.dsn, client_encoding="UTF8", options=_options(self.dsn))
        try:
            return open_connection(dsn, "pleinair read")
        except UnreachableError as error:
            raise UnreachableError(f"shard {self.name}: {error}") from error
        except DatabaseError as error:
            raise DatabaseError(f"shard {self.name}: {error}") from error

    def give_back(self, connection: Connection) -> None:
        """Keep the connection of a read that came to its end; what the read left in the session is wiped."""
        self._left()
        try:
            connection.execute("DISCARD ALL")
        except psycopg.Error:
            connection.close()
            return
        with self._lock:
            keep = len(self._idle) < self._size
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close()

    def abandon(self, connection: Connection) -> None:
        """End a read that did not come to its end: on the server first, which else notices only at its next row."""
        self._left()
        with suppress(psycopg.Error):
            connection.cancel_safe(timeout=CANCEL_SECONDS)
        connection.close()

    def _left(self) -> None:
        with self._lock:
            self._in_use -= 1

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def _options(dsn: str) -> str:
    given = conninfo.conninfo_to_dict(dsn).get("options")
    return f"{given} {_OPTIONS}" if given else _OPTIONS


def _speaks(connection: Connection) -> bool:
    """True when an idle connection has something to say, which is that it is being closed."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class ReadPools(Closing):
    """The pools of all shards; a context manager that closes them.

    `size` bounds the reads that run at once, and so the connections to each shard (while a read is being planned there
    may be one more). A read that finds no place waits `wait_seconds`.
    """

    def __init__(
        self,
        shards: Sequence[Shard | str],
        *,
        size: int = 8,
        wait_seconds: float = 30.0,
        whole: bool = False,
        moving_seconds: float = TRANSIT_SECONDS,
    ) -> None:
        """`whole` says that a single shard must own every slot, too; several of a warehouse always must together.

        `moving_seconds` is how long a read waits for slots that are between two shards.
        """
        if not shards:
            raise ConfigError("no shard is given: give the DSN of at least one Postgres")
        if size < 1:
            raise ConfigError(f"the pool size is {size}: give at least 1 connection to each shard")
        self.size = size
        self.wait_seconds = wait_seconds
        self.checked = whole or len(shards) > 1
        self.moving_seconds = moving_seconds
        self.shards = tuple(
            ShardPool(str(place), shard, size) if isinstance(shard, str) else ShardPool(shard.name, shard.dsn, size)
            for place, shard in enumerate(shards)
        )
        self._places = threading.Semaphore(size)

    def close(self) -> None:
        for pool in self.shards:
            pool.close()

    @contextmanager
    def admitted(self, run: Run) -> Iterator[None]:
        """One of the `size` places for a read. Raises ReadError when none comes free."""
        left = run.seconds_left
        wait = self.wait_seconds if left is None else max(0.0, min(left, self.wait_seconds))
        if not self._places.acquire(timeout=wait):
            raise ReadError(
                f"{self.size} reads are running and none ended in {wait:.0f} s: try again later, or raise the pool size"
            )
        try:
            yield
        finally:
            self._places.release()
