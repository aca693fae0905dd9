"""The mutations of one client on their way to the funnels of several shards, also while slots move.

    row --key--> slot --map--> the link to the funnel of its shard
                  |
                  `-- refused there, or its place unknown: a detour
                        wait until no funnel owes an answer for this slot; ask all funnels what they own;
                        then send what was refused, in its order, and what came meanwhile, to the new owner

A mutation goes to a second funnel only after the first has answered that it refused it. That answer is committed there
under the mutation's number, so a mutation is applied once, however often connections, funnels and slots come and go
between. The map is what the servers say of themselves; an old map costs a detour.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from pleinair.krablet.addresses import Address
from pleinair.krablet.funnel import wire
from pleinair.krablet.funnel.errors import FunnelError
from pleinair.krablet.funnel.link import Link, LinkSettings, Mutation
from pleinair.krablet.shards import NUM_SLOTS, slot_of
from pleinair.records.errors import QueueError

logger = logging.getLogger("pleinair.krablet.funnel.client")

_PAUSE_SECONDS = 0.05
_ANSWER_SECONDS = 5.0


@dataclass
class _Detour:
    """Mutations of one slot that wait until its place is known."""

    began: float = field(default_factory=time.monotonic)
    refused: list[Mutation] = field(default_factory=list)
    later: list[Mutation] = field(default_factory=list)
    """Submitted since the first was refused."""

    @property
    def all(self) -> list[Mutation]:
        return [*self.refused, *self.later]


@dataclass(frozen=True)
class Marks:
    """How far submitting had come at some moment."""

    sent_on: int
    submitted: list[int]


@dataclass(frozen=True)
class _Key:
    """How a table's rows are placed."""

    column: str
    is_uuid: bool

    def slot(self, table: str, row: Mapping[str, Any]) -> int:
        value = row.get(self.column)
        if value is None:
            raise QueueError(f"a row for table {table} has no key: give {self.column!r}")
        try:
            return slot_of(uuid.UUID(str(value)) if self.is_uuid else value)
        except ValueError as error:
            raise QueueError(f"the key {self.column} of table {table} is a uuid and not {value!r:.60}") from error


