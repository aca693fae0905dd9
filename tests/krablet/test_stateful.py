"""Claims, completions, failures, crashes and zombies in random order, against a model in memory."""

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
from tests.krablet.conftest import Pictures


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
        self.last: str | None = ""
        self.pictures.sql("TRUNCATE images")
        self.pictures = replace(self.pictures, ocr=self.pictures.database.declared_stages()[0])

    @rule(count=st.integers(1, 6))
    def add_rows(self, count: int) -> None:
        for name in self.pictures.add(count, start=len(self.rows)):
            self.rows[name] = Row()

    @rule(target=claims, n=st.integers(1, 5))
    def claim(self, n: int) -> Claim:
        claimable = {name: row for name, row in self.rows.items() if row.claimable}
        claim = self.pictures.ocr.claim(n)
        if claim is None:
            assert claimable == {}
            self.last = ""
            return multiple()
        taken = [self.rows[key] for key in claim.keys]
        assert all(row.claimable for row in taken)
        assert len(claim) == 1 or not any(row.suspect for row in taken)
        assert len({row.failed for row in taken}) == 1
        if not taken[0].failed:
            self.sweep_goes_on(claim, [name for name, row in claimable.items() if not row.failed], n)
        else:
            self.last = None
            if not any(row.suspect for row in claimable.values()):
                assert len(claim) == min(n, sum(row.failed for row in claimable.values()))
        for row in taken:
            row.attempts += 1
            row.token, row.leased = claim.token, True
        assert claim.attempts == [row.attempts for row in taken]
        return claim

    def sweep_goes_on(self, claim: Claim, fresh: list[str], n: int) -> None:
        """Fresh rows come in key order after the last ones taken, or from the first when none is left there."""
        if self.last is not None:
            behind = [name for name in sorted(fresh) if name > self.last]
            expected = (behind or sorted(fresh))[:n]
            if not any(self.rows[name].suspect for name in expected):
                assert sorted(claim.keys) == expected
        self.last = claim.last_key

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
    def end_delays(self) -> None:
        self.pictures.end_delays()
        for row in self.rows.values():
            row.due = True

    @invariant()
    def results_are_those_of_the_model_and_written_once(self) -> None:
        assert self.pictures.results() == {name: row.result for name, row in self.rows.items()}
        assert all(len(row.history) <= 1 for row in self.rows.values())


def test_any_order_of_claims_completions_failures_and_crashes_follows_the_model(pictures: Pictures) -> None:
    machine = type("BoundClaimMachine", (ClaimMachine,), {"pictures": pictures})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
