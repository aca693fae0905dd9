"""Clients of funnel services: upserts that are numbered, sent in batches, sent again until they are answered.

    with FunnelClient("127.0.0.1:7433", token=token) as client:
        answers = [client.upsert("stats", {"name": name, "hits": 1}) for name in names]
    # every mutation is now durable, or its answer holds a MutationError

`FunnelClient` is for threads and answers with `concurrent.futures.Future`; `AsyncFunnelClient` is for one event loop.
A client that is given a `name` can be killed and begun again under that name: `applied()` says how many of its mutations
are settled, in order, and new ones are numbered from there; or `first=1` repeats them all, and those that were applied
are answered and not applied again. One program at a time may use a name: the next one ends the one before it.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

from pleinair.krablet.addresses import Address, parse_address
from pleinair.krablet.event_loops import new_event_loop
from pleinair.krablet.funnel import wire
from pleinair.krablet.funnel.errors import MutationError
from pleinair.krablet.funnel.funnel import MAX_OUTSTANDING
from pleinair.krablet.funnel.link import Answer, Link, LinkSettings, Mutation
from pleinair.krablet.funnel.routes import Marks, Routes
from pleinair.records.errors import ConfigError, QueueError

Addresses = str | Sequence[str | Sequence[str]]
"""One funnel; or one for every shard; or for every shard the several places where its funnel may be found."""


Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Who a client is and how it behaves."""

    name: str | None = None
    """A name that outlives the program; None: this program only."""
    first: int | None = None
    """The number of the first mutation; None: the one after the last that was applied in this name."""
    token: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None
    window: int = 8192
    """Mutations outstanding before `upsert` blocks."""
    patience_seconds: float = 60.0
    """How long a funnel may answer nothing before what is outstanding fails."""

    def __post_init__(self) -> None:
        if not 0 < self.window <= MAX_OUTSTANDING:
            raise ConfigError(f"window is {self.window}: give 1 to {MAX_OUTSTANDING}")
        if self.first is not None and self.first < 1:
            raise ConfigError(f"first is {self.first}: mutations are numbered from 1")

    def link(self) -> LinkSettings:
        incarnation = uuid.uuid4().hex
        return LinkSettings(
            name=self.name or f"client-{incarnation}",
            incarnation=incarnation,
            token=self.token,
            tls=self.tls,
            first=self.first,
            patience_seconds=self.patience_seconds,
        )


class _Packer:
    """Rows become mutations."""

    def __init__(self) -> None:
        self._shapes: dict[tuple[str, tuple[str, ...]], bytes] = {}

    def mutation(self, table: str, row: Mapping[str, Any], answer: Answer, slot: int) -> Mutation:
        columns, values = tuple(row), list(row.values())
        packed = _packed_row(table, columns, values)
        shape = self._shapes.get((table, columns))
        if shape is None:
            shape = self._shapes[table, columns] = wire.packed_shape(table, columns)
        return Mutation(shape, len(columns), packed, answer, slot)


