"""The order of an epoch as a pure function: which rows, with which captions' draws, make which batch.

    groups of rows of a shape --permute--> stream of rows --cut--> windows --permute, sort by text length--> batches
    windows of all shapes --permute--> hands of a few windows --deal in random order--> global batch g

Rows are shuffled when they are packed, so a run of them is a random sample already; an epoch permutes runs (row groups,
read as one piece), then rows inside a window of several runs. What that costs in randomness and saves in seeks is in
docs/packs.md. Randomness comes from a hash, not from a generator: equal over library versions, and of one row at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Hashes: TypeAlias = npt.NDArray[np.uint64]

WINDOW_BATCHES = 16
"""Batches among which rows are shuffled and sorted by text length: little padding, and still shuffled."""
HAND_WINDOWS = 4
"""Windows whose batches are dealt in random order, so that shapes alternate."""


def mix(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): 64 bits to 64 bits, one to one."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed


def salt(*parts: int) -> Hashes:
    """One number for a seed and what it is used for, as an array of one."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mix(state ^ np.uint64(part % 2**64))
    return state


def uniform(hashes: Hashes, salted: Hashes) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each hash, different for another salt."""
    return (mix(hashes ^ salted) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(length: int, *parts: int) -> Ints:
    """0 .. length - 1 in an order that depends on `parts` alone."""
    order: Ints = np.argsort(mix(np.arange(length, dtype=np.uint64) ^ salt(*parts)), kind="stable")
    return order


def choose(weights_NV: npt.NDArray[np.float32], draw_N: npt.NDArray[np.float64]) -> Ints:
    """Index of one weight per row, drawn in proportion; `draw_N` in [0, 1)."""
    upto_NV = np.cumsum(weights_NV, axis=1, dtype=np.float64)
    chosen: Ints = (upto_NV <= draw_N[:, None] * upto_NV[:, -1:]).sum(axis=1)
    return chosen


@dataclass(frozen=True)
class RowStream:
    """The rows of one shape in the order of one epoch."""

    groups: Ints
    """Row groups in order."""
    ends: Ints
    """Position after the last row of each."""

    def at(self, positions: Ints) -> tuple[Ints, Ints]:
        """Row group, and row in it, at each position."""
        place = np.searchsorted(self.ends, positions, side="right")
        starts = np.concatenate([np.zeros(1, np.int64), self.ends])[place]
        return self.groups[place], positions - starts


def row_stream(group_sizes: Ints, *parts: int) -> RowStream:
    """The groups in an order that depends on `parts` alone."""
    groups = permutation(len(group_sizes), *parts)
    return RowStream(groups, np.cumsum(group_sizes[groups]))


@dataclass(frozen=True)
class Deal:
    """How the global batches of an epoch are spread over windows of all shapes."""

    shapes: Ints
    """Shape of each window, in the epoch's order."""
    windows: Ints
    """Number of the window within its shape."""
    sizes: Ints
    """Batches in each window."""
    hand_ends: Ints
    """Batches up to the end of each hand."""
    parts: tuple[int, ...]

    def at(self, batch: int) -> tuple[int, int, int]:
        """Shape, window of that shape, and batch in the window, of a global batch of this epoch."""
        hand = int(np.searchsorted(self.hand_ends, batch, side="right"))
        first = int(self.hand_ends[hand - 1]) if hand else 0
        window = np.arange(hand * HAND_WINDOWS, min((hand + 1) * HAND_WINDOWS, len(self.sizes)))
        cards = np.repeat(window, self.sizes[window])
        drawn = int(permutation(len(cards), *self.parts, hand)[batch - first])
        chosen = cards[drawn]
        number = drawn - int(np.searchsorted(cards, chosen))
        return int(self.shapes[chosen]), int(self.windows[chosen]), number


def deal(batches_of_shape: Ints, *parts: int) -> Deal:
    """Windows of all shapes in an order that depends on `parts` alone."""
    counts = -(-batches_of_shape // WINDOW_BATCHES)
    shapes = np.repeat(np.arange(len(counts)), counts)
    windows = np.concatenate([np.arange(count) for count in counts])
    sizes = np.minimum(WINDOW_BATCHES, batches_of_shape[shapes] - windows * WINDOW_BATCHES)
    order = permutation(len(shapes), *parts)
    ends = np.cumsum(sizes[order])
    last = np.minimum(np.arange(HAND_WINDOWS, len(ends) + HAND_WINDOWS, HAND_WINDOWS), len(ends)) - 1
    return Deal(shapes[order], windows[order], sizes[order], ends[last], parts)
