"""A worker: claims rows, calls a function on them, writes what it returns, until there is no more or it is stopped.

    claim ---> function(batch) ---> settle this claim and take the next: one round trip, one commit
                    |  raises: the batch is halved until the failing row is alone
                    |  SIGTERM: the claim is given back untried

Meanwhile a thread with a connection of its own, the heartbeat, renews the lease every third of it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from pleinair.krablet.claims import (
    FIRST,
    Ask,
    Claim,
    Outcome,
    Settled,
    Settlement,
    Sweep,
    exchange,
    release_rows,
    renew_lease,
    settlement,
    sweep_from_anywhere,
)
from pleinair.krablet.connections import Session
from pleinair.krablet.stages import Stage
from pleinair.records.errors import DatabaseError, QueueError

Row = dict[str, object]
Function = Callable[[list[Row]], Sequence[Outcome]]
"""Gets rows, returns for each, in order, the columns to write or the exception that says why it failed."""

PATIENCE_SECONDS = 60.0
_EMPTY_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 1.0


class Stopped(BaseException):
    """Raised inside a worker function by SIGTERM. Not an Exception: a function that catches those must not keep it."""


def work(
    stages: Stage | Sequence[Stage],
    functions: Function | Mapping[str, Function],
    *,
    stop: Callable[[], bool] = lambda: False,
    idle: str = "exit",
    on_settled: Callable[[Stage, Settled], None] = lambda stage, settled: None,
    batches: Mapping[str, int] | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Settled:
    """Be a worker of these stages; what was done in all.

    `functions` is one function for all stages or one per stage, by its name
    or "table.stage"; `batches` overrides batch sizes likewise.
    With idle="exit" it returns when no row is claimable now, with idle="wait" it looks again, at most a second later,
    until `stop()` is true. A function may raise or return exceptions in place of results: those rows fail, wait, and
    are tried again; it must bear being called again with part of a batch. SIGTERM (in the main thread) gives the rows
    in work back and returns. A lost server is waited for `patience_seconds`, then DatabaseError.
    """
    if idle not in ("exit", "wait"):
        raise QueueError(f"idle is {idle!r}: use 'exit' or 'wait'")
    listed = [stages] if isinstance(stages, Stage) else list(stages)
    named = {stage.label: _function_of(stage, functions) for stage in listed}
    sizes = {stage.label: _batch_of(stage, batches or {}) for stage in listed}
    worker = _Worker(listed, named, sizes, on_settled, patience_seconds)
    try:
        with worker.stopping_on_sigterm():
            return worker.run(stop, wait=idle == "wait")
    finally:
        worker.close()


def _function_of(stage: Stage, functions: Function | Mapping[str, Function]) -> Function:
    if not isinstance(functions, Mapping):
        return functions
    for name in (stage.label, stage.name):
        if name in functions:
            return functions[name]
    raise QueueError(f"stage {stage.label} has no function: give functions[{stage.name!r}]")


def _batch_of(stage: Stage, batches: Mapping[str, int]) -> int:
    return batches.get(stage.label, batches.get(stage.name, stage.batch))


def outcomes_of(function: Function, rows: list[Row]) -> list[Outcome]:
    """Call `function`; when it raises, halve the batch until the failing row is alone, so that it fails alone."""
    try:
        results = list(function(rows))
        if len(results) != len(rows):
            raise QueueError(
                f"the function returned {len(results)} results for {len(rows)} rows: "
                "return one dict (or exception) per row, in order"
            )
        return results
    except Exception as error:
        if len(rows) == 1:
            return [error]
        half = len(rows) // 2
        return outcomes_of(function, rows[:half]) + outcomes_of(function, rows[half:])


class _Turns:
    """Which stage to claim from next: in turn, those found empty a moment ago only when nothing else is left."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = list(stages)
        self._empty_until = dict.fromkeys(range(len(stages)), 0.0)
        self._unconfirmed = set(range(len(stages)))
        self._place = -1

    def next(self) -> Stage:
        count, now = len(self._stages), time.monotonic()
        order = [(self._place + step) % count for step in range(1, count + 1)]
        likely = [place for place in order if self._empty_until[place] <= now]
        unconfirmed = [place for place in order if place in self._unconfirmed]
        self._place = (likely or unconfirmed or order)[0]
        return self._stages[self._place]

    def found_rows(self) -> None:
        self._empty_until[self._place] = 0.0
        self._unconfirmed = set(range(len(self._stages)))

    def found_none(self) -> None:
        self._empty_until[self._place] = time.monotonic() + _EMPTY_SECONDS
        self._unconfirmed.discard(self._place)

    def all_empty(self) -> bool:
        """True when every stage was asked since the last row was found: that row may have made others ready."""
        return not self._unconfirmed

    def ask_again(self) -> None:
        self._unconfirmed = set(range(len(self._stages)))


