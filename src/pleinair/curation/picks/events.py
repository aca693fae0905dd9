"""Decisions of people on pictures, one set per domain, kept as events; the sets are a fold over them.

    page or script --append--> pick_events --fold--> Picks: per domain, what is decided and the kept in their order

A picture has two values per domain, each set by its latest event: the decision (keep, discard, clear) and the position
(keep, move). So the fold does not depend on the order in which events arrive, and two people may work at once.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from pleinair.krablet import Database, Table
from pleinair.records.errors import ConfigError
from pleinair.records.picks import PICK_DECISIONS, PickDecision, PickEvent

EVENT_COLUMNS: Mapping[str, str] = {
    "event": "uuid",
    "image_name": "text",
    "domain": "text",
    "decision": "text",
    "position": "double precision",
    "person": "text",
    "origin": "text",
    "at": "timestamptz",
}
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9 _-]{0,39}")
_EARLIEST = datetime.min.replace(tzinfo=UTC)
_STEP = 1.0
Stamp = tuple[datetime, str]
"""Orders events: time, then id."""


@dataclass(frozen=True)
class Pick:
    """Where one picture stands in one domain."""

    decision: Literal["keep", "discard", "clear"] = "clear"
    position: float | None = None
    person: str = ""
    """Who decided."""
    decided: Stamp = (_EARLIEST, "")
    placed: Stamp = (_EARLIEST, "")

    def after(self, event: PickEvent) -> Pick:
        """The pick once the event is counted; the same if it comes too late."""
        stamp, pick = (event.at, event.event), self
        if event.decision != "move" and stamp > pick.decided:
            pick = replace(pick, decision=event.decision, person=event.person, decided=stamp)
        if event.position is not None and stamp > pick.placed:
            pick = replace(pick, position=event.position, placed=stamp)
        return pick


class Picks:
    """The sets of all domains, kept up to date event by event, in any order."""

    def __init__(self, events: Iterable[PickEvent] = ()) -> None:
        self.by_domain: dict[str, dict[str, Pick]] = {}
        self.latest: datetime = _EARLIEST
        """Time of the latest event counted."""
        self._counted: set[str] = set()
        for event in events:
            self.count(event)

    def __contains__(self, event: str) -> bool:
        return event in self._counted

    def count(self, event: PickEvent) -> bool:
        """Count one event; False when it was counted before."""
        if event.event in self._counted:
            return False
        self._counted.add(event.event)
        of_domain = self.by_domain.setdefault(event.domain, {})
        of_domain[event.image_name] = self.pick(event.domain, event.image_name).after(event)
        self.latest = max(self.latest, event.at)
        return True

    def pick(self, domain: str, image_name: str) -> Pick:
        """Where a picture stands."""
        return self.by_domain.get(domain, {}).get(image_name, Pick())

    def chosen(self, domain: str) -> list[str]:
        """The kept pictures of a domain in their order."""
        kept = [
            (pick.position or 0.0, name)
            for name, pick in self.by_domain.get(domain, {}).items()
            if pick.decision == "keep"
        ]
        return [name for _, name in sorted(kept)]

    def end(self, domain: str) -> float:
        """A position behind all of a domain's set."""
        positions = [p.position or 0.0 for p in self.by_domain.get(domain, {}).values() if p.decision == "keep"]
        return max(positions, default=0.0) + _STEP


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What somebody wants of one picture; `event` is its UUID, made where it was wished."""

    event: str
    image_name: str
    domain: str
    decision: PickDecision
    position: float | None = None
    """Of keep and move; without it a picture goes to the end, or where `before` says."""
    before: str | None = None
    """Of move: the picture of the set that it should stand before."""

    def __post_init__(self) -> None:
        if self.decision not in PICK_DECISIONS:
            raise ConfigError(f"the decision {self.decision!r} is unknown: give {', '.join(PICK_DECISIONS)}")
        checked_domain(self.domain)
        try:
            uuid.UUID(self.event)
        except (ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"the event {self.event!r:.60} is no UUID: make one") from error


def checked_domain(domain: str) -> str:
    """The domain's name. Raises ConfigError for one that cannot be a name."""
    if not _DOMAIN.fullmatch(domain):
        raise ConfigError(f"the domain {domain!r:.60} is no name: give up to 40 of a-z, 0-9, space, _ and -")
    return domain


def events_of(
    wishes: Sequence[Wish], picks: Picks, person: str, origin: Literal["human", "script"]
) -> Iterator[PickEvent]:
    """The events that wishes come to, each counted in `picks` as it is given; one that was counted before gives none.

    Where two neighbours leave no room between them, the whole set is numbered anew, which is events too.
    """
    for wish in wishes:
        if wish.event in picks:
            continue
        position, spread = _position(wish, picks)
        for name, place in spread:
            yield _counted(picks, Wish(event=str(uuid.uuid4()), image_name=name, domain=wish.domain, decision="move"),
                           place, person, origin)  # fmt: skip
        yield _counted(picks, wish, position, person, origin)


def _counted(
    picks: Picks, wish: Wish, position: float | None, person: str, origin: Literal["human", "script"]
) -> PickEvent:
    at = max(datetime.now(UTC), picks.latest + timedelta(microseconds=1))
    event = PickEvent(
        event=wish.event, image_name=wish.image_name, domain=wish.domain, decision=wish.decision, position=position,
        person=person, origin=origin, at=at,
    )  # fmt: skip
    picks.count(event)
    return event


def _position(wish: Wish, picks: Picks) -> tuple[float | None, list[tuple[str, float]]]:
    """Position of a wish, and the new positions of others that it needs."""
    if wish.decision in ("discard", "clear"):
        return None, []
    if wish.position is not None:
        return wish.position, []
    others = [name for name in picks.chosen(wish.domain) if name != wish.image_name]
    if wish.before is None or wish.before not in others:
        return picks.end(wish.domain), []
    place = others.index(wish.before)
    positions = [picks.pick(wish.domain, name).position or 0.0 for name in others]
    low, high = (positions[place - 1] if place else positions[0] - 2 * _STEP), positions[place]
    if low < (low + high) / 2 < high:
        return (low + high) / 2, []
    spread = [(name, _STEP * (number + (number >= place) + 1)) for number, name in enumerate(others)]
    return _STEP * (place + 1), spread


def picks_table(db: Database) -> Table:
    """The declared `pick_events` table."""
    return db.table("pick_events", key="event", columns=EVENT_COLUMNS)


def append(table: Table, events: Iterable[PickEvent]) -> int:
    """Append events; durable on return. An event that is there already is left as it is."""
    return table.insert_missing(asdict(event) for event in events)


def read_events(table: Table, since: datetime | None = None) -> list[PickEvent]:
    """All events, or those from a time on, oldest first."""
    found = table.read() if since is None else table.read(where="at >= %(since)s", params={"since": since})
    events = [PickEvent(**{**row, "event": str(row["event"])}) for batch in found for row in batch.to_pylist()]
    return sorted(events, key=lambda event: (event.at, event.event))
