"""What a run's time went into, from its event log alone.

    every second between the first event and the last belongs to one bucket:

    start | load | warm-up | productive  checkpoint  lost | detect  decide | start ...     down = no launcher ran
          ^meet  ^loaded   ^first step               ^    ^failure  ^decided
                                   steps after the last checkpoint: done, and thrown away by the failure

Goodput is productive time over wall time; MTBF is time under a launcher over failures; MTTR is told by its parts. Steps
are those of the lowest rank that tells of them, since all ranks step together. A failure is noticed some time after
the last heartbeat: what was done in between counts as `detect`, so with a heartbeat a second that part reads up to
a second (and a part of a step) too long.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pleinair.records.run_events import (
    LAUNCHER,
    CheckpointSaved,
    Crash,
    Entered,
    Event,
    Finished,
    Hang,
    Loaded,
    Rendezvous,
    Restarted,
    Started,
    Step,
)

BUCKETS = (
    "productive", "checkpoint", "evaluation", "lost", "start", "load", "warm-up", "detect", "decide", "end", "down",
)  # fmt: skip
REPAIR_PARTS = ("detect", "decide", "start", "load", "warm-up", "recompute")


@dataclass(frozen=True, kw_only=True)
class Repair:
    """One failure, and the seconds until the run was where it had been."""

    at: float
    """Unix time at which it was noticed."""
    detect: float = 0.0
    """From the last heartbeat until it was noticed."""
    decide: float = 0.0
    """Asking the ranks, ending them, pausing."""
    start: float = 0.0
    """Processes, imports, meeting."""
    load: float = 0.0
    warm_up: float = 0.0
    """From loaded until the first step was done."""
    recompute: float = 0.0
    """Doing the lost steps again."""
    lost_steps: int = 0

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return sum(self.part(name) for name in REPAIR_PARTS)

    def part(self, name: str) -> float:
        """Seconds of one of REPAIR_PARTS."""
        return float(getattr(self, name.replace("-", "_")))


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """What a run's time went into."""

    wall_seconds: float
    seconds: dict[str, float]
    """By bucket; they sum to `wall_seconds`."""
    repairs: tuple[Repair, ...] = ()
    steps: int = 0
    """The furthest step."""
    lost_steps: int = 0
    step_seconds: float | None = None
    """Median over productive steps."""

    @property
    def share(self) -> float:
        """Productive over wall time."""
        return self.seconds["productive"] / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def mtbf_seconds(self) -> float:
        """Time under a launcher per failure; infinite without one."""
        under = self.wall_seconds - self.seconds["down"]
        return under / len(self.repairs) if self.repairs else math.inf

    def mttr_seconds(self, part: str | None = None) -> float:
        """Mean seconds of a repair, or of one part of it; 0 without a failure."""
        if not self.repairs:
            return 0.0
        return statistics.fmean(one.seconds if part is None else one.part(part) for one in self.repairs)


@dataclass
class _Stretch:
    """Time that goes to one bucket."""

    bucket: str
    begin: float
    end: float
    steps: tuple[int, int] = (0, 0)
    """Steps done within, as (from, to]; to be split when some of them are lost."""
    stall: float = 0.0
    """Of it, standing still for checkpoints."""

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass
class _Account:
    """Goes through the log once."""

    stretches: list[_Stretch] = field(default_factory=list)
    """Of the past."""
    bucket: str = "start"
    """What goes on now."""
    begin: float = 0.0
    """Since when."""
    step: int = 0
    """Steps the current attempt has done."""
    stall: float = 0.0
    """Of checkpoints, not yet taken out of a stretch of training."""

    def hear(self, event: Event, at: float) -> None:
        """Time up to this event belongs to what went on before it."""
        before, after = self._bucket_before(event), self._bucket_after(event)
        if before == after and not isinstance(event, Step | Loaded):
            self.bucket = after
            return
        stretch = _Stretch(before, self.begin, at)
        if before == "productive":
            stretch.stall = min(self.stall, stretch.seconds)
            self.stall -= stretch.stall
        if isinstance(event, Step):
            stretch.steps = (min(self.step, event.step), event.step)
            self.step = event.step
        self.stretches.append(stretch)
        if isinstance(event, Loaded):
            self._lose_after(event.step)
        self.bucket, self.begin = after, at

    def _bucket_before(self, event: Event) -> str:
        match event:
            case Started():
                return "down"
            case Crash() | Hang() if self.bucket == "productive":
                return "detect"
            case _:
                return self.bucket

    def _bucket_after(self, event: Event) -> str:
        match event:
            case Started() | Restarted():
                self.stall = 0.0
                return "start"
            case Rendezvous():
                return "load"
            case Loaded():
                return "warm-up"
            case Step():
                return "productive"
            case CheckpointSaved():
                self.stall += event.stall_seconds
                return self.bucket
            case Entered():
                return _OF_PHASE[event.phase]
            case Crash() | Hang():
                return "decide"
            case Finished():
                return "down"
            case _:
                return self.bucket

    def _lose_after(self, step: int) -> None:
        """An attempt begins at `step`: what was done beyond it is lost. The stretch it lies in is split."""
        self.step = step
        kept: list[_Stretch] = []
        for one in self.stretches:
            first, last = one.steps
            if one.bucket != "productive" or last <= step or last == first:
                kept.append(one)
            elif first >= step:
                kept.append(_Stretch("lost", one.begin, one.end, one.steps))
            else:
                # The stall was that of the checkpoint at which the kept part ends.
                cut = one.begin + one.stall + (one.seconds - one.stall) * (step - first) / (last - first)
                cut = min(cut, one.end)
                kept.append(_Stretch("productive", one.begin, cut, (first, step), min(one.stall, cut - one.begin)))
                kept.append(_Stretch("lost", cut, one.end, (step, last)))
        self.stretches = kept