class Routes:
    """The links of one client. `put` is for any thread that holds the lock, everything else for the event loop."""

    def __init__(
        self,
        addresses: Sequence[Sequence[Address]],
        settings: LinkSettings,
        lock: AbstractContextManager[object],
        on_settled: Callable[[int], None],
    ) -> None:
        """`on_settled(count)` is called after so many mutations were answered."""
        self.links = [Link(places, settings, self) for places in addresses]
        self._patience_seconds = settings.patience_seconds
        self._lock = lock
        self.settled = on_settled
        self._failure: FunnelError | None = None
        self._loop = asyncio.get_running_loop()
        self._needed = asyncio.Event()
        self._detours: dict[int, _Detour] = {}
        self._keys: dict[str, _Key] = {}
        self._owned: dict[int, tuple[float, int]] = {}  # by link: when it said so, and a bit for every slot
        self._sent_on = 0  # detours that ended
        self._owner: list[Link | None] = [None] * NUM_SLOTS

    @property
    def routed(self) -> bool:
        """Whether there is a choice of funnels."""
        return len(self.links) > 1

    @property
    def detoured(self) -> bool:
        return bool(self._detours)

    def running(self) -> list[Coroutine[Any, Any, None]]:
        """What is to run in the event loop for as long as the client lives."""
        needed = [*(link.run() for link in self.links), *([self._look_for_slots()] if self.routed else [])]
        return [self._watched(running) for running in needed]

    async def _watched(self, running: Coroutine[Any, Any, None]) -> None:
        """A fault of this program ends the client with a sentence, else it would wait for answers for ever."""
        try:
            await running
        except Exception as error:
            logger.exception("the funnel client ends")
            self.close(f"this client broke ({error!r}): open another one, and report this")

    def knows(self, table: str) -> bool:
        return table in self._keys or not self.routed

    async def learn(self, table: str) -> None:
        """Ask for the key of a table. Raises QueueError if it is not declared, FunnelError if no funnel answers."""
        deadline = time.monotonic() + self._patience_seconds
        while not self.knows(table):
            answered = await self._ask_all()
            if answered == len(self.links) and not self.knows(table):
                raise QueueError(f"no table {table!r} is declared here: declare it with db.table({table!r}, ...)")
            if time.monotonic() > deadline:
                raise FunnelError(
                    f"{len(self.links) - answered} of {len(self.links)} funnels do not answer: start them"
                )
            await asyncio.sleep(_PAUSE_SECONDS)

    def slot(self, table: str, row: Mapping[str, Any]) -> int:
        """Raises QueueError for a row without a key. The table must be known."""
        return self._keys[table].slot(table, row) if self.routed else -1

    def put(self, mutation: Mutation) -> Link | None:
        """Queue a mutation; the link it is on, which may have to be woken. Raises the failure of that link, or of all."""
        if self._failure is not None:
            raise self._failure
        link = self._link(mutation.slot)
        if link is None:
            self._detour(mutation.slot).later.append(mutation)
            return None
        if link.failure is not None:
            raise link.failure
        link.put(mutation)
        return link

    def marks(self) -> Marks:
        """What was submitted so far, for `unanswered`."""
        return Marks(self._sent_on, [link.submitted for link in self.links])

    def unanswered(self, marks: Marks) -> Marks | None:
        """None when all up to `marks` is answered, else what to ask with later. Raises the failure of a link."""
        for link in self.links:
            if link.failure is not None and link.submitted:
                raise link.failure
        waiting = any(link.settled < mark for link, mark in zip(self.links, marks.submitted, strict=True))
        if waiting or self._detours:
            return marks
        return None if marks.sent_on == self._sent_on else self.unanswered(self.marks())

    def _link(self, slot: int) -> Link | None:
        if not self.routed:
            return self.links[0]
        return None if slot in self._detours else self._owner[slot]

    def _detour(self, slot: int) -> _Detour:
        if slot not in self._detours:
            self._detours[slot] = _Detour()
            self._loop.call_soon_threadsafe(self._needed.set)
        return self._detours[slot]

    # What the links ask.

    def takes_back(self, mutation: Mutation, slot: int) -> bool:
        if not self.routed:
            return False
        with self._lock:
            mutation.slot = slot
            self._detour(slot).refused.append(mutation)
        return True

    def withdraws(self, slot: int) -> bool:
        return slot in self._detours

    async def _look_for_slots(self) -> None:
        while True:
            await self._needed.wait()
            await self._ask_all()
            with self._lock:
                self._send_on()
            await asyncio.sleep(_PAUSE_SECONDS)
            if not self._detours:
                self._needed.clear()

    async def _ask_all(self) -> int:
        """Ask all funnels which slots they own; how many answered."""
        answered = await asyncio.gather(*(self._ask(place, link) for place, link in enumerate(self.links)))
        with self._lock:
            self._redraw()
        return sum(answered)

    def _redraw(self) -> None:
        """Place every slot where the latest claim to it came from; what is owed for it elsewhere must come back first."""
        claims = [(owned, self.links[place]) for place, (_, owned) in sorted(self._owned.items(), key=lambda it: it[1])]
        owed = self._owed()
        for slot in range(NUM_SLOTS):
            bit = 1 << (NUM_SLOTS - 1 - slot)
            owner = next((link for owned, link in reversed(claims) if owned & bit), None)
            if owner is not self._owner[slot] and slot in owed:
                self._detour(slot)
            self._owner[slot] = owner

    def _owed(self) -> set[int]:
        """The slots of all mutations that a funnel still has to answer."""
        return set[int]().union(*(link.slots() for link in self.links))

    async def _ask(self, place: int, link: Link) -> bool:
        try:
            owned, keys = await asyncio.wait_for(link.ask(wire.SLOTS), _ANSWER_SECONDS)
        except (FunnelError, TimeoutError):
            return False
        self._owned[place] = time.monotonic(), int.from_bytes(owned)
        self._keys.update({table: _Key(column, type_ == "uuid") for table, (column, type_) in keys.items()})
        return True

    def _send_on(self) -> None:
        owed = self._owed()
        woken: set[Link] = set()
        for slot, detour in list(self._detours.items()):
            link = self._owner[slot]
            if slot not in owed and link is not None:
                del self._detours[slot]
                self._sent_on += 1
                for mutation in detour.all:
                    link.put(mutation)
                woken.add(link)
            elif slot not in owed and time.monotonic() > detour.began + self._patience_seconds:
                self._fail(slot, FunnelError(self._nowhere(slot)))
        for link in woken:
            link.wake()

    def _nowhere(self, slot: int) -> str:
        return (
            f"slot {slot} was on none of these {len(self.links)} shards for {self._patience_seconds:.0f} s: give the "
            "address of every shard's funnel, or see 'pleinair krablet shard resume'"
        )

    def _fail(self, slot: int, failure: FunnelError) -> None:
        left = self._detours.pop(slot).all
        for mutation in left:
            if not mutation.answer.done():
                mutation.answer.set_exception(failure)
        self.settled(len(left))

    def close(self, reason: str = "this client is closed: open another one") -> None:
        self._failure = FunnelError(reason)
        for link in self.links:
            link.close(reason)
        with self._lock:
            for slot in list(self._detours):
                self._fail(slot, self._failure)
