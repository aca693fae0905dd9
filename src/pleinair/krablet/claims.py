"""The claim protocol: statements by which workers take rows of a stage, keep them, and write what became of them.

    Sweep.ask() -> claim_fresh | claim_again --> Claim --> settlement(stage, claim, results) --> complete_rows, fail_rows
                                                   |                                                   |
                                             renew_lease, release_rows                 settle_and_claim: one round trip, one commit

Functions take a connection and send named SQL of `sql/claims.sql`; `exchange` adds what a refused result needs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from pleinair.krablet.connections import Connection
from pleinair.krablet.queries import comma_separated, query
from pleinair.records.errors import QueueError

if TYPE_CHECKING:
    from pleinair.krablet.rows import Arrays
    from pleinair.krablet.shards import Shard, Shards
    from pleinair.krablet.stages import Stage

Outcome = Mapping[str, object] | Exception
"""What became of one row: the columns to write, or why it failed."""


@dataclass(frozen=True)
class Claim:
    """Rows leased to one worker under one token. `rows` are given to the worker, aligned with `keys` and `attempts`."""

    token: int
    shard: int
    keys: list[Any]
    rows: list[dict[str, Any]]
    attempts: list[int]
    last_key: Any = None
    """Of these keys the last in the database's order, where a sweep goes on."""

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, places: Sequence[int]) -> Claim:
        """The rows at these places, under the same token."""
        return replace(
            self,
            keys=[self.keys[place] for place in places],
            rows=[self.rows[place] for place in places],
            attempts=[self.attempts[place] for place in places],
        )


@dataclass(frozen=True)
class Settled:
    """What completing a claim did: rows written, rows failed, and rows whose lease had passed to another worker."""

    completed: int = 0
    failed: int = 0
    lost: int = 0

    def __add__(self, other: Settled) -> Settled:
        return Settled(self.completed + other.completed, self.failed + other.failed, self.lost + other.lost)


@dataclass(frozen=True)
class Ask:
    """Which rows a claim looks for: fresh ones with keys after `after` (None: from the first), or those that failed."""

    failed: bool = False
    after: Any = None


FIRST = Ask()
_ALWAYS = sql.SQL("TRUE")


class Sweep:
    """A worker's walk over the rows of a stage: fresh ones in key order, round and round, and those that failed.

    It goes on where its last claim ended, so it meets neither rows that other workers hold behind it nor the dead index
    entries of rows that are done: under a snapshot held by somebody else those stay (measured: 47 ms a claim without
    this). A stage with an order of its own is always asked from its first row. Failed rows come when no fresh ones are
    left, and first in one claim of `AGAIN_FIRST_EVERY`, so that an endless inflow does not starve them.
    """

    AGAIN_FIRST_EVERY = 8

    def __init__(self, start: Any = None, *, ordered: bool = False) -> None:
        self._after = start
        self._ordered = ordered
        self._asking_again = False
        self._claims = 0

    def ask(self) -> Ask:
        """What to ask for next."""
        again_first = self._claims % self.AGAIN_FIRST_EVERY == self.AGAIN_FIRST_EVERY - 1
        return Ask(failed=True) if self._asking_again or again_first else Ask(after=self._after)

    def took(self, ask: Ask, claim: Claim | None) -> bool:
        """Note what an ask brought; False when everything was asked for and nothing is claimable."""
        if claim is not None:
            self._claims += 1
            self._asking_again = False
            if not (ask.failed or self._ordered):
                self._after = claim.last_key
            return True
        if ask.failed:
            exhausted, self._asking_again, self._claims = self._asking_again, False, 0
            return not exhausted
        self._asking_again, self._after = self._after is None, None
        return True


@dataclass(frozen=True)
class Settlement:
    """How a claim ends: what each of its rows became, and the results already encoded."""

    stage: Stage
    claim: Claim
    outcomes: list[Outcome]
    arrays: Arrays | None

    def part(self, start: int, end: int) -> Settlement:
        return self.at(range(start, end))

    def at(self, places: Sequence[int]) -> Settlement:
        """The rows at these places alone."""
        return settlement(self.stage, self.claim.at(places), [self.outcomes[place] for place in places])


