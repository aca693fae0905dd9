"""Questions and answers of rewards: whether they are any, and answers for parts of the pictures put together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pleinair.records.errors import RewardError
from pleinair.records.rewards import Pictures, RewardContext, RewardValues
from pleinair.rewards.identity import Bounds

Rows = npt.NDArray[np.int64]
_ROUNDING = 1e-5
"""Of a bound's width: what float32 may add to a value."""


def belongs(value: str, reward: str) -> bool:
    """Whether a value's name is a reward's: its own, or one that it begins."""
    return value == reward or value.startswith(f"{reward}.")


def check_question(prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> None:
    """Raise ValueError for pictures that are none, or not as many as prompts, seeds and groups."""
    counts = {len(prompts), len(pictures), len(context.seeds), len(context.groups)}
    if len(counts) > 1 or not len(pictures):
        raise ValueError(
            f"{len(pictures)} pictures of {len(prompts)} prompts, {len(context.seeds)} seeds and {len(context.groups)} "
            "groups: give one of each per picture, at least one"
        )
    if context.passes and len(context.passes) != len(pictures):
        raise ValueError(
            f"passes tells of {len(context.passes)} pictures and there are {len(pictures)}: give all or none"
        )
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise ValueError(f"pictures are {pictures.dtype} of shape {pictures.shape}: give (N, H, W, 3) uint8")


def check_answer(name: str, answer: RewardValues, prompts: Sequence[str], context: RewardContext) -> None:
    """Raise RewardError for an answer that lacks a picture, is not finite, or speaks for another reward."""
    if not answer.values:
        raise RewardError(f"{name} gave no value at all: see that it runs")
    named = {**answer.values, **answer.gates, **answer.applies}
    if strange := [one for one in named if not belongs(one, name)]:
        raise RewardError(f"{name} gave {strange[0]!r}: the names of its values and gates must begin with {name!r}")
    if unknown := [one for one in answer.applies if one not in answer.values]:
        raise RewardError(f"{name} says where {unknown[0]!r} applies, and gives no such value")
    for one, told in named.items():
        if np.shape(told) != (len(prompts),):
            raise RewardError(
                f"{one} has shape {np.shape(told)} for {len(prompts)} pictures: the reward must give one number each"
            )
    for one, told in answer.values.items():
        wrong = np.flatnonzero(~np.isfinite(np.asarray(told, np.float64)))
        if len(wrong):
            row = int(wrong[0])
            raise RewardError(
                f"{one} is {float(told[row])} for {len(wrong)} of {len(prompts)} pictures, first for {prompts[row]!r:.120}, "
                f"seed {context.seeds[row]}: mend the reward; nothing was learnt from these pictures"
            )


def check_bounds(
    name: str, bounds: Bounds | None, answer: RewardValues, prompts: Sequence[str], context: RewardContext
) -> None:
    """Raise RewardError for a value outside the bounds that its reward told of; where it does not apply, any will do."""
    if bounds is None:
        return
    least, most = bounds
    room = _ROUNDING * (most - least)
    for one, told in answer.values.items():
        exact = np.asarray(told, np.float64)
        outside = ((exact < least - room) | (exact > most + room)) & answer.applies.get(one, np.True_)
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            raise RewardError(
                f"{one} is {exact[row]:.6g} for {int(outside.sum())} of {len(prompts)} pictures, first for "
                f"{prompts[row]!r:.120}, seed {context.seeds[row]}, and {name} says that its values lie in {least:g} to "
                f"{most:g}: the reward is broken; mend it; nothing was learnt from these pictures"
            )


def part_of(context: RewardContext, rows: Rows) -> RewardContext:
    """What is known of some of the pictures."""
    return RewardContext(
        seeds=tuple(context.seeds[row] for row in rows),
        groups=tuple(context.groups[row] for row in rows),
        checkpoint=context.checkpoint,
        passes=tuple(context.passes[row] for row in rows) if context.passes else (),
    )


def merged(parts: Sequence[tuple[Rows, RewardValues]], count: int) -> RewardValues:
    """The answer about `count` pictures from answers about rows of them.

    A value that a part does not give does not apply to its pictures; a gate that it does not give is open to them.
    """
    values, told, gates = {}, {}, {}
    for name in dict.fromkeys(name for _, answer in parts for name in answer.values):
        values[name], told[name] = np.zeros(count, np.float32), np.zeros(count, np.bool_)
        for rows, answer in parts:
            if name in answer.values:
                values[name][rows] = answer.values[name]
                told[name][rows] = answer.applies.get(name, np.True_)
    for name in dict.fromkeys(name for _, answer in parts for name in answer.gates):
        gates[name] = np.ones(count, np.bool_)
        for rows, answer in parts:
            gates[name][rows] = answer.gates.get(name, np.True_)
    return RewardValues(
        values=values, gates=gates, applies={name: applies for name, applies in told.items() if not applies.all()}
    )