def _packed_row(table: str, columns: tuple[str, ...], values: list[Any]) -> bytes:
    if not columns:
        raise QueueError(f"a row for table {table} is empty: give at least its key")
    try:
        packed = wire.packed_row(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise QueueError(f"a row for table {table} cannot be sent: {error} (in {values!r:.120})") from error
    if len(packed) > wire.MAX_FRAME_BYTES // 2:
        raise QueueError(
            f"a row for table {table} has {len(packed)} bytes: at most {wire.MAX_FRAME_BYTES // 2}; "
            "keep bulky values in files and store their paths"
        )
    return packed


def _parsed(addresses: Addresses, settings: ClientSettings) -> list[list[Address]]:
    if isinstance(addresses, str):
        return [[parse_address(addresses)]]
    if not addresses:
        raise ConfigError("no funnel address is given: give HOST:PORT or unix:/path")
    if len(addresses) > 1 and settings.first is not None:
        raise ConfigError(
            f"first is {settings.first} and {len(addresses)} funnels are given: mutations are numbered for each, and "
            "which went where depends on where slots were; leave it out"
        )
    return [[parse_address(text) for text in ([place] if isinstance(place, str) else place)] for place in addresses]


class FunnelClient:
    """A client for threads. Any thread may call it; it connects by itself, and again whenever it must."""

    def __init__(self, addresses: Addresses, settings: ClientSettings | None = None, **given: Any) -> None:
        """`given` are fields of `ClientSettings`, for short."""
        self.settings = settings or ClientSettings(**given)
        self._addresses = _parsed(addresses, self.settings)
        self._packer = _Packer()
        self._changed = threading.Condition()
        self._outstanding = 0
        self._refused: list[str] = []
        self._loop = new_event_loop()
        self._routes: Routes
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[started], name="pleinair-funnel-client", daemon=True)
        self._thread.start()
        started.wait()

    def __enter__(self) -> FunnelClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._thread.is_alive():
                self.flush()
        finally:
            self.close()

    def upsert(self, table: str, row: Mapping[str, Any]) -> Future[None]:
        """Merge a row into a table; blocks while `window` are outstanding. Done when durable.

        The future raises MutationError if the row was refused, FunnelError if the funnel was lost. Raises QueueError
        for a row that cannot be sent. Callbacks of the future must not block.
        """
        if not self._routes.knows(table):
            self._in_loop(self._routes.learn(table))
        future: Future[None] = Future()
        mutation = self._packer.mutation(table, row, future, self._routes.slot(table, row))
        with self._changed:
            while self._outstanding >= self.settings.window:
                self._changed.wait()
            link = self._routes.put(mutation)
            self._outstanding += 1
        future.add_done_callback(self._note_refusal)
        if link is not None and link.asleep():
            self._loop.call_soon_threadsafe(link.wake)
        return future

    def _note_refusal(self, future: Future[None]) -> None:
        if not future.cancelled() and isinstance(error := future.exception(), MutationError):
            self._refused.append(str(error))

    def flush(self) -> None:
        """Wait until all that was submitted is answered. Raises MutationError if some was refused since the last flush."""
        with self._changed:
            marks: Marks | None = self._routes.marks()
            while marks and (marks := self._routes.unanswered(marks)):
                self._changed.wait()
        refused, self._refused = self._refused, []
        if refused:
            raise MutationError(f"{len(refused)} mutations were refused, the first: {refused[0]}")

    def applied(self, shard: int = 0) -> int:
        """How many mutations of this name the shard had settled when this client began. Raises FunnelError."""
        return self._in_loop(self._routes.links[shard].applied())

    def stats(self, shard: int = 0) -> dict[str, Any]:
        """What the funnel of a shard counts. Raises FunnelError."""
        return self._in_loop(_statistics(self._routes.links[shard]))

    def _in_loop(self, answer: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(answer, self._loop).result()

    def close(self) -> None:
        """Leave at once; what is outstanding fails. `flush` first, or use the client as a context manager."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        tasks = self._loop.run_until_complete(self._begin())
        self._loop.call_soon(started.set)
        try:
            self._loop.run_forever()
        finally:
            self._routes.close()
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    async def _begin(self) -> list[asyncio.Task[None]]:
        self._routes = Routes(self._addresses, self.settings.link(), self._changed, self._settled)
        return [asyncio.create_task(running) for running in self._routes.running()]

    def _settled(self, count: int) -> None:
        with self._changed:
            self._outstanding -= count
            self._changed.notify_all()


class AsyncFunnelClient:
    """A client for one event loop: `async with AsyncFunnelClient(...) as client: await client.upsert(...)`."""

    def __init__(self, addresses: Addresses, settings: ClientSettings | None = None, **given: Any) -> None:
        self.settings = settings or ClientSettings(**given)
        self._addresses = _parsed(addresses, self.settings)
        self._packer = _Packer()
        self._routes: Routes
        self._tasks: list[asyncio.Task[None]] = []
        self._outstanding = 0
        self._changed = asyncio.Event()

    async def __aenter__(self) -> AsyncFunnelClient:
        self._routes = Routes(self._addresses, self.settings.link(), nullcontext(), self._settled)
        self._tasks = [asyncio.create_task(running) for running in self._routes.running()]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self.flush()
        finally:
            self._routes.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def upsert(self, table: str, row: Mapping[str, Any]) -> None:
        """Merge a row into a table; returns when durable. Raises MutationError, FunnelError or QueueError."""
        await (await self.submit(table, row))

    async def submit(self, table: str, row: Mapping[str, Any]) -> asyncio.Future[None]:
        """Send a row and return its answer to come; waits while `window` are outstanding."""
        if not self._routes.knows(table):
            await self._routes.learn(table)
        while self._outstanding >= self.settings.window:
            self._changed.clear()
            await self._changed.wait()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        link = self._routes.put(self._packer.mutation(table, row, future, self._routes.slot(table, row)))
        self._outstanding += 1
        if link is not None and link.asleep():
            loop.call_soon(link.wake)
        return future

    async def flush(self) -> None:
        """Wait until all that was submitted is answered; refusals are in their futures."""
        marks: Marks | None = self._routes.marks()
        while marks and (marks := self._routes.unanswered(marks)):
            self._changed.clear()
            await self._changed.wait()

    async def applied(self, shard: int = 0) -> int:
        """As `FunnelClient.applied`."""
        return await self._routes.links[shard].applied()

    async def stats(self, shard: int = 0) -> dict[str, Any]:
        """As `FunnelClient.stats`."""
        return await _statistics(self._routes.links[shard])

    def _settled(self, count: int) -> None:
        self._outstanding -= count
        self._changed.set()


async def _statistics(link: Link) -> dict[str, Any]:
    await link.applied()
    counters: dict[str, Any] = await link.ask(wire.STATS)
    return counters