def settlement(stage: Stage, claim: Claim, results: Sequence[Outcome]) -> Settlement:
    """Results as they will be written; one that cannot be written becomes the exception that says why."""
    if len(results) != len(claim):
        raise QueueError(
            f"stage {stage.label} got {len(results)} results for {len(claim)} rows: "
            "return one dict (or exception) per row, in order"
        )
    outcomes = [
        result if type(result) is dict and result.keys() == stage.written else _complete_result(stage, key, result)
        for key, result in zip(claim.keys, results, strict=True)
    ]
    try:
        return Settlement(stage, claim, outcomes, _encoded(stage, claim, outcomes))
    except QueueError as error:
        if len(claim) == 1:
            return Settlement(stage, claim, [error], None)
        alone = [settlement(stage, claim.at([i]), outcomes[i : i + 1]).outcomes[0] for i in range(len(claim))]
        return Settlement(stage, claim, alone, _encoded(stage, claim, alone))


def _complete_result(stage: Stage, key: object, result: Outcome) -> Outcome:
    if isinstance(result, Exception) or (isinstance(result, Mapping) and result.keys() == stage.written):
        return result
    got = sorted(result) if isinstance(result, Mapping) else type(result).__name__
    return QueueError(f"the result for {key!r:.60} is {got}: return a dict with exactly {sorted(stage.writes)}")


def _encoded(stage: Stage, claim: Claim, outcomes: Sequence[Outcome]) -> Arrays | None:
    places = [place for place, outcome in enumerate(outcomes) if not isinstance(outcome, Exception)]
    if not places:
        return None
    keys = claim.keys if len(places) == len(claim) else [claim.keys[place] for place in places]
    values = {name: [outcomes[place][name] for place in places] for name in stage.writes}  # type: ignore[index]
    return stage.table.arrays_of(keys, values)


def exchange(
    shard: Shard, settling: Settlement | None, stage: Stage | None = None, n: int = 0, ask: Ask = FIRST
) -> tuple[Settled, Claim | None]:
    """Settle one claim on a shard and take the next there. A result the database refuses fails its row alone."""

    def act(settled_with: Settlement | None) -> tuple[Settled, Claim | None]:
        settled, claim = shard.session.run(lambda c: settle_and_claim(c, settled_with, stage, n, ask))
        return settled, None if claim is None else replace(claim, shard=shard.number)

    try:
        return act(settling)
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        if settling is None:
            raise
        settled = _settle_by_halves(shard, settling, error)
        return settled, act(None)[1]


