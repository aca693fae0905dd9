"""Every row once, also while slots move: a read begins when the shards' snapshots together own every slot once.

    shard 0: snapshot, what it owns --.
    shard 1: snapshot, what it owns ---> all slots, each once? -- yes --> rows of these snapshots
    shard 2: snapshot, what it owns --'                        `- no ---> new snapshots, a moment later

A slot's rows leave or join a table in the commit that changes who owns it, so a snapshot holds exactly the rows of the
slots that it owns. Nothing was handed out when snapshots do not fit, so taking new ones is seen by nobody. Servers that
are no shards of one warehouse own nothing together, and are not checked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pleinair.krablet.queries import query
from pleinair.krablet.reading.copy_stream import Wire, reading
from pleinair.krablet.reading.limits import Run
from pleinair.krablet.reading.pools import ReadPools
from pleinair.krablet.reading.requests import MovingError, ReadError
from pleinair.krablet.shards import NUM_SLOTS, slot_of

PAUSE_SECONDS = 0.02
_POLL_SECONDS = 0.1
_ALL = (1 << NUM_SLOTS) - 1


@dataclass(frozen=True)
class Owned:
    """What one shard owns in a snapshot, a bit for every slot, the first the highest."""

    warehouse: str
    slots: int


def owned_here(wire: Wire) -> Owned | None:
    """What this server owns in the transaction's snapshot; None if it is no shard. Raises ReadError without the right."""
    [(exists, allowed)] = wire.rows(query("scan", "may_read_here").as_bytes())
    if exists != "t":
        return None
    if allowed != "t":
        raise ReadError("this role cannot see which slots are here: make it a reader with `pleinair krablet reader`")
    [(warehouse, slots)] = wire.rows(query("scan", "owned_here").as_bytes())
    return Owned(str(warehouse), int(str(slots), 2))


Snapshots = Mapping[int, Owned | None]
Judge = Callable[[Snapshots], str]
"""Says what is wrong with the snapshots of a read, by place; nothing if it may begin."""


def every_slot_once(snapshots: Snapshots) -> str:
    """The judge of a read over all shards."""
    owned = _of_one_warehouse(snapshots)
    if owned is None:
        return ""
    together = twice = 0
    for each in owned:
        twice |= together & each.slots
        together |= each.slots
    if twice:
        return f"{_slots(twice)} on two shards"  # one snapshot is from before a move, one from after it
    return f"{_slots(_ALL & ~together)} on none of these {len(owned)} shards" if together != _ALL else ""


def _of_one_warehouse(snapshots: Snapshots) -> list[Owned] | None:
    owned = [each for each in snapshots.values() if each is not None]
    together = len(owned) == len(snapshots) and len({each.warehouse for each in owned}) == 1
    return owned if together else None


def _slots(bits: int) -> str:
    first = NUM_SLOTS - bits.bit_length()
    return f"slot {first} is" if bits.bit_count() == 1 else f"{bits.bit_count()} slots, slot {first} first, are"


class Agreement:
    """Where the threads of a read meet, each with its snapshot, before any gives rows."""

    def __init__(self, count: int, judge: Judge, run: Run, patience_seconds: float) -> None:
        self._count = count
        self._judge = judge
        self._run = run
        self._deadline = time.monotonic() + patience_seconds
        self._changed = threading.Condition()
        self._snapshots: dict[int, Owned | None] = {}
        self._rounds = 0
        self._wrong = ""

    def reached(self, place: int, owned: Owned | None) -> bool:
        """Wait for the others' snapshots; False if all must take new ones. Raises MovingError when patience ends."""
        with self._changed:
            meeting = self._rounds
            self._snapshots[place] = owned
            if len(self._snapshots) == self._count:
                self._wrong, self._snapshots = self._judge(self._snapshots), {}
                self._rounds += 1
                self._changed.notify_all()
            while self._rounds == meeting:
                self._changed.wait(_POLL_SECONDS)
                self._run.check()
            if self._wrong and time.monotonic() > self._deadline:
                raise MovingError(
                    f"{self._wrong}: name every shard of the warehouse, or see 'pleinair krablet shard resume'"
                )
            return not self._wrong


@dataclass
class SlotPlaces:
    """Which shard of some pools owns which slot, as far as is known; reads of keys go there."""

    owners: Sequence[int | None] = field(default_factory=list)

    def route(self, pools: ReadPools, keys: Collection[Any], run: Run) -> dict[int, list[Any]]:
        """The keys by the place of their shard; all of them at every place where the servers are no warehouse."""
        if not self.owners:
            self.learn(pools, run)
        if not self.owners:
            return {place: list(keys) for place in range(len(pools.shards))}
        routed: dict[int, list[Any]] = {}
        for key in dict.fromkeys(keys):
            owner = self.owners[slot_of(key)]
            routed.setdefault(0 if owner is None else owner, []).append(key)
        return routed

    def learn(self, pools: ReadPools, run: Run) -> None:
        """Ask all shards."""
        snapshots: dict[int, Owned | None] = {}
        for place, pool in enumerate(pools.shards):
            with reading(pool, run) as wire:
                snapshots[place] = owned_here(wire)
        if _of_one_warehouse(snapshots) is None:
            self.owners = []
            return
        owners: list[int | None] = [None] * NUM_SLOTS
        for place, owned in snapshots.items():
            for slot in range(NUM_SLOTS):
                if owned is not None and owned.slots >> (NUM_SLOTS - 1 - slot) & 1:
                    owners[slot] = place
        self.owners = owners


def holds_keys(routed: Mapping[int, Collection[Any]]) -> Judge:
    """The judge of a read by key: every shard that is asked owns the slots of its keys."""

    def judge(snapshots: Snapshots) -> str:
        if _of_one_warehouse(snapshots) is None:
            return ""
        for place, keys in routed.items():
            owned = snapshots[place]
            wanted = sum({1 << (NUM_SLOTS - 1 - slot_of(key)) for key in keys})
            if owned is not None and wanted & ~owned.slots:
                return f"{_slots(wanted & ~owned.slots)} not where it was"
        return ""

    return judge
