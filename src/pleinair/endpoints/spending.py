"""What was asked of model servers and what it cost, per stage and model, and the budget that ends it.

A request is charged before it is sent, by an upper guess, and corrected when its answer tells the tokens. So a budget
holds over all worker processes of a machine and over interrupted runs, and errs towards spending less: what a killed
worker had under way stays charged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pleinair.endpoints.sqlite_file import open_sqlite
from pleinair.records.errors import BudgetError, ConfigError

_TABLE = """
CREATE TABLE IF NOT EXISTS spending (
    stage TEXT, model TEXT, requests INTEGER, cached INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER,
    dollars REAL, PRIMARY KEY (stage, model)
)
"""
_ADD = """
INSERT INTO spending VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (stage, model) DO UPDATE SET
    requests = requests + excluded.requests, cached = cached + excluded.cached,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens, dollars = dollars + excluded.dollars
"""
_TOTAL = "SELECT total(requests), total(prompt_tokens + completion_tokens), total(dollars) FROM spending"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that may be spent, over all stages, since the spending file was made; None: no limit."""

    requests: int | None = None
    """Requests sent, failed tries included."""
    tokens: int | None = None
    """Tokens sent and received."""
    dollars: float | None = None
    """Money, by the endpoints' prices."""

    def __post_init__(self) -> None:
        for name in ("requests", "tokens", "dollars"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"budget.{name} is {value}: give a positive number, or none for no limit")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage asked of one model."""

    stage: str
    model: str
    requests: int = 0
    cached: int = 0
    """Questions answered from disk, at no cost."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0


class Spending:
    """The account of one machine: a file that its processes share."""

    def __init__(self, path: Path, budget: Budget | None = None) -> None:
        self.path = path
        self.budget = budget or Budget()
        self._connection = open_sqlite(path, _TABLE)

    def charge(self, cost: Cost) -> None:
        """Add a request that is about to be sent. Raises BudgetError, adding nothing, when it would go over."""
        with self._transaction():
            if over := self._over(cost):
                raise BudgetError(over)
            self._add(cost)

    def correct(self, cost: Cost) -> None:
        """Add differences: real tokens less those charged, or a cached answer."""
        self._add(cost)

    def spent(self) -> str:
        """The sentence that says the budget is spent; empty while another request fits."""
        return self._over(Cost(stage="", model="", requests=1))

    def report(self) -> list[Cost]:
        """One entry per stage and model, the dearest first."""
        rows = self._connection.execute("SELECT * FROM spending ORDER BY dollars DESC, requests DESC, stage, model")
        names = [column[0] for column in rows.description]
        return [Cost(**dict(zip(names, row, strict=True))) for row in rows]

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _add(self, cost: Cost) -> None:
        values = (cost.requests, cost.cached, cost.prompt_tokens, cost.completion_tokens, cost.dollars)
        self._connection.execute(_ADD, (cost.stage, cost.model, *values))

    def _over(self, more: Cost) -> str:
        requests, tokens, dollars = self._connection.execute(_TOTAL).fetchone()
        budget = self.budget
        told = f"{requests:.0f} requests, {tokens:.0f} tokens and {dollars:.2f} dollars so far, by {self.path}"
        for name, limit, after in (
            ("requests", budget.requests, requests + more.requests),
            ("tokens", budget.tokens, tokens + more.prompt_tokens + more.completion_tokens),
            ("dollars", budget.dollars, dollars + more.dollars),
        ):
            if limit is not None and after > limit:
                return f"the budget of {limit} {name} is spent ({told}): raise budget.{name} to go on"
        return ""