_OF_PHASE = {
    "rendezvous": "start",
    "loading": "load",
    "compile": "warm-up",
    "training": "productive",
    "checkpoint": "checkpoint",
    "evaluation": "evaluation",
    "ending": "end",
}


def measure_goodput(events: Sequence[Event]) -> Goodput:
    """Account for the time of a run; its event log may be that of a run that still goes on.

    Raises ValueError when there is no event.
    """
    if not events:
        raise ValueError("the run has no events: was it started by `pleinair train --supervise` or with --nproc?")
    ranks = [event.rank for event in events if isinstance(event, Step)] or [event.rank for event in events]
    leader = min(ranks)
    told = [event for event in events if event.rank in (LAUNCHER, leader) or isinstance(event, Crash | Hang)]
    times = _never_back(told)
    account = _Account(bucket=_first_bucket(told[0]), begin=times[0])
    for event, at in zip(told, times, strict=True):
        account.hear(event, at)
    account.stretches.append(_Stretch(account.bucket, account.begin, times[-1]))
    seconds = _sum_buckets(account.stretches)
    durations = [
        one.seconds / (one.steps[1] - one.steps[0])
        for one in account.stretches
        if one.bucket == "productive" and one.steps[1] > one.steps[0]
    ]
    repairs = tuple(_repairs(told, times))
    return Goodput(
        wall_seconds=times[-1] - times[0],
        seconds=seconds,
        repairs=repairs,
        steps=max((event.step for event in told if isinstance(event, Step | Loaded)), default=0),
        lost_steps=sum(one.steps[1] - one.steps[0] for one in account.stretches if one.bucket == "lost"),
        step_seconds=statistics.median(durations) if durations else None,
    )


def _first_bucket(first: Event) -> str:
    """The bucket a log begins in: a log that was cut may begin anywhere."""
    return "start" if isinstance(first, Started | Restarted) else "productive"


def _never_back(events: Sequence[Event]) -> list[float]:
    """Times of events in the order of the file, in which clocks of several processes never run backwards."""
    times: list[float] = []
    for event in events:
        times.append(max(event.at, times[-1]) if times else event.at)
    return times


def _sum_buckets(stretches: Sequence[_Stretch]) -> dict[str, float]:
    parts: dict[str, list[float]] = {bucket: [] for bucket in BUCKETS}
    for one in stretches:
        parts[one.bucket] += [one.seconds, -one.stall]
        parts["checkpoint"].append(one.stall)
    return {bucket: math.fsum(of_bucket) for bucket, of_bucket in parts.items()}


def _repairs(events: Sequence[Event], times: Sequence[float]) -> Iterator[Repair]:
    """Every failure with what followed it until the run was where it had been, or failed again."""
    failures = [index for index, event in enumerate(events) if isinstance(event, Crash | Hang)]
    for index, following in zip(failures, [*failures[1:], len(events)], strict=False):
        yield _repair(events[:following], times, index)


def _repair(events: Sequence[Event], times: Sequence[float], failure: int) -> Repair:
    before = [i for i in range(failure) if isinstance(events[i], Step | Loaded | CheckpointSaved | Entered | Restarted)]
    reached = max((event.step for event in events[:failure] if isinstance(event, Step | Loaded)), default=0)
    marks: dict[str, type[Event]] = {"decide": Restarted, "start": Rendezvous, "load": Loaded, "warm-up": Step}
    parts, at = {"detect": times[failure] - times[before[-1]] if before else 0.0}, failure
    for part, kind in marks.items():
        found = next((i for i in range(at + 1, len(events)) if isinstance(events[i], kind)), None)
        if found is None:
            continue  # it stopped here, or the program does not tell of this
        parts[part], at = times[found] - times[at], found
    loaded = next((event for event in events[failure:] if isinstance(event, Loaded)), None)
    if isinstance(events[at], Step):
        again = [i for i in range(at, len(events)) if isinstance(events[i], Step)]
        there = next((i for i in again if _step(events[i]) >= reached), again[-1])
        parts["recompute"] = times[there] - times[at]
    return Repair(
        at=times[failure],
        detect=parts["detect"],
        decide=parts.get("decide", 0.0),
        start=parts.get("start", 0.0),
        load=parts.get("load", 0.0),
        warm_up=parts.get("warm-up", 0.0),
        recompute=parts.get("recompute", 0.0),
        lost_steps=max(0, reached - loaded.step) if loaded else 0,
    )


def _step(event: Event) -> int:
    return event.step if isinstance(event, Step) else 0


def as_text(goodput: Goodput) -> str:
    """A few lines for a person: what the time went into, and what failures cost."""
    spent = sorted(((seconds, bucket) for bucket, seconds in goodput.seconds.items() if seconds > 0), reverse=True)
    lines = [
        f"goodput {goodput.share:.1%} of {format_seconds(goodput.wall_seconds)}, step {goodput.steps}: "
        + ", ".join(f"{bucket} {format_seconds(seconds)}" for seconds, bucket in spent)
    ]
    if goodput.repairs:
        parts = ", ".join(f"{name} {format_seconds(goodput.mttr_seconds(name))}" for name in REPAIR_PARTS)
        lines.append(
            f"{len(goodput.repairs)} failures, {goodput.lost_steps} steps lost; "
            f"MTBF {format_seconds(goodput.mtbf_seconds)}, MTTR {format_seconds(goodput.mttr_seconds())} ({parts})"
        )
    return "\n".join(lines)


def format_seconds(seconds: float) -> str:
    """A length of time in the unit one would say it in."""
    if math.isinf(seconds):
        return "endless"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
