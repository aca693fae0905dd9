"""The funnel on the network: one process per shard, any number of clients.

    accept --TLS--> HELLO: token --> register --> MUTATE, MUTATE ... --> Funnel.offer
                                                    | full: reading stops, so TCP holds the sender back
    answers <-- one wake-up per flush <-- flusher thread

SIGTERM: reading stops, what has been accepted is settled and answered, then the process leaves; clients send the rest to
whoever listens next. A service that dies anywhere loses nothing that was answered.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import signal
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from pleinair.krablet.addresses import Address, parse_address
from pleinair.krablet.connections import Session
from pleinair.krablet.event_loops import run_event_loop
from pleinair.krablet.funnel import wire
from pleinair.krablet.funnel.batch import Run
from pleinair.krablet.funnel.clients import ClientState
from pleinair.krablet.funnel.errors import FunnelError, ProtocolError
from pleinair.krablet.funnel.funnel import Funnel, FunnelSettings
from pleinair.krablet.funnel.placement import PlacementDesk
from pleinair.krablet.watching.prometheus import metrics_served
from pleinair.krablet.watching.services import funnel_text
from pleinair.records.errors import ConfigError, DatabaseError

logger = logging.getLogger("pleinair.krablet.funnel.funnel")

HELLO_SECONDS = 10.0
_BACKLOG = 1024
_REASSURANCE_SECONDS = 2.0
_UNREAD = "a client that does not read its answers"


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Where a funnel service listens and whom it lets in."""

    listen: str
    """`HOST:PORT` or `unix:/path`."""
    token: str | None = field(default=None, repr=False)
    """What every client must show; only a Unix socket may do without."""
    tls: ssl.SSLContext | None = None
    """Required away from this machine, unless `plaintext` is set."""
    plaintext: bool = False
    """Let tokens and rows travel unencrypted, for a network that is private."""
    metrics: str | None = None
    """`HOST:PORT` where /metrics is served to Prometheus."""
    drain_seconds: float = 30.0
    """How long SIGTERM waits for Postgres before it leaves the rest unanswered."""

    def __post_init__(self) -> None:
        address = parse_address(self.listen)
        if not address.is_unix and not self.token:
            raise ConfigError(f"listen is {self.listen!r} and there is no token: give one, or listen on unix:/path")
        if not (address.is_local or self.tls or self.plaintext):
            raise ConfigError(
                f"listen is {self.listen!r}, reachable from other machines, without TLS: give a certificate and key, "
                "or set plaintext if that network is private"
            )


