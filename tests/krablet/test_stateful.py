"""Claims, completions, failures, crashes, zombies and moves in random order, against a model in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from pleinair.krablet import Claim, Settled
from pleinair.krablet.connections import open_connection
from pleinair.krablet.moves import move_slots
from pleinair.krablet.shards import slot_of
from tests.krablet.conftest import Pictures, on_one_shard_and_on_three

CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"


@dataclass
class Row:
    """What the model knows of a row."""

    result: bool | None = None
    attempts: int = 0
    token: int | None = None
    leased: bool = False
    failed: bool = False
    due: bool = True
    history: list[bool] = field(default_factory=list)

    @property
    def claimable(self) -> bool:
        return self.result is None and not self.leased and (self.due or not self.failed)

    @property
    def suspect(self) -> bool:
        return self.token is not None and self.attempts >= 2


class ClaimMachine(RuleBasedStateMachine):
    """One stage over a few rows; `pictures` is set by the test. Claims of past holders stay in the bundle: zombies."""

    pictures: Pictures
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Row] = {}
        self.moved = self.cut = False
        self.last: dict[int, str | None] = {shard.number: "" for shard in self.pictures.database.shards}
        self.pictures.sql("TRUNCATE images")
        self.pictures = replace(self.pictures, ocr=self.pictures.database.declared_stages()[0])

    @rule(count=st.integers(1, 4))
    def add_rows(self, count: int) -> None:
        for name in self.pictures.add(count, start=len(self.rows)):
            self.rows[name] = Row()

    @rule(target=claims, n=st.integers(1, 6))
    def claim(self, n: int) -> Claim:
        claimable = {name: row for name, row in self.rows.items() if row.claimable}
        claim = self.pictures.ocr.claim(n)
        self.walked_through(claim)
        if claim is None:
            assert claimable == {}
            return multiple()
        claimable = {name: row for name, row in claimable.items() if self.shard_of(name) == claim.shard}
        assert {self.shard_of(key) for key in claim.keys} == {claim.shard}
        taken = [self.rows[key] for key in claim.keys]
        assert all(row.claimable for row in taken)
        assert len(claim) == 1 or not any(row.suspect for row in taken)
        assert len({row.failed for row in taken}) == 1
        if not taken[0].failed:
            self.sweep_goes_on(claim, [name for name, row in claimable.items() if not row.failed], n)
        else:
            self.last[claim.shard] = None
            if not any(row.suspect for row in claimable.values()):
                assert len(claim) == min(n, sum(row.failed for row in claimable.values()))
        for row in taken:
            row.attempts += 1
            row.token, row.leased = claim.token, True
        assert claim.attempts == [row.attempts for row in taken]
        return claim

    def shard_of(self, name: str) -> int:
        return self.pictures.database.shards.of(name).number

    def walked_through(self, claim: Claim | None) -> None:
        """Shards asked before the one that gave rows had none: there the next walk begins at the first row."""
        for number in self.last:
            if claim is not None and number == claim.shard:
                break
            self.last[number] = ""

    def sweep_goes_on(self, claim: Claim, fresh: list[str], n: int) -> None:
        """Fresh rows come in key order after the last ones taken, or from the first when none is left there."""
        last = self.last[claim.shard]
        if last is not None:
            behind = [name for name in sorted(fresh) if name > last]
            expected = (behind or sorted(fresh))[:n]
            if not any(self.rows[name].suspect for name in expected):
                assert sorted(claim.keys) == expected
        self.last[claim.shard] = claim.last_key

    @rule(claim=claims, results=st.lists(st.sampled_from([True, False, None]), min_size=6, max_size=6))
    def complete(self, claim: Claim, results: list[bool | None]) -> None:
        """A claim may come here twice, or after its lease passed on; None is a failure."""
        outcomes = results[: len(claim)]
        held = [self.rows[key].token == claim.token for key in claim.keys]
        settled = self.pictures.ocr.complete(
            claim, [ValueError("bad") if result is None else {"contains_text": result} for result in outcomes]
        )
        assert settled == Settled(
            completed=sum(mine and result is not None for mine, result in zip(held, outcomes, strict=True)),
            failed=sum(mine and result is None for mine, result in zip(held, outcomes, strict=True)),
            lost=held.count(False),
        )
        for key, mine, result in zip(claim.keys, held, outcomes, strict=True):
            row = self.rows[key]
            if mine:
                row.token, row.leased, row.due, row.failed = None, False, False, result is None
                if result is not None:
                    row.result, row.attempts = result, 0
                    row.history.append(result)

    @rule(claim=consumes(claims))
    def release(self, claim: Claim) -> None:
        for key in claim.keys:
            row = self.rows[key]
            if row.token == claim.token:
                row.token, row.leased, row.attempts = None, False, row.attempts - 1
        self.pictures.ocr.release(claim)

    @rule()
    def expire_leases(self) -> None:
        self.pictures.expire_leases()
        for row in self.rows.values():
            row.leased = False

    @rule()
    def cut_all_connections(self) -> None:
        for shard in () if self.cut else self.pictures.database.shards:
            with open_connection(shard.dsn) as connection:
                connection.execute(CUT)

        self.cut = True  # once an example, as a move: they cost more than all the others

    @rule(seed=st.integers(0, 9), number=st.integers(0, 2))
    def move_a_row(self, seed: int, number: int) -> None:
        """With its claim, if it is held, and its slot."""
        shards = self.pictures.database.shards
        if len(shards) > 1 and self.rows and not self.moved:
            self.moved = True
            name = sorted(self.rows)[seed % len(self.rows)]
            move_slots(shards, [slot_of(name)], number)

    @rule()
    def end_delays(self) -> None:
        self.pictures.end_delays()
        for row in self.rows.values():
            row.due = True

    @invariant()
    def results_are_those_of_the_model_and_written_once(self) -> None:
        assert self.pictures.results() == {name: row.result for name, row in self.rows.items()}
        assert all(len(row.history) <= 1 for row in self.rows.values())


@on_one_shard_and_on_three
def test_any_order_of_claims_completions_failures_and_crashes_follows_the_model(pictures: Pictures) -> None:
    machine = type("BoundClaimMachine", (ClaimMachine,), {"pictures": pictures})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25 if len(pictures.database.shards) == 1 else 12,
            stateful_step_count=20,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
