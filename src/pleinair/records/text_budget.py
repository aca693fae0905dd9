"""Rows that packed prompts have room for: whoever makes batches and whoever computes on them agree on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BUDGET_STEP = 64
"""Budgets are multiples of it, which keeps matrix products on whole tiles."""


def text_budget(batches: Iterable[Sequence[int]]) -> int:
    """The smallest budget that holds every one of these batches, each given as the lengths of its prompts."""
    return in_steps(max((sum(lengths) for lengths in batches), default=0))


def in_steps(num_tokens: int) -> int:
    """The smallest budget for so many tokens."""
    return max(BUDGET_STEP, -(-num_tokens // BUDGET_STEP) * BUDGET_STEP)
