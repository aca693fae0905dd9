"""Settling a flush: one commit, or the smallest parts of it that commit.

settle(runs) --> commit all ---------------------------------------------> answers
                  |  the database refuses: halve, until the mutation that is refused is alone; its failure is
                  |                        committed, as its answer, with the next part
                  |  slots have moved away: their mutations are refused, all others committed
                  |  fenced: another funnel, or a commit whose answer was lost, moved a client:
                  |                        look where it stands, drop what is applied, commit the others
                  `- the server is away: wait and send the same again, for as long as it takes
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import TypeVar

import psycopg

from pleinair.krablet.connections import Connection, Session
from pleinair.krablet.funnel.batch import Advance, Run, advances, halves, statements
from pleinair.krablet.funnel.clients import ClientState
from pleinair.krablet.funnel.errors import moved, moved_slot
from pleinair.krablet.funnel.ledger import (
    Flush,
    Standing,
    failures_of,
    is_fenced,
    is_refusal,
    load_clients,
    write_flush,
)
from pleinair.krablet.funnel.plans import Plans
from pleinair.krablet.funnel.stats import Counters
from pleinair.krablet.shards import STALE_MAP, slot_of, slots_elsewhere
from pleinair.records.errors import DatabaseError, QueueError

Result = TypeVar("Result")

logger = logging.getLogger("pleinair.krablet.funnel.funnel")

LONGEST_REASON = 500
_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0

SUPERSEDED = (
    "another program took over the name {name!r}, or its record has expired: give every program its own client name"
)
GAP = "mutations before number {number} of client {name!r} never arrived here: connect again and send them"


class Flusher:
    """Commits flushes on one connection, in one thread."""

    def __init__(
        self, session: Session, lock: AbstractContextManager[object], abandoned: threading.Event, counters: Counters
    ) -> None:
        self._session = session
        self._lock = lock
        self._abandoned = abandoned
        self._counters = counters
        self._plans = Plans(self.execute)

    def settle(self, runs: Sequence[Run]) -> None:
        """Commit these runs and answer their clients. Raises DatabaseError only when abandoned."""
        waiting, refused = [list(runs)], list[Run]()
        while waiting:
            part = [run for run in waiting.pop() if run.client.dismissed is None]
            try:
                self._commit([*refused, *part])
                refused = []
            except psycopg.Error as error:
                if not is_refusal(error) or not part:
                    raise
                if error.sqlstate == STALE_MAP:
                    self._refuse_slots(part, self.execute(slots_elsewhere))
                    waiting.append(part)
                elif sum(map(len, part)) > 1:
                    waiting.extend(reversed(halves(part)))
                else:
                    part[0].failures[part[0].first] = _reason(error)
                    refused += part
        self._commit(refused)

    def _commit(self, runs: list[Run]) -> None:
        while runs:
            flush = self._flush_of(runs)
            try:
                self.execute(partial(write_flush, flush=flush))
                return self._answer(runs, flush)
            except psycopg.Error as error:
                if not is_fenced(error):
                    raise
            self._counters.fenced += 1
            runs = self._unapplied(runs)
        return None

    def _refuse_slots(self, runs: Sequence[Run], slots: Container[int]) -> None:
        for run in runs:
            for number, slot in self._slots(run):
                if slot in slots:
                    run.failures.setdefault(number, moved(slot))

    def _slots(self, run: Run) -> Iterator[tuple[int, int]]:
        """The mutations of a run, by number, with the slots of their keys; those without one are refused as misfits."""
        with suppress(QueueError):
            _, shape = self._plans.shape(run.table, run.columns)
            for number, row in run.rows():
                with suppress(QueueError):
                    [key] = shape.columns[shape.key_place].prepare([row[shape.key_place]])
                    yield number, slot_of(key)

    def _keep_order(self, runs: Sequence[Run]) -> None:
        """Refuse what its client sent before it knew that an earlier mutation of that slot was refused.

        The slot may have come back meanwhile; the later mutation would then be applied before the earlier one.
        """
        for run in runs:
            unknown = (why for number, why in run.client.failures.items() if number > run.confirmed)
            if left := {slot for why in unknown if (slot := moved_slot(why)) is not None}:
                self._refuse_slots([run], left)
            if not run.table:
                run.failures = {number: moved(row[0]) for number, row in run.rows()}

    def _flush_of(self, runs: Sequence[Run]) -> Flush:
        self._keep_order(runs)
        upserts = statements(runs, self._plans.shape)
        advanced = advances(runs)
        confirmed = {
            advance.client.name: advance.confirmed
            for advance in advanced
            if advance.client.failures and min(advance.client.failures) <= advance.confirmed
        }
        return Flush(advanced, upserts, failures_of(runs), confirmed)

    def _answer(self, runs: Sequence[Run], flush: Flush) -> None:
        failures: dict[int, dict[int, str]] = {}
        for run in runs:
            if run.failures:
                failures.setdefault(id(run.client), {}).update(run.failures)
        with self._lock:
            for advance in flush.advances:
                _forget_confirmed(advance)
                advance.client.settle(advance.reached, failures.get(id(advance.client), {}))
            self._counters.count_flush(runs, flush)
        for advance in flush.advances:
            advance.client.tell(failures.get(id(advance.client), {}))

    def _unapplied(self, runs: Sequence[Run]) -> list[Run]:
        """What is left to do of these runs, after looking where their clients stand."""
        standings = self.execute(partial(load_clients, clients=[run.client.name for run in runs]))
        for client in {id(run.client): run.client for run in runs}.values():
            self._catch_up(client, standings.get(client.name))
        left: list[Run] = []
        reached: dict[int, int] = {}
        for run in runs:
            if run.client.dismissed is None and (rest := self._rest(run, reached)) is not None:
                left.append(rest)
        return left

    def _catch_up(self, client: ClientState, standing: Standing | None) -> None:
        if standing is None or standing.incarnation != client.incarnation:
            client.dismiss(SUPERSEDED.format(name=client.name))
        elif standing.applied > client.applied:
            with self._lock:
                client.settle(standing.applied, standing.failures)
            client.tell(standing.failures)

    def _rest(self, run: Run, reached: dict[int, int]) -> Run | None:
        applied = reached.get(id(run.client), run.client.applied)
        if run.first > applied + 1:
            run.client.dismiss(GAP.format(number=run.first, name=run.client.name))
            return None
        self._counters.duplicates += max(0, min(run.last, applied) - run.first + 1)
        if run.last <= applied:
            return None
        reached[id(run.client)] = run.last
        return run if run.first > applied else run.split(applied - run.first + 1)[1]

    def execute(self, action: Callable[[Connection], Result]) -> Result:
        """What the action returns, whatever happens to the server meanwhile. Raises the database's refusals."""
        pause = _PAUSE_SECONDS
        while True:
            try:
                return self._session.run(action)
            except psycopg.Error as error:
                if is_refusal(error) or is_fenced(error):
                    raise
                trouble: Exception = error
            except DatabaseError as outage:
                trouble = outage
            self._counters.note_outage(str(trouble))
            logger.warning("the funnel waits: %s", trouble)
            if self._abandoned.wait(pause):
                raise DatabaseError(f"the funnel left while Postgres was away: {trouble}")
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _forget_confirmed(advance: Advance) -> None:
    client = advance.client
    if client.failures:
        client.failures = {number: why for number, why in client.failures.items() if number > advance.confirmed}


def _reason(error: psycopg.Error) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON]
