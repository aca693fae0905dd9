"""What the page and the warehouse agree on: the pictures shown, the sets, and what changed since a page last asked.

    page --wishes--> Board --events--> pick_events        durable before the page is answered
    page <--changes since-- Board <--events of others--   looked up when a page asks, at most once a second

Everything here could be lost at any moment: a new board reads the events and stands where the old one stood.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from pleinair.curation.picks.candidates import Candidate, look_up
from pleinair.curation.picks.events import Picks, Wish, append, checked_domain, events_of, picks_table, read_events
from pleinair.krablet import Database, Table
from pleinair.records.errors import ConfigError
from pleinair.records.picks import PickEvent

_LOOK_SECONDS = 1.0
_OVERLAP = timedelta(minutes=5)
"""How far back the look for others' events goes: their clocks may be behind, their commits late."""


@dataclass(frozen=True)
class Change:
    """One picture's place in one domain changed."""

    domain: str
    image_name: str


class Board:
    """The state of one `pleinair pick`; any thread may call."""

    def __init__(
        self, db: Database, images: Table, shown: Sequence[Candidate], domains: Sequence[str], person: str
    ) -> None:
        self.boot = secrets.token_hex(8)
        """Changes are numbered from zero by each board; a page that knows another one loads anew."""
        self.person = person
        self.images = images
        self.shown = shown
        self._events = picks_table(db)
        self._lock = threading.Lock()
        self._changes: list[Change] = []
        self._first = {one.image_name for one in shown}
        self._pictures = {one.image_name: one for one in shown}
        self._paths = {picture_id(one.image_path): one.image_path for one in shown}
        self._picks = Picks(read_events(self._events))
        self._looked_at = time.monotonic()
        self.domains = list(dict.fromkeys([*map(checked_domain, domains), *self._picks.by_domain])) or ["default"]
        self._know(name for domain in self.domains for name in self._picks.chosen(domain))

    def path_of(self, picture: str) -> str | None:
        """Where the store has the picture of this id; None for an id no page was told."""
        return self._paths.get(picture)

    def state(self) -> dict[str, Any]:
        """All a page needs to begin."""
        with self._lock:
            picked = {(domain, name) for domain, picks in self._picks.by_domain.items() for name in picks}
            return {
                "boot": self.boot,
                "version": len(self._changes),
                "person": self.person,
                "domains": self.domains,
                "candidates": [one.image_name for one in self.shown],
                "pictures": [_as_document(one) for one in self._pictures.values()],
                "picks": self._told(Change(*pair) for pair in sorted(picked)),
            }

    def wish(self, wishes: Sequence[Wish]) -> list[dict[str, Any]]:
        """Make wishes events; durable on return. What they changed, as the page is told. Raises ConfigError, DatabaseError."""
        with self._lock:
            unknown = {wish.image_name for wish in wishes} - self._pictures.keys()
            if unknown:
                raise ConfigError(f"no picture {min(unknown)!r:.100} is shown here: load the page again")
            events = list(events_of(wishes, self._picks, self.person, "human"))
            try:
                append(self._events, events)
            except BaseException:
                self._picks = Picks(read_events(self._events))  # what was counted and is not durable goes
                raise
            self._note(events)
            touched = [Change(wish.domain, wish.image_name) for wish in wishes]
            moved = [Change(event.domain, event.image_name) for event in events]
            return self._told(dict.fromkeys([*touched, *moved]))

    def news(self, boot: str, version: int) -> dict[str, Any]:
        """What changed since a page's version, also by others; `{"boot": ...}` alone when it must load anew."""
        with self._lock:
            self._look()
            if boot != self.boot or not 0 <= version <= len(self._changes):
                return {"boot": self.boot}
            changed = dict.fromkeys(self._changes[version:])
            names = {change.image_name for change in changed} - self._first
            return {
                "boot": self.boot,
                "version": len(self._changes),
                "picks": self._told(changed),
                "pictures": [_as_document(self._pictures[name]) for name in names if name in self._pictures],
            }

    def _look(self) -> None:
        """Count the events that others appended."""
        if time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        since = self._picks.latest - _OVERLAP if self._picks.by_domain else None
        new = [event for event in read_events(self._events, since) if self._picks.count(event)]
        self._looked_at = time.monotonic()
        self._note(new)
        self._know(event.image_name for event in new)

    def _note(self, events: Iterable[PickEvent]) -> None:
        self._changes += [Change(event.domain, event.image_name) for event in events]

    def _know(self, names: Iterable[str]) -> None:
        """Pictures that are in a set and were not among those shown."""
        for one in look_up(self.images, set(names) - self._pictures.keys()):
            self._pictures[one.image_name] = one
            self._paths[picture_id(one.image_path)] = one.image_path

    def _told(self, changes: Iterable[Change]) -> list[dict[str, Any]]:
        return [self._pick(change) for change in changes if change.image_name in self._pictures]

    def _pick(self, change: Change) -> dict[str, Any]:
        pick = self._picks.pick(change.domain, change.image_name)
        return {
            "domain": change.domain,
            "name": change.image_name,
            "decision": pick.decision,
            "position": pick.position,
            "person": pick.person,
        }


def picture_id(image_path: str) -> str:
    """Name of a stored picture in addresses: nothing of the store's layout, and the same for the same bytes."""
    return hashlib.sha256(image_path.encode()).hexdigest()[:32]


def _as_document(one: Candidate) -> dict[str, Any]:
    values = asdict(one)
    return {"id": picture_id(values.pop("image_path")), "name": values.pop("image_name"), **values}
