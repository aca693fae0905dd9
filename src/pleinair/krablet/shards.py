"""Where rows are: 1024 slots of the key space, each on one of 1..N Postgres servers.

    key --slot_of--> slot 0..1023 --slot map--> shard        (moving a slot moves its rows; nothing is hashed anew)

The first shard holds the catalog: the list of shards and the slot map. Every server knows which slots it owns, and a
write that an old map sent to the wrong one is refused there (`StaleMapError`), so a map may be old but never wrong.
No transaction spans shards.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg

from pleinair.krablet.connections import Connection, Session, describe, not_allowed
from pleinair.krablet.migrations import catalog_exists, ensure_catalog
from pleinair.krablet.queries import query
from pleinair.records.errors import DatabaseError

Cursor = psycopg.Cursor[Any]
Result = TypeVar("Result")

NUM_SLOTS = 1024
TRANSIT_SECONDS = 60.0
"""How long a write waits for a slot that is between two shards."""
STALE_MAP = "PL001"  # the SQLSTATE of pleinair.require_slots


class StaleMapError(DatabaseError):
    """A write reached a shard that does not own all its slots: the slot map is older than a move."""


def slot_of(key: object) -> int:
    """The slot of a key, as `pleinair.slot_of(key::text)` computes it in SQL."""
    return int.from_bytes(hashlib.sha256(str(key).encode()).digest()[:2], "big") & (NUM_SLOTS - 1)


def slot_bits(slots: Iterable[int]) -> str:
    """A set of slots as Postgres's bit(1024)."""
    bits = 0
    for slot in slots:
        bits |= 1 << (NUM_SLOTS - 1 - slot)
    return f"{bits:0{NUM_SLOTS}b}"


@dataclass(frozen=True)
class Shard:
    """One Postgres server of a warehouse."""

    number: int
    dsn: str
    session: Session
    place: str = ""
    """Where it is, as the catalog says it."""

    @property
    def name(self) -> str:
        """What people call it: "shard 0"."""
        return f"shard {self.number}"

    @property
    def where(self) -> str:
        """Its server for people, without secrets."""
        return self.place if self.place.startswith("embedded:") else describe(self.dsn)

    def __repr__(self) -> str:
        return f"Shard({self.number}, {describe(self.dsn)})"


@dataclass(frozen=True)
class SlotMap:
    """What the catalog says: places of the shards after the first, and which shard owns each slot."""

    places: Mapping[int, str] = field(default_factory=dict)
    owner: Sequence[int] = (0,) * NUM_SLOTS


