"""Did a batch, or two, leave those before at once? What tells a broken or deceived reward from one that is being climbed.

    batch --mean over its groups--> change from the last RECENT batches, in standard errors of such a change
                                    |
    s = largest of  the spread of groups within batches        prompts differ
                    the spread of groups in this batch          one odd group is no leap of all
                    the changes of the batches before           a climb has been changing all along
                    a share of what the value may span          that which never varied may begin to

Learning moves a mean little by little and by about what it moved before, so its own changes widen the error; a reward that
breaks or is deceived moves all groups together, at once, further than single pictures differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from pleinair.rewards.advantages import Floats, Groups, members

RECENT = 4
"""Batches that a mean is held against."""
REMEMBERED = 32
"""Batches whose changes and spread are known."""
LEAST_FREEDOM = 12
"""Independent numbers that the error must rest on; a batch is not judged before."""
LEAST_SHARE = 0.05
"""Of what the value may span: the least spread of groups."""


@dataclass(frozen=True)
class Batch:
    """One batch of a value."""

    mean: float
    """Over groups, each counted once."""
    num_groups: int
    squares: float
    """Sum of the groups' squared distances from the mean."""

    @property
    def variance(self) -> float:
        """Between its groups; 0 of a single one."""
        return self.squares / (self.num_groups - 1) if self.num_groups > 1 else 0.0


def batch_of(values_N: Floats, groups_N: Groups) -> Batch:
    """What is remembered of a batch."""
    means_G = np.array([values_N[rows].mean() for rows in members(groups_N)])
    return Batch(float(means_G.mean()), len(means_G), float(((means_G - means_G.mean()) ** 2).sum()))


def standard_errors(before: Sequence[Batch], now: Batch, *, spread: float, span: float) -> float:
    """How many standard errors a batch, or it and the one before, left the recent ones by; 0 where too little is known.

    Two batches that left together are surer than one: what a small batch could not tell is found in the next.
    `spread`: the standard deviation of single values so far. With many groups an error is small: a mean that moved, since
    the batch before, by less than one picture differs from the next is no leap. `span`: what the value may span, or its
    spread where it has no bounds. A batch of one group is not judged: it may be of an easy prompt.
    """
    if now.num_groups < 2:
        return 0.0
    alone = _errors(before, now, spread, span)
    return max(alone, _errors(before[:-1], together(before[-1], now), spread, span)) if before else alone


def together(one: Batch, other: Batch) -> Batch:
    """Two batches as one."""
    num_groups = one.num_groups + other.num_groups
    mean = (one.mean * one.num_groups + other.mean * other.num_groups) / num_groups
    apart = (one.mean - other.mean) ** 2 * one.num_groups * other.num_groups / num_groups
    return Batch(mean, num_groups, one.squares + other.squares + apart)


def _errors(before: Sequence[Batch], now: Batch, spread: float, span: float) -> float:
    freedom = sum(one.num_groups - 1 for one in before) + len(before) - 1
    if freedom < LEAST_FREEDOM or abs(now.mean - before[-1].mean) < spread:
        return 0.0
    within = sum(one.squares for one in before) / max(sum(one.num_groups - 1 for one in before), 1)
    changes = [_change(before[:number], before[number]) for number in range(1, len(before))]
    variance = max(within, now.variance, float(np.mean(np.square(changes))), (LEAST_SHARE * span) ** 2)
    return _change(before, now) / sqrt(variance)


def _change(before: Sequence[Batch], now: Batch) -> float:
    """The way from the mean of the recent batches, in units of how far chance takes it where groups differ by 1."""
    recent = before[-RECENT:]
    num_groups = sum(one.num_groups for one in recent)
    mean = sum(one.mean * one.num_groups for one in recent) / num_groups
    return abs(now.mean - mean) / sqrt(1 / now.num_groups + 1 / num_groups)
