"""What a worker calls on rows: a function, an async function, or an actor.

An actor is a class whose instances are called with rows. It is built once in each worker, so that what is dear to load
is loaded once and state outlives a batch, and its `close()`, if it has one, is called when the worker ends.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from pleinair.krablet.claims import Outcome, describe_error
from pleinair.records.errors import QueueError

Row = dict[str, object]
Function = Callable[[list[Row]], Sequence[Outcome]]
"""Gets rows, returns for each, in order, the columns to write or the exception that says why it failed."""
AsyncFunction = Callable[[list[Row]], Awaitable[Sequence[Outcome]]]
Actor = Callable[[], Function | AsyncFunction]
"""A class, or `partial(Class, ...)`."""
Work = Function | AsyncFunction | Actor


class CancelledInsideError(Exception):
    """An async function was cancelled by something it called, not by the worker."""


def is_async(work: Work) -> bool:
    """Whether it is an async function, or an actor with one as `__call__`."""
    called = work.func if isinstance(work, partial) else work
    return inspect.iscoroutinefunction(called) or inspect.iscoroutinefunction(getattr(called, "__call__", None))  # noqa: B004


def is_actor(work: Work) -> bool:
    return inspect.isclass(work.func if isinstance(work, partial) else work)


def build(actor: Callable[[], Any], stage: str) -> Any:
    """An instance of an actor's class. Raises QueueError that says why there is none: no row is at fault."""
    made_of = actor.func if isinstance(actor, partial) else actor
    name = f"the actor {made_of.__module__}:{made_of.__qualname__} of stage {stage}"
    try:
        made = actor()
    except Exception as error:
        raise QueueError(
            f"{name} cannot be built ({describe_error(error)}): correct its constructor or arguments; no row was touched"
        ) from error
    if not callable(made):
        raise QueueError(f"{name} cannot be called: give it a method __call__(self, rows)")
    return made


def outcomes_of(function: Function, rows: list[Row]) -> list[Outcome]:
    """Call `function`; when it raises, halve the batch until the failing row is alone, so that it fails alone."""
    try:
        return _one_per_row(function(rows), rows)
    except Exception as error:
        if len(rows) == 1:
            return [error]
        half = len(rows) // 2
        return outcomes_of(function, rows[:half]) + outcomes_of(function, rows[half:])


async def async_outcomes_of(function: AsyncFunction, rows: list[Row]) -> list[Outcome]:
    """`outcomes_of` of an async function."""
    try:
        return _one_per_row(await _uncancelled(function, rows), rows)
    except Exception as error:
        if len(rows) == 1:
            return [error]
        half = len(rows) // 2
        return [*await async_outcomes_of(function, rows[:half]), *await async_outcomes_of(function, rows[half:])]


async def _uncancelled(function: AsyncFunction, rows: list[Row]) -> Sequence[Outcome]:
    """What it returns. A cancellation that is not ours is an error like another, or it would end the worker."""
    try:
        return await function(rows)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise CancelledInsideError("the function was cancelled by something it awaited") from error


def _one_per_row(results: Sequence[Outcome], rows: list[Row]) -> list[Outcome]:
    outcomes = list(results)
    if len(outcomes) != len(rows):
        raise QueueError(
            f"the function returned {len(outcomes)} results for {len(rows)} rows: "
            "return one dict (or exception) per row, in order"
        )
    return outcomes
