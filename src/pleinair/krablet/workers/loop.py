"""A worker: claims rows, calls a function on them, writes what it returns, until there is no more or it is stopped.

    claim ---> function(batch) ---> settle this claim and take the next: one round trip, one commit
                    |  raises: the batch is halved until the failing row is alone
                    |  SIGTERM: the claim is given back untried

Meanwhile a thread with a connection of its own, the heartbeat, renews the lease every third of it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from pleinair.krablet.claims import (
    Claim,
    Outcome,
    Settled,
    Settlement,
    Sweep,
    allowed_rows,
    exchange,
    on_holders,
    release_rows,
    renew_lease,
    settle_again,
    settlement,
    sweep_from_anywhere,
)
from pleinair.krablet.shards import Shard, Shards
from pleinair.krablet.stages import Stage
from pleinair.krablet.watching.work_log import WorkLog
from pleinair.krablet.workers.sigterm import on_sigterm
from pleinair.records.errors import DatabaseError, QueueError

Row = dict[str, object]
Function = Callable[[list[Row]], Sequence[Outcome]]
"""Gets rows, returns for each, in order, the columns to write or the exception that says why it failed."""

PATIENCE_SECONDS = 60.0
_EMPTY_SECONDS = 0.2
_COVER_SECONDS = 5.0
_LIMITED_PAUSE_SECONDS = 0.05
_FIRST_TOLD_SECONDS, _TOLD_SECONDS = 0.5, 5.0
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
        with on_sigterm(worker.end):
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


@dataclass(eq=False)
class _Post:
    """Where a worker may claim: one stage on one shard, and how far its walk there has come."""

    stage: Stage
    shard: Shard
    sweep: Sweep
    empty_until: float = 0.0


class _Turns:
    """Which post to claim at next: in turn, those found empty a moment ago only when nothing else is left."""

    def __init__(self) -> None:
        self._posts: list[_Post] = []
        self._unconfirmed: list[_Post] = []
        self._last: _Post | None = None

    def cover(self, stages: Sequence[Stage], shards: Shards) -> None:
        """Have one post for every stage on every shard; those there already stay as they are."""
        there = {(post.stage.label, post.shard.number): post for post in self._posts if post.shard in shards.all}
        wanted = [(stage, shard) for shard in _from_anywhere(shards.all) for stage in stages]
        self._posts = [
            there.get((stage.label, shard.number)) or _Post(stage, shard, sweep_from_anywhere(shard, stage))
            for stage, shard in wanted
        ]
        self.ask_again()

    def next(self) -> _Post:
        start = self._posts.index(self._last) + 1 if self._last in self._posts else 0
        order = self._posts[start:] + self._posts[:start]
        likely = [post for post in order if post.empty_until <= time.monotonic()]
        unconfirmed = [post for post in order if post in self._unconfirmed]
        self._last = (likely or unconfirmed or order)[0]
        return self._last

    def found_rows(self, post: _Post) -> None:
        post.empty_until = 0.0
        self.ask_again()

    def found_none(self, post: _Post) -> None:
        post.empty_until = time.monotonic() + _EMPTY_SECONDS
        if post in self._unconfirmed:
            self._unconfirmed.remove(post)

    def all_empty(self) -> bool:
        """True when every post was asked since the last row was found: that row may have made others ready."""
        return not self._unconfirmed

    def ask_again(self) -> None:
        self._unconfirmed = list(self._posts)


def _from_anywhere(shards: Sequence[Shard]) -> Sequence[Shard]:
    """The shards from a random one on, so that workers spread over them."""
    start = random.randrange(len(shards))
    return [*shards[start:], *shards[:start]]


class _Worker:
    def __init__(
        self,
        stages: Sequence[Stage],
        functions: Mapping[str, Function],
        batches: Mapping[str, int],
        on_settled: Callable[[Stage, Settled], None],
        patience_seconds: float,
    ) -> None:
        self._stages = stages
        self._functions = functions
        self._batches = batches
        self._on_settled = on_settled
        self._shards = stages[0].shards.fresh(patience_seconds)
        self._log = WorkLog(stages)
        interval = min(stage.lease_seconds for stage in stages) / 3
        self._heartbeat = _Heartbeat(stages[0].shards.fresh(0.0), interval, self._log)
        self._turns = _Turns()
        self._covered_at = 0.0
        self._stopped = False
        self._in_function = False

    def run(self, stop: Callable[[], bool], *, wait: bool) -> Settled:
        done, settling, pause = Settled(), None, 0.05
        while not (self._stopped or stop()):
            self._cover()
            post = self._turns.next()
            done, claim, more = self._take(done, settling, post)
            settling = None
            if claim is not None:
                self._turns.found_rows(post)
                settling, pause = self._process(post, claim), 0.05
            elif not more:
                self._turns.found_none(post)
                if self._turns.all_empty():
                    if not wait:
                        break
                    self._pause(pause, stop)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                    self._turns.ask_again()
        return done if settling is None else done + self._settle(settling)

    def _cover(self) -> None:
        """Look now and then for shards that joined or left, and for limits that people set."""
        if time.monotonic() - self._covered_at > _COVER_SECONDS:
            if self._covered_at:
                self._shards.reload()
            for stage in self._stages:
                stage.control()
            self._turns.cover(self._stages, self._shards)
            self._covered_at = time.monotonic()

    def _take(self, done: Settled, settling: Settlement | None, post: _Post) -> tuple[Settled, Claim | None, bool]:
        """Settle and ask once; the last value is False when the post has nothing claimable."""
        ask, together = post.sweep.ask(), settling is not None and settling.claim.shard == post.shard.number
        if settling is not None and not together:
            done += self._settle(settling)
        batch = allowed_rows(post.shard, post.stage, self._batches[post.stage.label])
        if batch == 0:
            done += Settled() if settling is None or not together else self._settle(settling)
            time.sleep(_LIMITED_PAUSE_SECONDS)
            return done, None, True
        settled, claim = exchange(post.shard, settling if together else None, post.stage, batch, ask)
        if settling is not None and together:
            done += self._noted(settling, settled)
        return done, claim, post.sweep.took(ask, claim)

    def _settle(self, settling: Settlement) -> Settled:
        return self._noted(settling, exchange(self._shards[settling.claim.shard], settling)[0])

    def _noted(self, settling: Settlement, settled: Settled) -> Settled:
        if settled.lost:
            settled = settle_again(self._shards, settling, settled)
        self._log.add(settling.stage, settled)
        self._on_settled(settling.stage, settled)
        return settled

    def _process(self, post: _Post, claim: Claim) -> Settlement | None:
        """Call the function under a heartbeat. None when SIGTERM came: the rows are given back."""
        stage = post.stage
        try:
            with self._heartbeat.holding(stage, claim):
                return settlement(stage, claim, self._call(self._functions[stage.label], claim.rows))
        except Stopped:
            on_holders(self._shards, stage, claim, release_rows)
            return None
        except BaseException:
            with suppress(DatabaseError):
                on_holders(self._shards, stage, claim, release_rows)
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

    def end(self) -> None:
        """Stop after what is in work; the function is interrupted and its rows are given back."""
        self._stopped = True
        # Only the function is interrupted: a statement on its way to the server is let finish.
        if self._in_function:
            self._in_function = False
            raise Stopped

    def close(self) -> None:
        self._heartbeat.close()
        self._shards.close()


class _Heartbeat:
    """A thread that renews the lease of the claim in work and says what was done; it needs the GIL now and then."""

    def __init__(self, shards: Shards, interval_seconds: float, log: WorkLog) -> None:
        self._shards = shards
        self._interval_seconds = interval_seconds
        self._log = log
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
        renew_at, tell_at = self._interval_seconds, _FIRST_TOLD_SECONDS
        began = time.monotonic()
        # Postgres away now: the next beat tries again, and the claiming session reports it if it stays away.
        while not self._closing.wait(max(0.0, began + min(renew_at, tell_at) - time.monotonic())):
            if (now := time.monotonic() - began) >= renew_at:
                renew_at = now + self._interval_seconds
                if (held := self._held) is not None:
                    with suppress(DatabaseError):
                        on_holders(self._shards, *held, renew_lease)
            if now >= tell_at:
                tell_at = now + _TOLD_SECONDS
                with suppress(DatabaseError):
                    self._shards.catalog.run(self._log.write)
        with suppress(DatabaseError):
            self._shards.catalog.run(self._log.close)
        self._shards.close()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=15.0)
