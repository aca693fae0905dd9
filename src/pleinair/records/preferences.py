"""What was preferred on pages where two sides are compared blindly, as events in one JSONL file.

    page or judge --append, fsync--> preferences.jsonl --read--> strengths, agreement, pairs for preference training

An event is one JSON object on one line. A file is only ever appended to, under its lock, so that several writers may share
it; a line cut short by a crash was never answered for, and the next writer takes it away. The same event sent twice is
one. What holds is the latest event of a person on a trial: see `holding`.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pleinair.records.errors import ConfigError, DatabaseError

Attribute = Literal["styles", "follows_style", "shows_thing", "prefer"]
Answer = Literal["left", "right", "same", "cannot_tell", "withdrawn"]
Origin = Literal["human", "synthetic"]
ATTRIBUTES: tuple[Attribute, ...] = get_args(Attribute)
ANSWERS: tuple[Answer, ...] = get_args(Answer)
ORIGINS: tuple[Origin, ...] = get_args(Origin)
VERSION = 1


PREFERENCES = "preferences.jsonl"
"""The log of events, beside the results they are about."""


@dataclass(frozen=True, kw_only=True)
class ShownPicture:
    """What makes a picture of a subject again: the prompt with its kind (`default: a fox`), and the seed."""

    unit: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class ShownSide:
    """One side of a trial."""

    subject: str
    """Its name in results."""
    identity: str
    """Digest of what drew the pictures (weights, settings): two checkpoints of one name differ."""
    pictures: tuple[ShownPicture, ...]
    """In the order shown."""


@dataclass(frozen=True, kw_only=True)
class PreferenceEvent:
    """One answer to one question about two sides.

    The record that preference training reads. A side says which pictures were compared: subject, identity, prompt and seed
    of each, so that the pictures can be drawn again and pairs be made of them: where both sides show one prompt, any two
    pictures of it, the chosen side's as winner; where a side shows several prompts, pictures of equal `unit`. Take only
    what `holding` gives, without controls, `origin` human, answer left or right; `synthetic` answers are a judge's, and a
    judge is never a reward.
    """

    event: str
    """UUID, made by whoever answered, so that an event sent twice is one event."""
    trial: str
    """One showing of two sides to one person."""
    comparison: str
    """What is compared, whichever side is left: the same for a repeat and for other persons."""
    attribute: Attribute
    about: str
    """The style or thing the question names; empty where it names none."""
    question: str
    """As it was read."""
    left: ShownSide
    right: ShownSide
    prompts_sha256: str
    """Digest of all prompts of the results that the sides come from."""
    answer: Answer
    """`withdrawn` takes the person's earlier answer to the trial back."""
    control: Literal["", "left", "right"]
    """The known answer of a control; empty for a trial that asks something."""
    repeat: bool
    """Whether the person was shown the comparison before, to see whether they agree with themselves."""
    person: str
    """Who answered: a person's name, or a judge's."""
    origin: Origin
    at: datetime
    """With a time zone."""
    seconds: float
    """From the pictures being shown to the answer."""

    def __post_init__(self) -> None:
        for name, known in (("attribute", ATTRIBUTES), ("answer", ANSWERS), ("origin", ORIGINS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"the {name} {getattr(self, name)!r:.60} is unknown: give {', '.join(known)}")
        if not 0 <= self.seconds < float("inf"):
            raise ConfigError(f"an answer took {self.seconds} seconds: give a number from 0")
        checked_uuid(self.event)


def checked_uuid(event: object) -> str:
    """The id of an event. Raises ConfigError for what is no UUID."""
    try:
        return str(uuid.UUID(event))  # type: ignore[arg-type]
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"the event {event!r:.60} is no UUID: make one") from error


def to_line(event: PreferenceEvent) -> bytes:
    """One line of JSON."""
    document = {"version": VERSION, **asdict(event), "at": event.at.isoformat()}
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> PreferenceEvent:
    """The inverse. Raises ValueError, KeyError or TypeError for another line."""
    document: dict[str, Any] = json.loads(line)
    version = document.pop("version")
    if version != VERSION:
        raise ValueError(f"version {version!r}, this reads {VERSION}")
    for side in ("left", "right"):
        shown = document[side]
        pictures = tuple(ShownPicture(**one) for one in shown.pop("pictures"))
        document[side] = ShownSide(pictures=pictures, **shown)
    return PreferenceEvent(**{**document, "at": datetime.fromisoformat(document["at"])})


def read_preferences(path: Path) -> list[PreferenceEvent]:
    """All events in the order written, each once; none where there is no file. Raises ConfigError for a damaged line."""
    try:
        written = path.read_bytes()
    except FileNotFoundError:
        return []
    return _parsed(path, written[: written.rfind(b"\n") + 1])


def holding(events: Iterable[PreferenceEvent]) -> list[PreferenceEvent]:
    """The latest event of each person on each trial, without those withdrawn."""
    latest: dict[tuple[str, str, str], PreferenceEvent] = {}
    for event in events:
        key = (event.origin, event.person, event.trial)
        latest.pop(key, None)  # so that the order is that of the answers that hold
        latest[key] = event
    return [event for event in latest.values() if event.answer != "withdrawn"]


class PreferenceLog:
    """Appends events to a file that others may append to; any thread may call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._offset, self._num_lines = 0, 0
        self._events: dict[str, PreferenceEvent] = {}

    def append(self, events: Sequence[PreferenceEvent]) -> None:
        """On the disk on return; an event that is there already is left as it is. Raises DatabaseError, ConfigError."""
        with self._lock, _said(self.path, "written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._catch_up(file)
                new = {one.event: one for one in events if one.event not in self._events}
                if new:
                    _write_whole(file.fileno(), b"".join(map(to_line, new.values())))
                    if not self._offset:
                        _settle(self.path.parent)
                self._catch_up(file)

    def events(self) -> list[PreferenceEvent]:
        """All that is in the file as of the last call, or now if there was none. Raises DatabaseError, ConfigError."""
        with self._lock, _said(self.path, "read"):
            if not self._offset and self.path.exists():
                with self.path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_SH)
                    self._catch_up(file, cut=False)
            return list(self._events.values())

    def _catch_up(self, file: Any, *, cut: bool = True) -> None:
        """Read what others wrote, and take away a line that a crash cut short."""
        file.seek(self._offset)
        new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        for event in _parsed(self.path, whole, first=self._num_lines + 1):
            self._events.setdefault(event.event, event)
        self._num_lines += whole.count(b"\n")
        self._offset += len(whole)
        if cut and len(new) > len(whole):
            file.truncate(self._offset)


@contextmanager
def _said(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as refused:
        raise DatabaseError(
            f"{path} cannot be {done} ({refused.strerror}): make room, or give another file with --log"
        ) from refused


def _write_whole(handle: int, lines: bytes) -> None:
    """Append and wait for the disk; what a full disk took in part is taken away again."""
    before = os.fstat(handle).st_size
    try:
        written = 0
        while written < len(lines):
            written += os.write(handle, lines[written:])
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, before)
        raise


def _settle(folder: Path) -> None:
    """Wait until the disk knows of a new file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _parsed(path: Path, lines: bytes, first: int = 1) -> list[PreferenceEvent]:
    events: dict[str, PreferenceEvent] = {}
    for number, line in enumerate(lines.splitlines(), start=first):
        try:
            event = from_line(line)
        except (ValueError, KeyError, TypeError, AttributeError) as damaged:
            raise ConfigError(
                f"line {number} of {path} is no preference event ({damaged}): mend or remove the line"
            ) from damaged
        events.setdefault(event.event, event)
    return list(events.values())
