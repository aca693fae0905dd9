"""The funnel: the one write path for contended upserts of a shard.

    submit / offer --> bounded buffer --> flusher thread: merge by key, one statement, one commit --> answers

Many clients submit small mutations of few keys; written one by one they would queue for row locks and for the disk.
The flusher takes whatever has arrived when its last commit returns (there is no timer), merges mutations of one key by
the rules of their columns, and commits once. An answer is given only after that commit.

Every client numbers its mutations 1, 2, 3 ... and the number reached is written in the same transaction, so a mutation
that is sent again, to this funnel or another, is applied once.

    with Funnel(dsn) as funnel:
        funnel.submit("stats", {"name": "fox", "hits": 1}).result()

One flusher, because a second one waits for the first one's row locks on the very keys that are contended (measured:
half the rate); two funnels on one shard are correct but no faster.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from pleinair.krablet.closing import Closing
from pleinair.krablet.connections import Session
from pleinair.krablet.funnel.batch import Run
from pleinair.krablet.funnel.buffer import Buffer, Load
from pleinair.krablet.funnel.clients import ClientState, Sink
from pleinair.krablet.funnel.errors import FunnelError, MutationError, ProtocolError
from pleinair.krablet.funnel.flusher import SUPERSEDED, Flusher
from pleinair.krablet.funnel.ledger import Standing, claim_clients, forget_idle_clients, load_clients
from pleinair.krablet.funnel.stats import Counters, FunnelStats
from pleinair.krablet.migrations import ensure_catalog
from pleinair.records.errors import ConfigError, QueueError

logger = logging.getLogger("pleinair.krablet.funnel.funnel")

LONGEST_CLIENT_NAME = 200
_START_PATIENCE_SECONDS = 30.0
_PURGE_SECONDS = 3600.0
_LEAVE_SECONDS = 15.0
MAX_OUTSTANDING = 65_536
"""Mutations one client may have sent beyond those whose answers it knows: what is remembered of it is bounded."""
_VALUE_BYTES = 64  # what a small Python value costs in the buffer, about


@dataclass(frozen=True, kw_only=True)
class FunnelSettings:
    """How much a funnel holds and for how long it remembers."""

    buffer_mutations: int = 65_536
    """Mutations accepted and not yet settled; more are not read from sockets, and `submit` blocks."""
    buffer_bytes: int = 64 * 2**20
    """The same limit in bytes."""
    flush_mutations: int = 8_192
    """A flush takes no more runs once it has this many."""
    retention_seconds: float = 7 * 86_400.0
    """Clients idle for longer are forgotten, and with them which of their mutations were applied."""

    def __post_init__(self) -> None:
        for name in ("buffer_mutations", "buffer_bytes", "flush_mutations", "retention_seconds"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: give a positive number")


@dataclass(frozen=True)
class _Registration:
    name: str
    incarnation: str
    begins: bool
    sink: Sink
    answer: Future[ClientState]


class Funnel(Closing):
    """A funnel inside this process; `funnel_service` puts it on the network. Any thread may call it."""

    def __init__(self, database: Session | str, settings: FunnelSettings | None = None) -> None:
        """`database` is a Session or DSN. Raises DatabaseError if it cannot be reached."""
        self.settings = settings or FunnelSettings()
        self.failure: BaseException | None = None
        """Why this funnel ended by itself, if it did."""
        self.on_room: Callable[[], None] = lambda: None
        """Called after `offer` had to refuse, when there is room again."""
        self.on_end: Callable[[], None] = lambda: None
        """Called when the funnel ends by itself."""
        self._session = Session(database) if isinstance(database, str) else database.fresh(5.0)
        with closing(self._session.fresh(_START_PATIENCE_SECONDS)) as session:
            session.run(ensure_catalog)
        self._changed = threading.Condition(threading.Lock())
        self._buffer = Buffer(self.settings.buffer_mutations, self.settings.buffer_bytes)
        self._clients: dict[str, ClientState] = {}
        self._registrations: deque[_Registration] = deque()
        self._refused_at: float | None = None
        self._closing = False
        self._abandoned = threading.Event()
        self._counters = Counters()
        self._flusher = Flusher(self._session, self._changed, self._abandoned, self._counters)
        self._local: _LocalClient | None = None
        self._local_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="pleinair-funnel", daemon=True)
        self._thread.start()

    def submit(self, table: str, row: Mapping[str, object]) -> Future[None]:
        """Merge one row into a table; blocks while the buffer is full. Done when durable; MutationError if refused."""
        if not row:
            raise QueueError(f"a row for table {table} is empty: give at least its key")
        local = self._own_client()
        client, columns, values = local.state, tuple(row), list(row.values())
        with self._changed:
            while True:
                self._check_open()
                run = Run(client, client.received + 1, table, columns, values, time.monotonic())
                if _size(values) > self.settings.buffer_bytes:
                    raise QueueError(
                        f"a row for table {table} is larger than the funnel's buffer: {_size(values)} bytes"
                    )
                if self._offer(client, client.confirmed, [run], _size(values)):
                    return local.await_answer(run.first)
                self._changed.wait()

    def _own_client(self) -> _LocalClient:
        with self._local_lock:
            if self._local is None:
                self._local = _LocalClient(self.register)
            return self._local

    def register(self, name: str, incarnation: str, begins: bool, sink: Sink) -> Future[ClientState]:
        """Connect a client program: `begins` says that this is its first connection, which ends its predecessor.

        `incarnation` is a random text of the program's own. The result says how far its mutations are applied.
        """
        _check_client_name(name)
        registration = _Registration(name, incarnation, begins, sink, Future())
        with self._changed:
            self._check_open()
            self._registrations.append(registration)
            self._changed.notify_all()
        return registration.answer

    def offer(self, client: ClientState, confirmed: int, runs: Sequence[Run], num_bytes: int) -> bool:
        """Take these runs, or return False because the buffer is full: offer them again after `on_room`.

        `confirmed` is the number up to which the client knows its answers. Raises FunnelError if the client is
        dismissed or its numbers leave a gap.
        """
        with self._changed:
            self._check_open()
            taken = self._offer(client, confirmed, runs, num_bytes)
        if taken and runs and runs[0].first <= client.applied:
            client.tell(dict(client.failures))
        return taken

    def _offer(self, client: ClientState, confirmed: int, runs: Sequence[Run], num_bytes: int) -> bool:
        if client.dismissed is not None:
            raise FunnelError(client.dismissed)
        client.confirm(confirmed)
        fresh = _unreceived(client, runs)
        for run in fresh:
            run.confirmed = confirmed
        if fresh and fresh[-1].last - client.confirmed > MAX_OUTSTANDING:
            raise ProtocolError(f"client {client.name!r} has more than {MAX_OUTSTANDING} mutations outstanding")
        load = Load(sum(map(len, fresh)), num_bytes)
        if fresh and not self._buffer.add(fresh, load):
            self._refused_at = self._refused_at or time.monotonic()
            return False
        self._counters.received += load.mutations
        self._counters.duplicates += sum(map(len, runs)) - load.mutations
        if fresh:
            client.received = fresh[-1].last
            self._changed.notify_all()
        return True

    def detach(self, client: ClientState, sink: Sink) -> None:
        """The client's connection is gone; what it sent is settled all the same."""
        with self._changed:
            if client.sink is sink:
                client.sink = None
                self._drop_if_done(client)

    def _drop_if_done(self, client: ClientState) -> None:
        settled = client.applied == client.received or client.dismissed is not None
        if settled and client.sink is None and self._clients.get(client.name) is client:
            del self._clients[client.name]

    def _check_open(self) -> None:
        if self.failure is not None:
            raise FunnelError(f"the funnel has ended: {self.failure}") from self.failure
        if self._closing:
            raise FunnelError("the funnel is closed: open another one")

    def stats(self) -> FunnelStats:
        with self._changed:
            return self._counters.snapshot(
                buffered=self._buffer.held, peak=self._buffer.peak, clients=len(self._clients)
            )

    def close(self, drain_seconds: float = 30.0) -> bool:
        """Settle what has been accepted and end; False if that took too long and the rest was left unanswered."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(drain_seconds)
        drained = not self._thread.is_alive()
        self._abandoned.set()
        self._thread.join(_LEAVE_SECONDS)  # a server that hangs is not waited for: nothing of this flush was answered
        if not self._thread.is_alive():
            self._session.close()
        return drained and self.failure is None

    def _run(self) -> None:
        try:
            self._flush_until_closed()
        except BaseException as failure:
            logger.error("the funnel ends: %s", failure)
            self._end(failure)

    def _end(self, failure: BaseException) -> None:
        reason = f"the funnel has ended: {failure}"
        with self._changed:
            self.failure = failure
            registrations, clients = list(self._registrations), list(self._clients.values())
            self._changed.notify_all()
        for registration in registrations:
            registration.answer.set_exception(FunnelError(reason))
        for client in clients:
            client.dismiss(reason)
        self.on_end()

    def _flush_until_closed(self) -> None:
        purged = time.monotonic()
        while self._wait_for_work(purged + _PURGE_SECONDS):
            self._register_waiting()
            self._flush()
            if time.monotonic() > purged + _PURGE_SECONDS:
                self._purge()
                purged = time.monotonic()

    def _wait_for_work(self, until: float) -> bool:
        """False when closed and nothing is left to do."""
        with self._changed:
            while not (self._buffer or self._registrations or self._closing):
                if not self._changed.wait(until - time.monotonic()):
                    return True
            return bool(self._buffer or self._registrations or not self._closing)

    def _flush(self) -> None:
        with self._changed:
            runs, load = self._buffer.take(self.settings.flush_mutations)
        if runs:
            self._flusher.settle(runs)
            self._make_room(runs, load)

    def _make_room(self, runs: Sequence[Run], load: Load) -> None:
        with self._changed:
            self._buffer.release(load)
            for run in runs:
                self._drop_if_done(run.client)
            self._changed.notify_all()
            refused_at, self._refused_at = self._refused_at, None
            if refused_at is not None:
                self._counters.held_back_seconds += time.monotonic() - refused_at
        if refused_at is not None:
            self.on_room()

    def _register_waiting(self) -> None:
        batch: dict[str, _Registration] = {}
        with self._changed:
            while self._registrations and self._registrations[0].name not in batch:
                registration = self._registrations.popleft()
                batch[registration.name] = registration
        if not batch:
            return
        try:
            self._register(batch)
        except BaseException as failure:
            for registration in batch.values():
                if not registration.answer.done():
                    registration.answer.set_exception(FunnelError(f"the funnel has ended: {failure}"))
            raise

    def _register(self, batch: Mapping[str, _Registration]) -> None:
        begun = {name: registration.incarnation for name, registration in batch.items() if registration.begins}
        if begun:
            self._flusher.execute(partial(claim_clients, incarnations=begun))
        standings = self._flusher.execute(partial(load_clients, clients=batch))
        for name, registration in batch.items():
            self._admit(registration, standings.get(name))

    def _admit(self, registration: _Registration, standing: Standing | None) -> None:
        if standing is None or standing.incarnation != registration.incarnation:
            registration.answer.set_exception(FunnelError(SUPERSEDED.format(name=registration.name)))
            return
        with self._changed:
            client = self._clients.get(registration.name)
            if client is None or client.incarnation != registration.incarnation or client.dismissed is not None:
                client = ClientState(registration.name, registration.incarnation, None)
                self._clients[client.name] = client
            client.settle(standing.applied, standing.failures)
            client.sink = registration.sink
        registration.answer.set_result(client)

    def _purge(self) -> None:
        with self._changed:
            connected = list(self._clients)
        action = partial(forget_idle_clients, connected=connected, retention_seconds=self.settings.retention_seconds)
        if forgotten := self._flusher.execute(action):
            logger.info("forgot %d clients idle for %.0f s", forgotten, self.settings.retention_seconds)


def _check_client_name(name: str) -> None:
    if not name or len(name) > LONGEST_CLIENT_NAME or not name.isprintable():
        raise ConfigError(f"client name {name!r:.60} is not usable: 1 to {LONGEST_CLIENT_NAME} printable characters")


def _unreceived(client: ClientState, runs: Sequence[Run]) -> list[Run]:
    """The runs without what has arrived before, on this connection or an earlier one. Raises ProtocolError for a gap."""
    fresh: list[Run] = []
    received = client.received
    for run in runs:
        if run.first > received + 1:
            raise ProtocolError(
                f"client {client.name!r} sent mutation {run.first} where {received + 1} was expected: "
                "send all that is unacknowledged, in order"
            )
        if run.last > received:
            fresh.append(run if run.first > received else run.split(received - run.first + 1)[1])
            received = run.last
    return fresh


class _LocalClient:
    """The callers of `Funnel.submit` as one client; numbered like any other, so that a lost commit is not repeated."""

    def __init__(self, register: Callable[[str, str, bool, Sink], Future[ClientState]]) -> None:
        self._futures: deque[tuple[int, Future[None]]] = deque()
        self._registration = register(f"local-{uuid.uuid4()}", uuid.uuid4().hex, True, self)

    @property
    def state(self) -> ClientState:
        return self._registration.result()

    def await_answer(self, number: int) -> Future[None]:
        future: Future[None] = Future()
        self._futures.append((number, future))
        return future

    def answered(self, through: int, failures: Mapping[int, str]) -> None:
        while self._futures and self._futures[0][0] <= through:
            number, future = self._futures.popleft()
            if number in failures:
                future.set_exception(MutationError(failures[number]))
            else:
                future.set_result(None)
        self.state.confirm(through)

    def dismissed(self, reason: str) -> None:
        while self._futures:
            self._futures.popleft()[1].set_exception(FunnelError(reason))


def _size(values: Sequence[object]) -> int:
    """What a row costs in the buffer, about."""
    return sum(_VALUE_BYTES + len(value) for value in values if isinstance(value, str | bytes)) + _VALUE_BYTES