class _Worker:
    def __init__(
        self,
        stages: Sequence[Stage],
        functions: Mapping[str, Function],
        batches: Mapping[str, int],
        on_settled: Callable[[Stage, Settled], None],
        patience_seconds: float,
    ) -> None:
        self._turns = _Turns(stages)
        self._functions = functions
        self._batches = batches
        self._on_settled = on_settled
        self._sweeps: dict[str, Sweep] = {}
        self._session = stages[0].session.fresh(patience_seconds)
        self._heartbeat = _Heartbeat(stages[0].session.fresh(0.0), min(stage.lease_seconds for stage in stages) / 3)
        self._stopped = False
        self._in_function = False

    def run(self, stop: Callable[[], bool], *, wait: bool) -> Settled:
        done, settling, pause = Settled(), None, 0.05
        while not (self._stopped or stop()):
            stage = self._turns.next()
            done, claim, more = self._take(done, settling, stage)
            settling = None
            if claim is not None:
                self._turns.found_rows()
                settling, pause = self._process(stage, claim), 0.05
            elif not more:
                self._turns.found_none()
                if self._turns.all_empty():
                    if not wait:
                        break
                    self._pause(pause, stop)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                    self._turns.ask_again()
        return self._exchange(done, settling, None, FIRST)[0]

    def _take(self, done: Settled, settling: Settlement | None, stage: Stage) -> tuple[Settled, Claim | None, bool]:
        """Settle and ask once; the last value is False when the stage has nothing claimable anywhere."""
        sweep = self._sweep_of(stage)
        ask = sweep.ask()
        done, claim = self._exchange(done, settling, stage, ask)
        return done, claim, sweep.took(ask, claim)

    def _sweep_of(self, stage: Stage) -> Sweep:
        if stage.label not in self._sweeps:
            self._sweeps[stage.label] = sweep_from_anywhere(self._session, stage)
        return self._sweeps[stage.label]

    def _exchange(
        self, done: Settled, settling: Settlement | None, stage: Stage | None, ask: Ask
    ) -> tuple[Settled, Claim | None]:
        if settling is None and stage is None:
            return done, None
        batch = 0 if stage is None else self._batches[stage.label]
        settled, claim = exchange(self._session, settling, stage, batch, ask)
        if settling is not None:
            self._on_settled(settling.stage, settled)
        return done + settled, claim

    def _process(self, stage: Stage, claim: Claim) -> Settlement | None:
        """Call the function under a heartbeat. None when SIGTERM came: the rows are given back."""
        try:
            with self._heartbeat.holding(stage, claim):
                return settlement(stage, claim, self._call(self._functions[stage.label], claim.rows))
        except Stopped:
            self._session.run(lambda connection: release_rows(connection, stage, claim))
            return None
        except BaseException:
            with suppress(DatabaseError):
                self._session.run(lambda connection: release_rows(connection, stage, claim))
            raise

    def _call(self, function: Function, rows: list[Row]) -> list[Outcome]:
        self._in_function = True
        try:
            if self._stopped:
                raise Stopped
            return outcomes_of(function, rows)
        finally:
            self._in_function = False

    def _pause(self, seconds: float, stop: Callable[[], bool]) -> None:
        until = time.monotonic() + seconds
        while not (self._stopped or stop()) and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))

    @contextmanager
    def stopping_on_sigterm(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True
        # Only the function is interrupted: a statement on its way to the server is let finish.
        if self._in_function:
            self._in_function = False
            raise Stopped

    def close(self) -> None:
        self._heartbeat.close()
        self._session.close()


class _Heartbeat:
    """A thread that renews the lease of the claim in work; it needs the GIL now and then, as any Python thread."""

    def __init__(self, session: Session, interval_seconds: float) -> None:
        self._session = session
        self._interval_seconds = interval_seconds
        self._held: tuple[Stage, Claim] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pleinair-heartbeat", daemon=True)
        self._thread.start()

    @contextmanager
    def holding(self, stage: Stage, claim: Claim) -> Iterator[None]:
        self._held = (stage, claim)
        try:
            yield
        finally:
            self._held = None

    def _beat(self) -> None:
        while not self._closing.wait(self._interval_seconds):
            held = self._held
            if held is not None:
                # Postgres away now: the next beat tries again, and the claiming session reports it if it stays away.
                with suppress(DatabaseError):
                    self._session.run(lambda connection, held=held: renew_lease(connection, *held))  # type: ignore[misc]
        self._session.close()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=15.0)