def _settle_by_halves(shard: Shard, settling: Settlement, error: Exception) -> Settled:
    size = len(settling.claim)
    if size == 1:
        refused = Settlement(settling.stage, settling.claim, [error], None)
        return shard.session.run(lambda connection: settle_and_claim(connection, refused))[0]
    return _settle_part(shard, settling.part(0, size // 2)) + _settle_part(shard, settling.part(size // 2, size))


def _settle_part(shard: Shard, part: Settlement) -> Settled:
    try:
        return shard.session.run(lambda connection: settle_and_claim(connection, part))[0]
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        return _settle_by_halves(shard, part, error)


def settle(shards: Shards, settling: Settlement) -> Settled:
    """Settle a claim wherever its rows are now."""
    settled = exchange(shards[settling.claim.shard], settling)[0]
    return settled if settled.lost == 0 else settle_again(shards, settling, settled)


def settle_again(shards: Shards, settling: Settlement, settled: Settled) -> Settled:
    """What a settlement comes to when the rows it did not find are looked for once more, where they are now.

    They may have moved to another shard with their claims, or been renewed while they were settled. Rows that are
    settled already hold no token, so nothing is written twice.
    """
    shards.settled()
    for number, places in shards.route(settling.claim.keys).items():
        there = exchange(shards[number], settling.at(places))[0]
        found = there.completed + there.failed
        settled = Settled(settled.completed + there.completed, settled.failed + there.failed, settled.lost - found)
    return settled


def on_holders(shards: Shards, stage: Stage, claim: Claim, action: Callable[[Connection, Stage, Claim], int]) -> int:
    """The rows of a claim that `action` found, on the shard they were claimed on and where they moved since."""
    found = shards[claim.shard].session.run(lambda connection: action(connection, stage, claim))
    if found < len(claim):
        for number, places in moved_from(shards, claim).items():
            moved = claim.at(places)
            found += shards[number].session.run(lambda connection, moved=moved: action(connection, stage, moved))  # type: ignore[misc]
    return found


def moved_from(shards: Shards, claim: Claim) -> dict[int, list[int]]:
    """Places of a claim's rows that live on another shard than they were claimed on, by that shard; waits for moves."""
    if len(shards) == 1:
        return {}
    shards.settled()
    return {number: places for number, places in shards.route(claim.keys).items() if number != claim.shard}


def allowed_rows(shard: Shard, stage: Stage, n: int) -> int:
    """How many of `n` rows may be claimed on a shard now, under the stage's limit; they count as claimed."""
    if not stage.limited:
        return n
    told = {"table": stage.table.name, "stage": stage.name, "wanted": n}
    found = shard.session.run(lambda connection: connection.execute(query("watching", "allow_claim"), told).fetchone())
    assert found is not None
    return int(found[0])


def settle_and_claim(
    connection: Connection,
    settling: Settlement | None,
    stage: Stage | None = None,
    n: int = 0,
    ask: Ask = FIRST,
) -> tuple[Settled, Claim | None]:
    """Settle one claim and take the next in one round trip and one commit. The two may be of different stages."""
    with connection.pipeline():
        settled = None if settling is None else _send_settlement(connection, settling)
        claimed = None if stage is None else _send_claim(connection, stage, n, ask)
    outcome = Settled() if settled is None or settling is None else _read_settlement(*settled, held=len(settling.claim))
    return outcome, None if claimed is None or stage is None else _read_claim(stage, claimed.fetchall())


def _send_settlement(
    connection: Connection, settling: Settlement
) -> tuple[psycopg.Cursor[Any] | None, psycopg.Cursor[Any] | None]:
    stage, token, arrays = settling.stage, settling.claim.token, settling.arrays
    failures = [] if arrays and len(arrays) == len(settling.claim) else _failures(settling)
    if arrays and failures:
        hold_rows(connection, stage, settling.claim)
    return (
        complete_rows(connection, stage, token, arrays) if arrays else None,
        fail_rows(connection, stage, token, failures) if failures else None,
    )


def _failures(settling: Settlement) -> list[tuple[Any, str]]:
    pairs = zip(settling.claim.keys, settling.outcomes, strict=True)
    return [(key, describe_error(outcome)) for key, outcome in pairs if isinstance(outcome, Exception)]


def _read_settlement(completion: psycopg.Cursor[Any] | None, failure: psycopg.Cursor[Any] | None, held: int) -> Settled:
    written = [] if completion is None else [ended for (ended,) in completion.fetchall()]
    completed, still_ready = written.count(True), written.count(False)
    failed = still_ready + (0 if failure is None else failure.rowcount)
    return Settled(completed, failed, held - completed - failed)


def _send_claim(connection: Connection, stage: Stage, n: int, ask: Ask) -> psycopg.Cursor[Any]:
    return claim_again(connection, stage, n) if ask.failed else claim_fresh(connection, stage, n, ask.after)


def claim_fresh(connection: Connection, stage: Stage, n: int, after: Any) -> psycopg.Cursor[Any]:
    def statement() -> sql.Composed:
        compare = sql.SQL("{key} > %(after)s::{key_type}").format(**stage.identifiers) if after is not None else _ALWAYS
        parts = {"after": compare, "order": stage.ordering}
        return query("claims", "claim_fresh").format(**_claiming(stage, n), **parts)

    text = stage.statement(("claim_fresh", n, after is None), statement)
    return connection.cursor(binary=True).execute(text, {"lease_seconds": stage.lease_seconds, "after": after})


def claim_again(connection: Connection, stage: Stage, n: int) -> psycopg.Cursor[Any]:
    text = stage.statement(("claim_again", n), lambda: query("claims", "claim_again").format(**_claiming(stage, n)))
    return connection.cursor(binary=True).execute(text, {"lease_seconds": stage.lease_seconds})


def _claiming(stage: Stage, n: int) -> dict[str, sql.Composable]:
    columns = comma_separated([sql.Identifier(name) for name in stage.given_columns])
    lease = query("claims", "lease_placed").format(**stage.identifiers, columns=columns)
    return {**stage.identifiers, "batch": sql.Literal(n), "lease": lease}


def _read_claim(stage: Stage, found: list[tuple[Any, ...]]) -> Claim | None:
    if not found:
        return None
    columns = stage.given_columns
    *_, last = by_column = list(zip(*found, strict=True))
    return Claim(
        token=by_column[-2][0],
        shard=0,
        keys=list(by_column[0]),
        rows=[dict(zip(columns, row, strict=False)) for row in found],
        attempts=list(by_column[-3]),
        last_key=last[0],
    )


def key_bounds(connection: Connection, stage: Stage) -> list[str]:
    found = connection.execute(query("claims", "key_bounds"), {"table": stage.table.name, "key": stage.table.key})
    bounds = found.fetchone()
    return [] if bounds is None or bounds[0] is None else list(bounds[0])


def sweep_from_anywhere(shard: Shard, stage: Stage) -> Sweep:
    """A sweep that starts at a random place, so that workers do not crowd at the first rows."""
    bounds = [] if stage.order else shard.session.run(lambda connection: key_bounds(connection, stage))
    return Sweep(random.choice(bounds) if bounds else None, ordered=stage.order is not None)


def hold_rows(connection: Connection, stage: Stage, claim: Claim) -> None:
    text = stage.statement("hold_rows", lambda: query("claims", "hold_rows").format(**stage.identifiers))
    connection.execute(text, {"keys": claim.keys, "token": claim.token})


def complete_rows(connection: Connection, stage: Stage, token: int, arrays: Arrays) -> psycopg.Cursor[Any]:
    def statement() -> sql.Composed:
        return query("claims", "complete_rows").format(
            **stage.identifiers,
            results=comma_separated([sql.SQL("{} = result.{}").format(*pair) for pair in arrays.written()]),
            written=comma_separated([sql.SQL("result.{1} AS {0}").format(*pair) for pair in arrays.written()]),
            values=arrays.casts,
            arrays=arrays.arrays,
            names=arrays.names,
        )

    text = stage.statement(("complete_rows", arrays.columns), statement)
    return connection.cursor(binary=True).execute(text, {**arrays.parameters, "token": token})


def fail_rows(
    connection: Connection, stage: Stage, token: int, failures: Sequence[tuple[Any, str]]
) -> psycopg.Cursor[Any]:
    text = stage.statement("fail_rows", lambda: query("claims", "fail_rows").format(**stage.identifiers))
    keys, errors = zip(*failures, strict=True)
    return connection.cursor().execute(text, {"keys": list(keys), "errors": list(errors), "token": token})


def describe_error(error: Exception) -> str:
    """An exception as one bounded line that any text column can hold."""
    text = f"{type(error).__name__}: {error}".replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    return " ".join(text.split())[:2000]


def renew_lease(connection: Connection, stage: Stage, claim: Claim) -> int:
    statement = query("claims", "renew_lease").format(**stage.identifiers)
    parameters = {"keys": claim.keys, "token": claim.token, "lease_seconds": stage.lease_seconds}
    return connection.execute(statement, parameters).rowcount


def release_rows(connection: Connection, stage: Stage, claim: Claim) -> int:
    statement = query("claims", "release_rows").format(**stage.identifiers)
    return connection.execute(statement, {"keys": claim.keys, "token": claim.token}).rowcount


def held_by_dead(connection: Connection, stage: Stage, claim: Claim) -> bool:
    """Whether the worker that held the first row of a claim before died or hung."""
    statement = query("claims", "held_by_dead").format(**stage.identifiers)
    found = connection.execute(statement, {"key": claim.keys[0], "token": claim.token}).fetchone()
    return found == (True,)
