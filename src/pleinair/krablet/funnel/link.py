"""A client's side of one funnel: keeps connecting, keeps what is not answered, sends it again with the same numbers.

    put --> pending --number--> sent --ANSWER--> settled
               ^                 |
               `--- reconnect ---'   WELCOME says what was applied meanwhile; the rest goes out again

A number is a mutation's place in the order of sending, so the answered number and the order of the two queues are all
there is to remember. Everything here runs in one event loop, except `put` and `wake`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, cast

from pleinair.krablet.addresses import Address
from pleinair.krablet.funnel import wire
from pleinair.krablet.funnel.errors import FunnelError, MutationError, ProtocolError, moved_slot

_ROWS_PER_FRAME = 1024
_BYTES_PER_FRAME = 256 * 1024
_MAX_ANSWER_BYTES = 64 * 2**20
_CONNECT_SECONDS = 10.0
_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
_SILENCE_SECONDS = 5.0
"""A funnel that owes answers and says nothing for so long is asked whether it lives; three times as long, it is left."""


class Answer(Protocol):
    """The part of a future that a link needs; asyncio's and concurrent.futures' both fit."""

    def done(self) -> bool: ...
    def set_result(self, result: Any) -> None: ...
    def set_exception(self, exception: BaseException) -> None: ...


@dataclass(slots=True)
class Mutation:
    """One row on its way, packed; `shape` is the packed table and columns, `width` the number of columns."""

    shape: bytes
    width: int
    row: bytes
    answer: Answer
    slot: int = -1
    """Where its key lives; -1 with a single funnel, whose client does not place keys."""


@dataclass(frozen=True, kw_only=True)
class LinkSettings:
    """Whom a link speaks for and how long it tries."""

    name: str
    incarnation: str
    token: str = field(repr=False)
    tls: ssl.SSLContext | None
    first: int | None
    patience_seconds: float


class Owner(Protocol):
    """The client a link belongs to."""

    def settled(self, count: int) -> None:
        """So many mutations were answered."""

    def takes_back(self, mutation: Mutation, slot: int) -> bool:
        """Whether the client sends this mutation elsewhere, as its slot is not at this funnel. Not answered if so."""

    def withdraws(self, slot: int) -> bool:
        """Whether what is still to be sent of this slot is to come back."""


class Link:
    """One client at one shard's funnel, which may be found at any of `addresses`."""

    def __init__(self, addresses: Sequence[Address], settings: LinkSettings, owner: Owner) -> None:
        self.failure: FunnelError | None = None
        self.submitted = 0
        """Mutations put in, ever."""
        self.settled = 0
        """Mutations answered, ever."""
        self._addresses = addresses
        self._settings = settings
        self._owner = owner
        self._pending: deque[Mutation] = deque()
        self._sent: deque[Mutation] = deque()
        self._answered: int | None = None  # not known before the first WELCOME
        self._applied = 0
        self._remembered: dict[int, str] = {}
        self._awake = False
        self._wire: _Wire | None = None
        self._welcomed = asyncio.Event()
        self._asked: dict[int, deque[asyncio.Future[Any]]] = {wire.STATS: deque(), wire.SLOTS: deque()}
        self._trouble = "not connected yet"
        self._progress_at = time.monotonic()

    # Any thread.

    def put(self, mutation: Mutation) -> None:
        """Queue a mutation; then call `wake` in the event loop if `asleep`."""
        self.submitted += 1
        self._pending.append(mutation)

    def asleep(self) -> bool:
        """True once for any number of `put`s: the caller must arrange for `wake`."""
        if self._awake:
            return False
        self._awake = True
        return True

    # The event loop.

    def wake(self) -> None:
        """Send what is pending."""
        self._awake = False
        if not self._sent:
            self._progress_at = time.monotonic()
        if self.failure is not None:
            self._give_up(self.failure)
        elif self._wire is not None and self._answered is not None:
            self._pump(self._wire, self._answered)

    def _pump(self, wire_: _Wire, answered: int) -> None:
        self._settle_known(answered)
        while self._pending and wire_.writable:
            wire_.send(self._next_frame())

    def _settle_known(self, answered: int) -> None:
        """A program that repeats its mutations from the first: those applied in an earlier life are answered here."""
        known = min(self._applied - answered - len(self._sent), len(self._pending))
        if known > 0:
            assert not self._sent, "what is sent is beyond what was applied"
            self._sent.extend(self._pending.popleft() for _ in range(known))
            self._settle(answered + known, self._remembered)

    def _next_frame(self) -> bytes:
        assert self._answered is not None
        first, num_bytes = self._answered + len(self._sent) + 1, 0
        runs: list[tuple[bytes, int, list[bytes]]] = []
        for _ in range(min(len(self._pending), _ROWS_PER_FRAME)):
            mutation = self._pending.popleft()
            shape, width, row = mutation.shape, mutation.width, mutation.row
            if mutation.slot >= 0 and self._owner.withdraws(mutation.slot):
                shape, width, row = wire.packed_withdrawal(mutation.slot)
            if not runs or runs[-1][0] != shape:
                runs.append((shape, width, []))
                num_bytes += len(shape)
            runs[-1][2].append(row)
            self._sent.append(mutation)
            num_bytes += len(row)
            if num_bytes > _BYTES_PER_FRAME:
                break
        return wire.mutate_frame(self._answered, first, runs)

    def _settle(self, through: int, failures: Mapping[int, str]) -> None:
        if self._answered is None or through <= self._answered:
            return
        begin, self._answered = self._answered + 1, through
        self._progress_at = time.monotonic()
        taken = 0
        for number in range(begin, through + 1):
            mutation = self._sent.popleft()
            if number in failures:
                taken += self._refused(mutation, failures[number])
            elif not mutation.answer.done():  # else cancelled by its owner
                mutation.answer.set_result(None)
        self.settled += through + 1 - begin
        self._owner.settled(through + 1 - begin - taken)

    def _refused(self, mutation: Mutation, reason: str) -> bool:
        """Whether its client takes it back; else it has failed."""
        slot = moved_slot(reason)
        if slot is not None and self._owner.takes_back(mutation, slot):
            return True
        if not mutation.answer.done():
            mutation.answer.set_exception(MutationError(reason))
        return False

    def slots(self) -> set[int]:
        """The slots of all mutations that are not answered. No other thread may `put` meanwhile."""
        return {mutation.slot for mutation in chain(self._sent, self._pending)}

    async def applied(self) -> int:
        """The number of mutations applied or refused in this name when this program began. Raises FunnelError."""
        await self._welcomed.wait()
        if self.failure is not None:
            raise self.failure
        return self._applied

    def ask(self, kind: int) -> asyncio.Future[Any]:
        """What the funnel counts (STATS), or what is here (SLOTS). Raises FunnelError, now or later, if it is away."""
        if self._wire is None:
            raise FunnelError(f"no connection to the funnel now ({self._trouble}): try again")
        self._asked[kind].append(asyncio.get_running_loop().create_future())
        self._wire.send(wire.frame([kind]))
        return self._asked[kind][-1]

    def _told(self, kind: int, answer: object) -> None:
        future = self._asked[kind].popleft()
        if not future.done():
            future.set_result(answer)

    async def run(self) -> None:
        """Keep a connection until cancelled, or until patience ends with mutations unanswered."""
        pause, tries = _PAUSE_SECONDS, 0
        while self.failure is None:
            address = self._addresses[tries % len(self._addresses)]
            tries += 1
            if await self._serve_connection(address):
                pause = _PAUSE_SECONDS
            self._check_patience()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _serve_connection(self, address: Address) -> bool:
        """Use one connection until it is lost; False if it never came to a WELCOME."""
        try:
            opened = await asyncio.wait_for(self._open(address), _CONNECT_SECONDS)
        except ssl.SSLCertVerificationError as error:
            self._give_up(FunnelError(f"the funnel at {address} shows a certificate that is not trusted: {error}"))
            return False
        except (OSError, TimeoutError) as error:
            self._trouble = f"{address}: {error or 'no connection in time'}"
            return False
        try:
            opened.send(self._hello())
            while not opened.lost.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(opened.lost.wait(), 1.0)
                self._check_patience()
                self._check_silence(opened)
            return self._wire is opened
        finally:
            self._disconnected(opened)

    async def _open(self, address: Address) -> _Wire:
        loop, tls = asyncio.get_running_loop(), self._settings.tls
        make, host = (lambda: _Wire(self, address)), (address.host or "localhost") if tls else None
        if address.is_unix:
            return (await loop.create_unix_connection(make, address.path, ssl=tls, server_hostname=host))[1]
        return (await loop.create_connection(make, address.host, address.port, ssl=tls, server_hostname=host))[1]

    def _hello(self) -> bytes:
        own = self._settings
        begins = self._answered is None
        return wire.frame([wire.HELLO, wire.VERSION, own.token, own.name, own.incarnation, begins])

    def _disconnected(self, opened: _Wire) -> None:
        opened.abort()
        self._trouble = opened.trouble
        if self._wire is opened:
            self._wire = None
        for waiting in self._asked.values():
            while waiting:
                if not (future := waiting.popleft()).done():
                    future.set_exception(FunnelError("the connection to the funnel was lost: try again"))

    def _check_patience(self) -> None:
        waited = time.monotonic() - self._progress_at
        waiting = self._sent or self._pending or not self._welcomed.is_set()
        if not waiting:
            self._progress_at = time.monotonic()
        elif waited > self._settings.patience_seconds:
            self._give_up(
                FunnelError(
                    f"the funnel did not answer for {waited:.0f} s ({self._trouble}): what is unacknowledged may or may "
                    "not have been applied; a client of the same name goes on from what was"
                )
            )

    def _check_silence(self, opened: _Wire) -> None:
        silent = time.monotonic() - opened.heard_at
        if silent > 3 * _SILENCE_SECONDS:
            opened.trouble = f"{opened.address}: silent for {silent:.0f} s"
            opened.abort()
        elif silent > _SILENCE_SECONDS:
            opened.send(wire.frame([wire.PING]))

    def _give_up(self, failure: FunnelError) -> None:
        self.failure = failure
        self._welcomed.set()
        left = [*self._sent, *self._pending]
        self._sent.clear()
        self._pending.clear()
        for mutation in left:
            if not mutation.answer.done():
                mutation.answer.set_exception(failure)
        self.settled += len(left)
        self._owner.settled(len(left))
        if self._wire is not None:
            self._wire.abort()

    def close(self, reason: str) -> None:
        self._give_up(FunnelError(reason))

    def received(self, wire_: _Wire, message: list[Any]) -> None:
        """A message has come. Raises ProtocolError."""
        match message:
            case [wire.ANSWER, int(through), list(failures)]:
                self._settle(through, dict(failures))
            case [wire.WELCOME, int(applied), list(failures)]:
                self._welcome(wire_, applied, dict(failures))
            case [wire.PONG]:
                pass
            case [wire.STATS, dict(counters)] if self._asked[wire.STATS]:
                self._told(wire.STATS, counters)
            case [wire.SLOTS, bytes(owned), dict(keys)] if self._asked[wire.SLOTS]:
                self._told(wire.SLOTS, (owned, keys))
            case [wire.REFUSE, str(reason), bool(for_good)]:
                wire_.trouble = f"{wire_.address}: {reason}"
                if for_good:
                    self._give_up(FunnelError(f"the funnel at {wire_.address} refuses this client: {reason}"))
            case _:
                raise ProtocolError("the funnel sent something unexpected: use the client of the same version")
        if self._pending and self._wire is not None:
            self.wake()

    def _welcome(self, wire_: _Wire, applied: int, failures: dict[int, str]) -> None:
        if self._answered is None:
            self._begin(applied, failures)
        elif applied < self._answered:
            lost = f"mutations {applied + 1} to {self._answered}"
            self._give_up(
                FunnelError(f"the database lost {lost} of client {self._settings.name!r}, which were acknowledged")
            )
        else:
            self._settle(applied, failures)
        if self.failure is None:
            self._pending.extendleft(reversed(self._sent))
            self._sent.clear()
            self._wire = wire_
            self._welcomed.set()
            self.wake()

    def _begin(self, applied: int, failures: dict[int, str]) -> None:
        first = applied + 1 if self._settings.first is None else self._settings.first
        if first > applied + 1:
            self._give_up(
                FunnelError(
                    f"client {self._settings.name!r} would begin with number {first}, but {applied} are applied: "
                    f"begin with {applied + 1} or earlier"
                )
            )
            return
        self._answered, self._applied, self._remembered = first - 1, applied, failures


class _Wire(asyncio.Protocol):
    """One connection of a link."""

    def __init__(self, link: Link, address: Address) -> None:
        self.address = address
        self.lost = asyncio.Event()
        self.trouble = f"{address}: the connection was closed (does this funnel require TLS?)"
        self.writable = True
        self.heard_at = time.monotonic()
        self._link = link
        self._frames = wire.Frames(_MAX_ANSWER_BYTES)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None  # uvloop raises on a transport that is closed
        if error is not None:
            self.trouble = f"{self.address}: {error}"
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        self._frames.feed(data)
        try:
            while (found := self._frames.next()) is not None:
                self._link.received(self, found[0])
        except ProtocolError as error:
            self.trouble = f"{self.address}: {error}"
            self.abort()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._link.wake()

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