class Shards:
    """The servers of a warehouse and the slot map, as far as this process knows; `reload` asks again."""

    def __init__(
        self,
        catalog: Session,
        open_place: Callable[[str], Session],
        heal: Callable[[Shards], object],
        known: SlotMap | None = None,
    ) -> None:
        """`catalog` is a session with the first shard; `open_place` makes one with a shard's place in the catalog.

        `heal` finishes a move whose mover is gone. `known` is what another object read already.
        """
        self.catalog = catalog
        self._open_place = open_place
        self._heal = heal
        self._lock = threading.RLock()
        self._shards: dict[int, Shard] = {0: Shard(0, catalog.dsn, catalog)}
        self._sessions: dict[str, Session] = {}
        self._known = SlotMap()
        self._adopt(catalog.run(_load) if known is None else known)

    def __iter__(self) -> Iterator[Shard]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def all(self) -> list[Shard]:
        """Every shard, the catalog's first."""
        return [self._shards[number] for number in sorted(self._shards)]

    @property
    def dsns(self) -> list[str]:
        """How to connect to every shard, secrets included."""
        return [shard.dsn for shard in self.all]

    def __getitem__(self, number: int) -> Shard:
        return self._shards[number]

    def find(self, number: int) -> Shard | None:
        """The shard of that number; None when it was removed."""
        return self._shards.get(number)

    def reload(self) -> None:
        """Read shards and slot map from the catalog; sessions of shards that stay are kept."""
        self._adopt(self.catalog.run(_load))

    def _adopt(self, known: SlotMap) -> None:
        with self._lock:
            for number in [number for number in self._shards if number and number not in known.places]:
                self._shards.pop(number).session.close()
            for number, place in known.places.items():
                if number not in self._shards:
                    session = self._sessions[place] = self._open_place(place)
                    self._shards[number] = Shard(number, session.dsn, session, place)
            self._known = known

    def heal(self) -> None:
        """Finish a move whose mover is gone, and know where all is now."""
        self._heal(self)
        self.reload()

    def settled(self) -> None:
        """Wait until no slot is between two shards, then know where all are. Raises DatabaseError when that lasts."""
        deadline = time.monotonic() + TRANSIT_SECONDS
        while self.in_transit():
            self._wait_for_slots(deadline)
        self.reload()

    def _wait_for_slots(self, deadline: float) -> None:
        """A moment for a slot between two shards to arrive; when its mover is gone, bring it in ourselves."""
        if time.monotonic() > deadline:
            raise StaleMapError(
                f"slots have been between two shards for {TRANSIT_SECONDS:.0f} seconds and cannot be brought in: "
                "see why with 'pleinair krablet shard resume'"
            )
        time.sleep(0.05)
        self._heal(self)

    def in_transit(self) -> bool:
        """Whether a slot has left one shard and not yet arrived at another."""
        moves = self.catalog.run(lambda connection: connection.execute(query("shards", "load_moves")).fetchall())
        if not moves:
            return False
        owned = [int(bits, 2) for [(bits,)] in self.each(_owned)]
        return sum(bits.bit_count() for bits in owned) < NUM_SLOTS

    def fresh(self, patience_seconds: float) -> Shards:
        """The same shards through sessions of their own, for another thread or another patience."""

        def open_fresh(place: str) -> Session:
            return (self._sessions.get(place) or self._open_place(place)).fresh(patience_seconds)

        return Shards(self.catalog.fresh(patience_seconds), open_fresh, self._heal, self._known)

    def of(self, key: object) -> Shard:
        """The shard a key lives on."""
        return self._shards[self._known.owner[slot_of(key)]]

    def owner(self, slot: int) -> int:
        """The number of the shard a slot is on."""
        return self._known.owner[slot]

    def places(self) -> list[str]:
        """Where the shards after the first are, as the catalog says it."""
        return list(self._known.places.values())

    def open_place(self, place: str) -> Session:
        """A session with a server that is no shard yet."""
        return self._open_place(place)

    def slots(self, number: int) -> list[int]:
        """The slots of a shard."""
        return [slot for slot, owner in enumerate(self._known.owner) if owner == number]

    def route(self, keys: Sequence[Any]) -> dict[int, list[int]]:
        """Places in `keys` by the number of the shard they live on."""
        return self._routed([slot_of(key) for key in keys], range(len(keys)))

    def each(self, action: Callable[[Connection], Result]) -> list[Result]:
        """What `action` returns on every shard, in order."""
        return [shard.session.run(action) for shard in self.all]

    def write(self, keys: Sequence[Any], send: Callable[[Connection, list[int]], Cursor]) -> int:
        """Let `send(connection, places)` write the rows of `keys` at `places` on the shard they live on, each once.

        Returns the number of rows written. A slot that has moved since the map was read is looked up anew; one between
        two shards is waited for.
        """
        slots = [slot_of(key) for key in keys]
        left, written, deadline = list(range(len(keys))), 0, time.monotonic() + TRANSIT_SECONDS
        while left:
            refused: list[int] = []
            for number, places in self._routed(slots, left).items():
                try:
                    written += self._write_on(self._shards[number], slots, places, send)
                except StaleMapError:
                    refused += places
            if left := sorted(refused):
                self._wait_for_slots(deadline)
                self.reload()
        return written

    def _routed(self, slots: Sequence[int], places: Sequence[int]) -> dict[int, list[int]]:
        routed: dict[int, list[int]] = {}
        for place in places:
            routed.setdefault(self._known.owner[slots[place]], []).append(place)
        return routed

    def _write_on(
        self, shard: Shard, slots: Sequence[int], places: list[int], send: Callable[[Connection, list[int]], Cursor]
    ) -> int:
        chosen = [slots[place] for place in places]

        def checked(connection: Connection) -> int:
            # A pipeline is one transaction: the check holds its lock until the write is committed.
            with connection.pipeline():
                require_slots(connection, chosen)
                cursor = send(connection, places)
            return cursor.rowcount

        try:
            return shard.session.run(checked)
        except psycopg.DatabaseError as error:
            if error.sqlstate != STALE_MAP:
                raise
            raise StaleMapError(f"{shard.name} does not hold all slots of this write: write again") from error

    def close(self) -> None:
        """Close all connections."""
        for shard in self.all:
            shard.session.close()


def require_slots(connection: Connection, slots: Iterable[int]) -> None:
    """Let a transaction fail with SQLSTATE `STALE_MAP` unless this server owns the slots, and keep them until it ends."""
    connection.execute(query("shards", "require_slots"), {"wanted": slot_bits(slots)})


def require_keys(connection: Connection, keys: Iterable[Any]) -> None:
    """`require_slots` for the slots of keys."""
    require_slots(connection, map(slot_of, keys))


def _load(connection: Connection) -> SlotMap:
    try:
        return _load_map(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        raise not_allowed(error, connection.info.dsn) from error


def _load_map(connection: Connection) -> SlotMap:
    if not catalog_exists(connection):
        return SlotMap()
    ensure_catalog(connection)
    places: dict[int, str] = dict(connection.execute(query("shards", "load_shards")).fetchall())
    owners: dict[int, int] = dict(connection.execute(query("shards", "load_slots")).fetchall())
    return SlotMap({n: place for n, place in places.items() if n}, [owners.get(slot, 0) for slot in range(NUM_SLOTS)])


def slots_elsewhere(connection: Connection) -> set[int]:
    """The slots that this server does not own."""
    [(bits,)] = _owned(connection)
    return {slot for slot, owned in enumerate(bits) if owned == "0"}


def _owned(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(query("shards", "owned_here")).fetchall()
