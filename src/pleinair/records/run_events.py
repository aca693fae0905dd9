"""What happens to a run, line by line: `RUN/events.jsonl`, written by its launcher and by every rank.

    launcher:  started ........................... crash | hang  decided  restarted ...... finished
    rank 0:            entered loading  loaded  step  checkpoint  step ^        entered ...

An event is one JSON object on one line, appended by a single write to a file opened with O_APPEND, so that lines of
several processes never mix. Events carry no attempt: a launcher starts an attempt only once every process of the one
before is gone, so what stands after a `restarted` line belongs to it. Goodput, watchdog, post mortem and metrics are
all made from this file alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

EVENTS = "events.jsonl"
"""The log's name in a run's folder."""
LAUNCHER = -1
"""The rank of the launcher's own events."""

PhaseName = Literal["rendezvous", "loading", "training", "compile", "checkpoint", "evaluation", "ending"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """What every event says."""

    kind: ClassVar[str]
    at: float = field(default_factory=time.time)
    """Unix time in seconds, of the machine that wrote it."""
    rank: int = LAUNCHER
    """The process it is about."""


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A launch begins with its first attempt."""

    kind: ClassVar[str] = "started"
    attempt: int
    """Counts over all launches of the run, from 1."""
    world_size: int
    command: tuple[str, ...] = ()
    host: str = ""


@dataclass(frozen=True, kw_only=True)
class Restarted(Event):
    """The ranks were started again after a failure."""

    kind: ClassVar[str] = "restarted"
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Entered(Event):
    """A rank enters a phase; the watchdog gives each its own patience."""

    kind: ClassVar[str] = "entered"
    phase: PhaseName


@dataclass(frozen=True, kw_only=True)
class Rendezvous(Event):
    """A rank has met the others."""

    kind: ClassVar[str] = "rendezvous"
    world_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Loaded(Event):
    """A rank holds model and optimiser and goes on from a step."""

    kind: ClassVar[str] = "loaded"
    step: int
    """Steps already done, as the checkpoint says; 0 for a fresh run."""


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """Heartbeat: steps done since the one before."""

    kind: ClassVar[str] = "step"
    step: int
    """Steps done in all."""
    num_steps: int = 1
    """Steps this event stands for, itself included."""
    compute_seconds: float | None = None
    """Mean seconds per step that the rank worked by itself, waiting for others left out."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint is durable."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    stall_seconds: float
    """How long training stood still for it."""
    write_seconds: float = 0.0
    """From its beginning until it was durable."""
    slowed_seconds: float | None = None
    """What the steps beside the write took longer, all together; None where nobody compared them."""


@dataclass(frozen=True, kw_only=True)
class StoppedEarly(Event):
    """Training ended before its last step by its own decision: no failure, and nothing to start again."""

    kind: ClassVar[str] = "stopped-early"
    step: int
    """Steps done."""
    reason: str
    """In a sentence."""


@dataclass(frozen=True, kw_only=True)
class RankFailed(Event):
    """An exception ended a rank, as the rank itself says."""

    kind: ClassVar[str] = "failed"
    error: str


@dataclass(frozen=True, kw_only=True)
class Crash(Event):
    """The launcher saw a rank end that should not have."""

    kind: ClassVar[str] = "crash"
    exit_code: int
    """As Python gives it: negative for a signal."""
    cause: str
    """In words."""
    step: int = 0
    """Steps the attempt had done."""


@dataclass(frozen=True, kw_only=True)
class Hang(Event):
    """A rank said nothing for longer than its phase allows. `rank` is the one that did not arrive, if known."""

    kind: ClassVar[str] = "hang"
    missing: tuple[int, ...]
    """Ranks that did not arrive; empty when nothing tells."""
    silent_seconds: float
    phase: str
    collective: str = ""
    """The operation the others wait in."""
    evidence: tuple[str, ...] = ()
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Straggler(Event):
    """A rank is persistently slower by its own work than the others."""

    kind: ClassVar[str] = "straggler"
    slowdown: float
    """Its compute time over the median of the others'."""
    step: int


@dataclass(frozen=True, kw_only=True)
class Decided(Event):
    """What the launcher does about a failure, and why."""

    kind: ClassVar[str] = "decided"
    action: Literal["restart", "stop"]
    reason: str
    suspects: tuple[int, ...] = ()
    """Ranks that failed more than once."""


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The launch is over."""

    kind: ClassVar[str] = "finished"
    outcome: Literal["done", "stopped", "interrupted"]
    reason: str = ""


_KINDS: dict[str, type[Event]] = {
    one.kind: one
    for one in (
        Started, Restarted, Entered, Rendezvous, Loaded, Step, CheckpointSaved,
        StoppedEarly, RankFailed, Crash, Hang, Straggler, Decided, Finished,
    )
}  # fmt: skip


def append(path: Path, event: Event) -> None:
    """Write one event as one line. Safe from any process and thread; the line is in the file when this returns."""
    line = json.dumps({"kind": event.kind, **asdict(event)}) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read_events(path: Path) -> list[Event]:
    """All events in the order they were written; a torn last line and kinds of a later version are left out."""
    return EventTail(path).read()


@dataclass(frozen=True, kw_only=True)
class FailureHistory:
    """How often a run has failed so far, restarts included."""

    num_failures: int = 0
    observed_seconds: float = 0.0
    """Under a launcher, from its start to its last event."""


def failure_history(path: Path) -> FailureHistory:
    """Of the run whose event log this is; none without a log."""
    failures, observed, began, last = 0, 0.0, None, 0.0
    for event in read_events(path):
        if isinstance(event, Started):
            observed += 0.0 if began is None else last - began
            began = last = event.at
        failures += isinstance(event, Crash | Hang)
        last = max(last, event.at)
    return FailureHistory(num_failures=failures, observed_seconds=observed + (last - began if began else 0.0))


class EventTail:
    """Reads what was appended since the last look."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def read(self) -> list[Event]:
        """The new whole lines."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for line in whole.splitlines() if (event := _parse(line)) is not None]


def _parse(line: bytes) -> Event | None:
    try:
        document = json.loads(line)
        made = _KINDS[document.pop("kind")]
        known = {one.name for one in fields(made)}
        return made(**{name: _frozen(value) for name, value in document.items() if name in known})
    except (ValueError, KeyError, TypeError, AttributeError):
        # A disk that was full may have cut a line short: what the run did is worth more than that line.
        return None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Heartbeat:
    """What a rank's training loop calls after every step; it writes at most one event per `every_seconds`.

    Steps in between are counted, so that no work is lost from the account, and their compute times averaged.
    """

    def __init__(self, path: Path, rank: int, *, every_seconds: float = 1.0) -> None:
        self._path, self._rank, self._every = path, rank, every_seconds
        self._written_at = float("-inf")
        self._unwritten = 0
        self._compute: list[float] = []
        self._step = 0
        self._closed = False

    def __call__(self, step: int, compute_seconds: float | None = None) -> None:
        """`step` steps are done; `compute_seconds` went into this one without waiting for other ranks."""
        self._step = step
        self._unwritten += 1
        if compute_seconds is not None:
            self._compute.append(compute_seconds)
        if time.monotonic() - self._written_at >= self._every:
            self.flush()

    def flush(self) -> None:
        """Write the steps that were only counted so far."""
        if not self._unwritten:
            return
        mean = sum(self._compute) / len(self._compute) if self._compute else None
        self.tell(Step(step=self._step, num_steps=self._unwritten, compute_seconds=mean, rank=self._rank))
        self._written_at, self._unwritten = time.monotonic(), 0
        self._compute.clear()

    def loaded(self, step: int) -> None:
        """Model and optimiser are there; training goes on after `step` steps."""
        self.tell(Loaded(step=step, rank=self._rank))

    def entered(self, phase: PhaseName) -> None:
        """Something other than training begins, or training goes on."""
        self.flush()
        self.tell(Entered(phase=phase, rank=self._rank))

    def saved(
        self, step: int, *, stall_seconds: float, write_seconds: float, slowed_seconds: float | None = None
    ) -> None:
        """A checkpoint is durable."""
        self.flush()
        self.tell(
            CheckpointSaved(
                step=step,
                stall_seconds=stall_seconds,
                write_seconds=write_seconds,
                slowed_seconds=slowed_seconds,
                rank=self._rank,
            )
        )

    def stopped(self, step: int, reason: str) -> None:
        """Training ended early, by its own decision."""
        self.flush()
        self.tell(StoppedEarly(step=step, reason=reason, rank=self._rank))

    def close(self) -> None:
        """The rank is through; what is left is the end of its process."""
        if not self._closed:
            self.entered("ending")
            self._closed = True

    def tell(self, event: Event) -> None:
        """Append any event; a disk that is full costs the line, not the run."""
        with suppress(OSError):
            append(self._path, event)


def as_document(event: Event) -> Mapping[str, Any]:
    """The event as JSON-ready values."""
    return {"kind": event.kind, **asdict(event)}
