"""Starting the ranks of a run, watching them, and starting them again from the last checkpoint.

    launch -> attempt 1: ranks start -> meet -> load -> step, step, ...      every one appends to RUN/events.jsonl
                 |  a rank ends, or is silent for too long
                 v
              ask every rank where it is -> name the missing one -> end all -> decide -> attempt 2 ... | stop

The launcher does not care what it starts: the command resumes by itself, and a program that calls `cluster.rank.arm`
and its heartbeat is watched for hangs as well. One machine so far; ranks die with their launcher however it dies.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Literal

from pleinair.cluster import rank as rank_side
from pleinair.cluster.missing import Missing, find_missing, read_answer, where_it_stands
from pleinair.cluster.processes import RankGroup
from pleinair.cluster.restarts import RestartConfig, Restarts
from pleinair.cluster.stragglers import StragglerConfig, Stragglers
from pleinair.cluster.watchdog import Silence, Watchdog, WatchdogConfig
from pleinair.records.run_events import (
    EVENTS,
    CheckpointSaved,
    Crash,
    Decided,
    Event,
    EventTail,
    Finished,
    Hang,
    Loaded,
    RankFailed,
    Restarted,
    Started,
    Step,
    append,
    read_events,
)

_POLL_SECONDS = 0.05
_SETTLE_SECONDS = 0.5
"""After a first rank has ended: time for others to show that they ended earlier, or for a reason of their own."""
_PEER_ERRORS = ("closed by peer", "reset by peer", "broken pipe", "timed out waiting", "remote process exited")


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How to run the ranks of one run on this machine."""

    run_dir: Path
    """Events and logs go here."""
    nproc: int = 1
    """Ranks."""
    restarts: RestartConfig = field(default_factory=RestartConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    stragglers: StragglerConfig = field(default_factory=StragglerConfig)
    init_timeout_seconds: float = 600.0
    """For all ranks to meet; long, since a group that is formed anew on a busy machine takes its time."""
    collective_timeout_seconds: float = 600.0
    """For one collective; above the watchdog's patience, so that the launcher can ask before torch aborts."""
    answer_seconds: float = 5.0
    """How long ranks may take to say where they are before they are ended."""
    stop_grace_seconds: float = 30.0
    """For ranks to end by themselves after Ctrl-C or SIGTERM."""
    heartbeat_seconds: float = 1.0
    """Least time between two step events of a rank."""
    trace_buffer: int = 2000
    """Collectives that torch's flight recorder remembers in each rank."""
    show_rank: int | None = 0
    """Whose output is also shown here; None for nobody's."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Further variables for the ranks."""

    def __post_init__(self) -> None:
        if self.nproc < 1:
            raise ValueError(f"nproc is {self.nproc}: a run has at least one rank")

    @property
    def events(self) -> Path:
        """The run's event log."""
        return self.run_dir / EVENTS


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a launch ended."""

    outcome: Literal["done", "stopped", "interrupted"]
    reason: str
    attempts: int
    """Of this launch."""
    gave_up: bool = False
    """Whether it stopped because a rank asked for it (exit code 93)."""


@dataclass(frozen=True)
class _Ended:
    """How one attempt ended."""

    event: Crash | Hang | None = None
    interrupted: bool = False


def launch(
    command: Sequence[str], config: LaunchConfig, *, on_message: Callable[[str], None] = lambda said: print(said)
) -> Outcome:
    """Run `command` as `nproc` ranks until it ends well, the stop rule ends it, or a signal does.

    Call it in the main thread: it takes SIGINT and SIGTERM while it runs, and passes the first one on to the ranks.
    """
    config.run_dir.mkdir(parents=True, exist_ok=True)
    durable, number = _state_so_far(config.events)
    restarts = Restarts(config.restarts, durable)
    append(
        config.events,
        Started(attempt=number, world_size=config.nproc, command=tuple(command), host=socket.gethostname()),
    )
    first = number
    with _stop_signals() as received:
        while True:
            attempt = _Attempt(command, config, number, durable, received)
            ended = attempt.run()
            if ended.event is None:
                return _finish(config, "interrupted" if ended.interrupted else "done", "", number - first + 1)
            durable = max(durable, attempt.durable_step)
            decided = _decide(restarts, ended.event, durable)
            append(config.events, decided)
            on_message(_told(ended.event, decided, attempt))
            if decided.action == "stop":
                gave_up = isinstance(ended.event, Crash) and ended.event.exit_code == rank_side.GIVE_UP
                return replace(_finish(config, "stopped", decided.reason, number - first + 1), gave_up=gave_up)
            if _sleep(restarts.pause_seconds(), received):
                return _finish(config, "interrupted", "", number - first + 1)
            number += 1
            append(config.events, Restarted(attempt=number))


def _state_so_far(events: Path) -> tuple[int, int]:
    """The furthest durable step and the number of the next attempt."""
    durable, number = 0, 0
    for event in read_events(events):
        if isinstance(event, CheckpointSaved | Loaded):
            durable = max(durable, event.step)
        elif isinstance(event, Started | Restarted):
            number = max(number, event.attempt)
    return durable, number + 1


def _decide(restarts: Restarts, failure: Crash | Hang, durable: int) -> Decided:
    if isinstance(failure, Hang):
        return restarts.decide(failure.missing, durable)
    return restarts.decide((failure.rank,), durable, give_up=failure.exit_code == rank_side.GIVE_UP)


def _finish(
    config: LaunchConfig, outcome: Literal["done", "stopped", "interrupted"], reason: str, attempts: int
) -> Outcome:
    append(config.events, Finished(outcome=outcome, reason=reason))
    return Outcome(outcome=outcome, reason=reason, attempts=attempts)


def _told(failure: Crash | Hang, decided: Decided, attempt: _Attempt) -> str:
    """One sentence for a person."""
    if isinstance(failure, Crash):
        what = f"rank {failure.rank} {failure.cause} after step {failure.step}"
    else:
        who = f"rank {', '.join(map(str, failure.missing))} is missing" if failure.missing else "nobody is named"
        what = f"no step for {failure.silent_seconds:.0f} s after step {failure.step}: {who}"
        what += "".join(f"; {one}" for one in failure.evidence)
    return f"{what}: {decided.reason}; logs: {attempt.directory}"


class _Attempt:
    """One life of the ranks."""

    def __init__(
        self, command: Sequence[str], config: LaunchConfig, number: int, durable_step: int, received: list[int]
    ) -> None:
        self.directory = config.run_dir / "logs" / f"attempt-{number:02d}"
        self.durable_step, self.step = durable_step, durable_step
        self._config, self._received = config, received
        self._tail = EventTail(config.events, from_end=True)
        self._failed: dict[int, RankFailed] = {}
        self._stragglers = Stragglers(config.stragglers, config.nproc)
        self._group = RankGroup(command, config.nproc, self.directory, _environment(config, self.directory))
        self._watchdog = Watchdog(config.watchdog, config.nproc, time.monotonic())
        self._shown = 0

    def run(self) -> _Ended:
        """Watch the ranks to the end of the attempt; none runs when this returns."""
        try:
            return self._watch()
        finally:
            self._group.end(0.0)
            self._show()

    def _watch(self) -> _Ended:
        while True:
            self._hear()
            self._show()
            if self._received:
                self._group.send(signal.Signals(self._received[0]))
                self._group.wait(self._config.stop_grace_seconds)
                return _Ended(interrupted=True)
            codes = self._group.exit_codes()
            if self._failed or any(codes.values()):
                return _Ended(self._crash())
            if len(codes) == self._config.nproc:
                return _Ended()
            for ended in codes:
                self._watchdog.ended(ended)
            silence = self._watchdog.overdue(time.monotonic())
            if silence is not None:
                return _Ended(self._hang(silence))
            time.sleep(_POLL_SECONDS)

    def _hear(self) -> None:
        """Take in what the ranks appended."""
        now = time.monotonic()
        for event in self._tail.read():
            self._watchdog.hear(event, now)
            self._note(event)

    def _note(self, event: Event) -> None:
        match event:
            case Step():
                self.step = max(self.step, event.step)
                for straggler in self._stragglers.hear(event):
                    append(self._config.events, straggler)
            case CheckpointSaved():
                self.durable_step = max(self.durable_step, event.step)
            case Loaded():
                self.durable_step, self.step = max(self.durable_step, event.step), event.step
            case RankFailed():
                self._failed.setdefault(event.rank, event)

    def _crash(self) -> Crash:
        """Which rank was the first to fail, and of what."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while self._group.running() and time.monotonic() < deadline:
            if any(code < 0 for code in self._group.exit_codes().values()):
                break  # a signal from outside comes before whatever it led to
            time.sleep(_POLL_SECONDS)
        self._hear()
        codes = dict.fromkeys(self._failed, 1)  # what the process will end with once it has cleaned up
        codes |= {rank: code for rank, code in self._group.exit_codes().items() if code}
        rank = min(codes, key=lambda one: self._blame(one, codes[one]))
        crash = Crash(rank=rank, exit_code=codes[rank], cause=self._cause(rank, codes[rank]), step=self.step)
        append(self._config.events, crash)
        return crash

    def _blame(self, rank: int, code: int) -> tuple[int, float]:
        """Sorts the rank that failed by itself before those that failed because of it."""
        said = self._failed.get(rank)
        if code < 0 and code != -signal.SIGABRT:
            return 0, 0.0
        by_peer = said is not None and any(word in said.error.lower() for word in _PEER_ERRORS)
        return (2 if by_peer else 1), said.at if said else 0.0

    def _cause(self, rank: int, code: int) -> str:
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        if rank in self._failed:
            return f"ended with {self._failed[rank].error}"
        return f"ended with exit code {code}"

    def _hang(self, silence: Silence) -> Hang:
        """Ask every rank where it is, and name the one that did not arrive."""
        asked = self._ask()
        paths = {rank: self.directory / f"rank-{rank}.answer.json" for rank in range(self._config.nproc)}
        missing = find_missing({rank: read_answer(path) for rank, path in paths.items()})
        evidence = self._evidence(missing, asked)
        hang = Hang(
            rank=missing.ranks[0] if missing.ranks else silence.rank,
            missing=missing.ranks,
            silent_seconds=silence.seconds,
            phase=silence.phase,
            collective=missing.collective,
            evidence=evidence,
            step=self.step,
        )
        append(self._config.events, hang)
        return hang

    def _ask(self) -> list[int]:
        """Stacks and flight records of every rank that can be asked; returns those."""
        (self.directory / rank_side.ASKED).touch()
        asked = [rank for rank in self._group.running() if self._group.can_be_asked(rank)]
        for rank in asked:
            self._group.processes[rank].send_signal(signal.SIGUSR1)
        able = [rank for rank in asked if not self._group.state(rank).startswith("T")]
        deadline = time.monotonic() + self._config.answer_seconds
        while time.monotonic() < deadline:
            if all((self.directory / f"rank-{rank}.answer.json").exists() for rank in able):
                break
            time.sleep(_POLL_SECONDS)
        return asked

    def _evidence(self, missing: Missing, asked: list[int]) -> tuple[str, ...]:
        lines = list(missing.evidence)
        for rank in missing.ranks:
            state = self._group.state(rank)
            where = where_it_stands(self.directory / f"rank-{rank}.stacks")
            lines.append(f"rank {rank} is in state {state}" + (f", in {where}" if where else ""))
        if not asked:
            lines.append("no rank can be asked: the program does not call pleinair.cluster.rank.arm")
        return tuple(lines)

    def _show(self) -> None:
        """Copy what one rank printed since the last look."""
        if self._config.show_rank is None:
            return
        with self._group.logs[self._config.show_rank].open("rb") as log:
            log.seek(self._shown)
            new = log.read()
        if new:
            self._shown += len(new)
            sys.stdout.write(new.decode(errors="replace"))
            sys.stdout.flush()


def _environment(config: LaunchConfig, directory: Path) -> dict[str, str]:
    return {
        rank_side.ATTEMPT_DIR: str(directory.resolve()),
        rank_side.INIT_TIMEOUT: str(config.init_timeout_seconds),
        rank_side.COLLECTIVE_TIMEOUT: str(config.collective_timeout_seconds),
        rank_side.HEARTBEAT_EVERY: str(config.heartbeat_seconds),
        "TORCH_FR_BUFFER_SIZE": os.environ.get("TORCH_FR_BUFFER_SIZE", str(config.trace_buffer)),
        **config.environment,
    }


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The signals that asked us to stop, as they come; nothing is taken in a thread other than the main one."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sleep(seconds: float, received: list[int]) -> bool:
    """Wait; whether a signal came meanwhile."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not received:
        time.sleep(_POLL_SECONDS)
    return bool(received)
