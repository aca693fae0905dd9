"""A worker: claims rows, calls a function on them, writes what it returns, until there is no more or it is stopped.

    claim ---> slots: function(part), function(part) ... ---> settle what ended and claim for the free slots:
                    |  raises: the part is halved             one round trip, one commit
                    |          until the failing row is alone
                    |  SIGTERM: the rows are given back untried

One thread talks to the database for all slots: a thousand of them cost one connection per shard, and the more of them
end while a commit is on its way, the more the next one settles. Meanwhile another thread, the heartbeat, renews the
leases of all rows in work every third of them. With one slot the function runs in the thread that claims.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

from pleinair.krablet.claims import (
    Claim,
    Outcome,
    Settled,
    Settlement,
    allowed_rows,
    exchange,
    held_by_dead,
    on_holders,
    release_rows,
    settle,
    settle_again,
    settlement,
)
from pleinair.krablet.shards import Shard
from pleinair.krablet.stages import Stage
from pleinair.krablet.watching.work_log import WorkLog
from pleinair.krablet.workers.functions import Work
from pleinair.krablet.workers.heartbeat import Heartbeat
from pleinair.krablet.workers.line_watch import LineWatch
from pleinair.krablet.workers.parts import Part, by_claim, joined, split
from pleinair.krablet.workers.sigterm import on_sigterm
from pleinair.krablet.workers.slots import Slots, Stopped
from pleinair.krablet.workers.turns import Post, Turns
from pleinair.records.errors import ConfigError, DatabaseError, QueueError

PATIENCE_SECONDS = 60.0
LARGEST_CLAIM_ROWS = 512
"""Rows that one claim takes for several slots: beyond this, more rows a claim make none of them cheaper."""
_COVER_SECONDS = 5.0
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0


def work(
    stages: Stage | Sequence[Stage],
    functions: Work | Mapping[str, Work],
    *,
    slots: int = 1,
    own_slots: Mapping[str, int] | None = None,
    stop: Callable[[], bool] = lambda: False,
    idle: str = "exit",
    on_settled: Callable[[Stage, Settled], None] = lambda stage, settled: None,
    batches: Mapping[str, int] | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Settled:
    """Be a worker of these stages; what was done in all.

    `functions` is one for all stages or one per stage, by its name or "table.stage": a function, an async function, or
    an actor, a class whose instances are called; it is built once, here. A function may raise or return exceptions in
    place of results: those rows fail, wait, and are tried again; it must bear being called again with part of a batch.

    `slots` batches are in work at once, for functions that wait: sync ones in threads, async ones on one event loop.
    `own_slots` gives a stage slots of its own, `batches` a batch size of its own, by name likewise.

    With idle="exit" it returns when no row is claimable now, with idle="wait" it looks again, at most a second later,
    until `stop()` is true. SIGTERM (in the main thread) gives the rows in work back and returns: what runs in the main
    thread is interrupted, async functions are cancelled, and what runs in other threads is left to itself. A lost
    server is waited for `patience_seconds`, then DatabaseError.
    """
    if idle not in ("exit", "wait"):
        raise QueueError(f"idle is {idle!r}: use 'exit' or 'wait'")
    listed = [stages] if isinstance(stages, Stage) else list(stages)
    named = {stage.label: _function_of(stage, functions) for stage in listed}
    sizes = {stage.label: _named(stage, batches or {}, stage.batch) for stage in listed}
    own = {stage.label: number for stage in listed if (number := _named(stage, own_slots or {}, 0))}
    _check_slots(slots, own_slots or {})
    worker = _Worker(listed, Slots(named, slots, own), sizes, on_settled, patience_seconds)
    try:
        with on_sigterm(worker.end):
            return worker.run(stop, wait=idle == "wait")
    finally:
        worker.close()


def _function_of(stage: Stage, functions: Work | Mapping[str, Work]) -> Work:
    if not isinstance(functions, Mapping):
        return functions
    for name in (stage.label, stage.name):
        if name in functions:
            return functions[name]
    raise QueueError(f"stage {stage.label} has no function: give functions[{stage.name!r}]")


def _named(stage: Stage, numbers: Mapping[str, int], default: int) -> int:
    return numbers.get(stage.label, numbers.get(stage.name, default))


def _check_slots(slots: int, own: Mapping[str, int]) -> None:
    for name, number in {"slots": slots, **{f"slots of {stage}": number for stage, number in own.items()}}.items():
        if number < 1:
            raise ConfigError(f"{name} is {number}: give 1 or more")


class _Worker:
    def __init__(
        self,
        stages: Sequence[Stage],
        slots: Slots,
        batches: Mapping[str, int],
        on_settled: Callable[[Stage, Settled], None],
        patience_seconds: float,
    ) -> None:
        self._stages = stages
        self._slots = slots
        self._batches = batches
        self._on_settled = on_settled
        self._shards = stages[0].shards.fresh(patience_seconds)
        self._turns = Turns(slots.has_room)
        self._held: set[Part] = set()
        self._ended: dict[Part, list[Outcome]] = {}
        self._done = Settled()
        self._log = WorkLog(stages)
        interval = min(stage.lease_seconds for stage in stages) / 3
        beating = stages[0].shards.fresh(0.0)
        self._heartbeat = Heartbeat(beating, interval, self._log, lambda: tuple(self._held))
        all_shards = {id(shards): shards for shards in (self._shards, beating, *(stage.shards for stage in stages))}
        self._line_watch = LineWatch(lambda: [shard.session for shards in all_shards.values() for shard in shards])
        self._covered_at = 0.0
        self._stopped = False

    def run(self, stop: Callable[[], bool], *, wait: bool) -> Settled:
        """Work until stopped, or out of rows; nothing is held when it returns or raises."""
        try:
            self._work(stop, wait)
            self._settle_until_idle()
        except Stopped:
            pass
        except BaseException:
            with suppress(DatabaseError):
                self._give_back()
            raise
        self._give_back()
        return self._done

    def _work(self, stop: Callable[[], bool], wait: bool) -> None:
        pause = _SHORTEST_PAUSE_SECONDS
        while not (self._stopped or stop()):
            self._cover()
            if (post := self._turns.next()) is None:
                self._collect(_SHORTEST_PAUSE_SECONDS)
                continue
            claim, more = self._take(post)
            if claim is not None:
                self._turns.found_rows(post)
                self._begin(post.stage, claim)
                pause = _SHORTEST_PAUSE_SECONDS
            elif not more:
                self._turns.found_none(post)
                if self._turns.all_empty():
                    if not (wait or self._held):
                        return
                    self._pause(pause, stop)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                    self._turns.ask_again()
            self._collect()

    def _cover(self) -> None:
        """Look now and then for shards that joined or left, and for limits that people set."""
        if time.monotonic() - self._covered_at > _COVER_SECONDS:
            if self._covered_at:
                self._shards.reload()
            for stage in self._stages:
                stage.control()
            self._turns.cover(self._stages, self._shards)
            self._covered_at = time.monotonic()

    def _take(self, post: Post) -> tuple[Claim | None, bool]:
        """Settle what ended and ask once; the last value is False when the post has nothing claimable."""
        ask, settling = post.sweep.ask(), self._settle_others(post.shard)
        rows = allowed_rows(post.shard, post.stage, self._wanted_rows(post.stage))
        if rows == 0:
            if settling is not None:
                self._settle(settling)
            self._collect(_SHORTEST_PAUSE_SECONDS)
            return None, True
        settled, claim = exchange(post.shard, settling, post.stage, rows, ask)
        if settling is not None:
            self._note(settling, settle_again(self._shards, settling, settled) if settled.lost else settled)
        return claim, post.sweep.took(ask, claim)

    def _wanted_rows(self, stage: Stage) -> int:
        """A batch for every free slot, rounded down to a power of two of them: every number of rows is a plan of its own."""
        batch = self._batches[stage.label]
        slots = min(self._slots.room(stage), max(1, LARGEST_CLAIM_ROWS // batch))
        return int(batch * 2 ** (slots.bit_length() - 1))

    def _begin(self, stage: Stage, claim: Claim) -> None:
        parts = split(stage, claim, self._batches[stage.label])
        self._held.update(parts)
        alone = self._may_kill(stage, claim)
        if alone:
            self._settle_until_idle()
        if not self._stopped:
            self._slots.start(parts)
        if alone:
            self._settle_until_idle()

    def _may_kill(self, stage: Stage, claim: Claim) -> bool:
        """Whether it is a row whose worker died twice: nothing may run beside it, or it would die with it."""
        if self._slots.count == 1 or len(claim) > 1 or claim.attempts[0] <= 2:
            return False
        return self._shards[claim.shard].session.run(partial(held_by_dead, stage=stage, claim=claim))

    def _settle_until_idle(self) -> None:
        """Wait for the slots and settle what they end; after SIGTERM only what has ended."""
        while True:
            self._collect(0.0 if self._stopped or self._slots.idle else _SHORTEST_PAUSE_SECONDS)
            for settling in self._settlements():
                self._settle(settling)
            if self._stopped or self._slots.idle:
                return

    def _collect(self, wait_seconds: float = 0.0) -> bool:
        """Note which parts ended; whether any did."""
        ended = self._slots.finished(wait_seconds)
        self._ended.update(ended)
        return bool(ended)

    def _settlements(self) -> list[Settlement]:
        """What ended, by claim, no longer held from now on."""
        ended, self._ended = self._ended, {}
        if ended:
            self._turns.ask_again()
        self._held.difference_update(ended)
        return [
            settlement(whole.stage, whole.claim, [outcome for part in parts for outcome in ended[part]])
            for parts in by_claim(ended)
            for whole in [joined(parts)]
        ]

    def _settle_others(self, shard: Shard) -> Settlement | None:
        """Settle what ended; all but the last claim of `shard`, which is to be settled with the next."""
        here = None
        for settling in self._settlements():
            if settling.claim.shard != shard.number:
                self._settle(settling)
                continue
            if here is not None:
                self._settle(here)
            here = settling
        return here

    def _settle(self, settling: Settlement) -> None:
        self._note(settling, settle(self._shards, settling))

    def _note(self, settling: Settlement, settled: Settled) -> None:
        self._log.add(settling.stage, settled)
        self._on_settled(settling.stage, settled)
        self._done += settled

    def _pause(self, seconds: float, stop: Callable[[], bool]) -> None:
        """Wait, but not beyond the end of a part: it may have made rows ready."""
        until = time.monotonic() + seconds
        while not (self._stopped or stop()) and (left := until - time.monotonic()) > 0:
            if self._collect(min(left, _SHORTEST_PAUSE_SECONDS)):
                return

    def _give_back(self) -> None:
        """Rows still in work, to be claimed by others at once."""
        if self._held:
            self._slots.cancel()
        for parts in by_claim(self._held):
            whole = joined(parts)
            on_holders(self._shards, whole.stage, whole.claim, release_rows)
        self._held.clear()

    def end(self) -> None:
        """Stop at once: what runs is interrupted where that can be, and its rows are given back."""
        self._stopped = True
        self._slots.interrupt()

    def close(self) -> None:
        try:
            self._slots.close()
        finally:
            self._line_watch.close()
            self._heartbeat.close()
            self._shards.close()