def serve(
    database: Session | str,
    settings: ServiceSettings,
    funnel_settings: FunnelSettings | None = None,
    on_ready: Callable[[str], None] = lambda address: None,
    heal: Callable[[], object] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT. `on_ready` is given the address, with the port that was chosen for port 0.

    `heal` is called when a client looks for a slot: it brings in those whose mover is gone.
    Raises DatabaseError if Postgres cannot be reached at first or refuses the funnel itself.
    """
    sized = funnel_settings or FunnelSettings()
    if sized.buffer_mutations < wire.MAX_FRAME_MUTATIONS or sized.buffer_bytes < wire.MAX_FRAME_BYTES:
        raise ConfigError(
            f"the buffer holds {sized.buffer_mutations} mutations and {sized.buffer_bytes} bytes, less than one frame: "
            f"give at least {wire.MAX_FRAME_MUTATIONS} and {wire.MAX_FRAME_BYTES}"
        )
    funnel = Funnel(database, sized)
    desk = PlacementDesk(Session(database) if isinstance(database, str) else database.fresh(5.0), heal)
    try:
        with metrics_served(settings.metrics, lambda: funnel_text(funnel.stats().as_dict())) as url:
            if url is not None:
                logger.info("metrics: %s", url)
            run_event_loop(_Service(funnel, settings, desk).run(on_ready))
    finally:
        drained = funnel.close(0)
        desk.close()
    if funnel.failure is not None:
        raise DatabaseError(f"the funnel ended: {funnel.failure}") from funnel.failure
    if not drained:
        logger.warning("left without settling everything; clients will send it again")


class _Service:
    def __init__(self, funnel: Funnel, settings: ServiceSettings, desk: PlacementDesk) -> None:
        self.funnel = funnel
        self.desk = desk
        self.token = (settings.token or "").encode()
        self.connections: set[_Connection] = set()
        self.waiting: deque[_Connection] = deque()
        self._settings = settings
        self._outbox: deque[tuple[_Connection, int, Mapping[int, str]]] = deque()

    async def run(self, on_ready: Callable[[str], None]) -> None:
        self.loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self.funnel.on_room = partial(self._from_thread, self._resume)
        self.funnel.on_end = partial(self._from_thread, ended.set)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, ended.set)
        if self.funnel.failure is not None:
            return
        server = await self._listen()
        on_ready(self._address(server))
        reassuring = asyncio.create_task(self._reassure())
        await ended.wait()
        reassuring.cancel()
        server.close()
        await self._drain()

    def _from_thread(self, action: Callable[[], object]) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(action)

    async def _listen(self) -> asyncio.Server:
        address = parse_address(self._settings.listen)
        make, tls = partial(_Connection, self), self._settings.tls
        try:
            if address.is_unix:
                return await self.loop.create_unix_server(make, address.path, ssl=tls, backlog=_BACKLOG)
            return await self.loop.create_server(make, address.host, address.port, ssl=tls, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(f"cannot listen on {self._settings.listen}: {error}; choose another address") from error

    def _address(self, server: asyncio.Server) -> str:
        address = parse_address(self._settings.listen)
        if address.is_unix:
            return str(address)
        return str(Address(host=address.host, port=server.sockets[0].getsockname()[1]))

    async def _drain(self) -> None:
        logger.info("leaving: %d mutations to settle", self.funnel.stats().buffered)
        for connection in self.connections:
            connection.stop_reading()
        await asyncio.to_thread(self.funnel.close, self._settings.drain_seconds)
        self.deliver()
        for connection in list(self.connections):
            connection.close()
        # Let the transports write what is left; a client that reads nothing is not waited for.
        await asyncio.sleep(0.1)

    async def _reassure(self) -> None:
        """Tell clients that are held back that this funnel lives: nobody reads their questions."""
        while True:
            await asyncio.sleep(_REASSURANCE_SECONDS)
            for connection in self.connections:
                connection.reassure()

    def _resume(self) -> None:
        """There is room: let those who wait go on, first come first served."""
        for _ in range(len(self.waiting)):
            self.waiting.popleft().retry()

    def post(self, connection: _Connection, through: int, failures: Mapping[int, str]) -> None:
        """Called by the flusher: many answers, one wake-up."""
        wake = not self._outbox
        self._outbox.append((connection, through, failures))
        if wake:
            self._from_thread(self.deliver)

    def deliver(self) -> None:
        while self._outbox:
            connection, through, failures = self._outbox.popleft()
            connection.write(wire.answer(through, failures))


class _Connection(asyncio.Protocol):
    """One client's socket; also the sink of its answers."""

    def __init__(self, service: _Service) -> None:
        self._service = service
        self._frames = wire.Frames(wire.MAX_HELLO_BYTES)
        self._client: ClientState | None = None
        self._authenticated = False
        self._parked: tuple[int, list[Run], int] | None = None
        self._transport: asyncio.Transport | None = None
        self._reasons_to_pause: set[str] = set()

    # The event loop's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._service.connections.add(self)
        self._deadline = self._service.loop.call_later(HELLO_SECONDS, self._check_authenticated)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._deadline.cancel()
        self._service.connections.discard(self)
        if self._client is not None:
            self._service.funnel.detach(self._client, self)

    def data_received(self, data: bytes) -> None:
        self._frames.feed(data)
        self._handle_frames()

    def pause_writing(self) -> None:
        self._pause(_UNREAD)

    def resume_writing(self) -> None:
        self._unpause(_UNREAD)

    def _check_authenticated(self) -> None:
        if not self._authenticated:
            self._refuse("no greeting came in time", for_good=False)

    def _handle_frames(self) -> None:
        try:
            while not self._reasons_to_pause and self._transport is not None:
                found = self._frames.next()
                if found is None:
                    return
                self._handle(*found)
        except FunnelError as error:
            self._refuse(str(error), for_good=isinstance(error, ProtocolError))

    def _handle(self, message: list[Any], num_bytes: int) -> None:
        kind = message[0]
        if not self._authenticated:
            self._greet(message)
        elif kind == wire.MUTATE and self._client is not None and len(message) == 4:
            self._mutate(self._client, message, num_bytes)
        elif kind == wire.PING:
            self.write(wire.frame([wire.PONG]))
        elif kind == wire.SLOTS:
            self._service.desk.ask(lambda placement: self.write(wire.frame([wire.SLOTS, *placement])))
        elif kind == wire.STATS:
            self.write(wire.frame([wire.STATS, self._service.funnel.stats().as_dict()]))
        else:
            raise ProtocolError(f"a frame of kind {kind} is not expected here: use this package's client")

    def _greet(self, message: list[Any]) -> None:
        if len(message) != 6 or message[0] != wire.HELLO or message[1] != wire.VERSION:
            raise ProtocolError(f"this funnel speaks protocol {wire.VERSION}: use the client of the same version")
        _, _, token, name, incarnation, begins = message
        if not isinstance(token, str) or not hmac.compare_digest(token.encode(), self._service.token):
            logger.warning("refused a client with a wrong token")
            raise ProtocolError("the token is wrong: give the token this funnel was started with")
        self._authenticated = True
        self._deadline.cancel()
        self._frames.limit = wire.MAX_FRAME_BYTES
        if name is None:  # a visitor, who may ask for the statistics
            self.write(wire.frame([wire.WELCOME, 0, []]))
        else:
            self._register(str(name), str(incarnation), bool(begins))

    def _register(self, name: str, incarnation: str, begins: bool) -> None:
        self._pause("registration")
        try:
            registered = self._service.funnel.register(name, incarnation, begins, self)
        except ConfigError as error:
            raise ProtocolError(str(error)) from error
        tell = self._service._from_thread
        registered.add_done_callback(lambda done: tell(partial(self._registered, done)))

    def _registered(self, done: Future[ClientState]) -> None:
        if (error := done.exception()) is not None:
            self._refuse(str(error), for_good=self._service.funnel.failure is None)
            return
        self._client = done.result()
        if self._transport is None:
            self._service.funnel.detach(self._client, self)
            return
        self.write(wire.frame([wire.WELCOME, self._client.applied, list(self._client.failures.items())]))
        self._unpause("registration")

    def _mutate(self, client: ClientState, message: list[Any], num_bytes: int) -> None:
        _, confirmed, first, raw = message
        if not isinstance(confirmed, int):
            raise ProtocolError("a MUTATE frame has no confirmed number: use this package's client")
        now = time.monotonic()
        runs = [
            Run(client, number, table, columns, values, now)
            for number, table, columns, values in wire.checked_runs(first, raw)
        ]
        if not self._service.funnel.offer(client, confirmed, runs, num_bytes):
            self._parked = confirmed, runs, num_bytes
            self._pause("a full buffer")
            self._service.waiting.append(self)

    def retry(self) -> None:
        """Offer again what did not fit."""
        if self._parked is None or self._client is None or self._transport is None:
            return
        try:
            if not self._service.funnel.offer(self._client, *self._parked):
                self._service.waiting.append(self)
                return
        except FunnelError as error:
            self._refuse(str(error), for_good=False)
            return
        self._parked = None
        self._unpause("a full buffer")

    def _pause(self, reason: str) -> None:
        if not self._reasons_to_pause and self._transport is not None:
            self._transport.pause_reading()
        self._reasons_to_pause.add(reason)

    def _unpause(self, reason: str) -> None:
        self._reasons_to_pause.discard(reason)
        if self._reasons_to_pause or self._transport is None:
            return
        self._transport.resume_reading()
        self._handle_frames()

    def reassure(self) -> None:
        if self._authenticated and self._reasons_to_pause and _UNREAD not in self._reasons_to_pause:
            self.write(wire.frame([wire.PONG]))

    def stop_reading(self) -> None:
        self._pause("leaving")

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _refuse(self, reason: str, *, for_good: bool) -> None:
        self.write(wire.frame([wire.REFUSE, reason, for_good]))
        self.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # The flusher's side: called in its thread.

    def answered(self, through: int, failures: Mapping[int, str]) -> None:
        self._service.post(self, through, failures)

    def dismissed(self, reason: str) -> None:
        self._service._from_thread(partial(self._refuse, reason, for_good=False))
