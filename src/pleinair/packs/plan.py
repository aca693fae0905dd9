"""Which rows make a global batch, and with which of their captions: a function of (pack, seed, step)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from pleinair.packs.order import (
    HAND_WINDOWS,
    WINDOW_BATCHES,
    Deal,
    Ints,
    RowStream,
    choose,
    deal,
    permutation,
    row_stream,
    salt,
    uniform,
)
from pleinair.packs.pack import ShapeRows
from pleinair.records.errors import ConfigError

ORDER, WINDOW, DEAL, CAPTION, DROP = range(5)
"""What a hash is used for; each use has a randomness of its own."""
EMPTY_PROMPT = -1


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How rows become batches."""

    batch_size: int = 64
    """Pictures per batch, over all ranks."""
    seed: int = 0
    """Seed of order and caption choice."""
    caption_weights: tuple[float, ...] | None = None
    """Chance of each caption of a row, in the pack's order (long, medium, short); None for the weights in the pack."""
    drop_caption: float = 0.1
    """Chance of the empty prompt, for guidance."""
    remainder: Literal["drop", "short"] = "drop"
    """Rows of a shape that fill no batch: `drop` leaves others out of every epoch, `short` makes a short batch of them."""
    dtype: Literal["float32", "stored"] = "float32"
    """Type of the tensors; as stored they take half the memory and time."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}: give at least 1")
        if not 0 <= self.drop_caption <= 1:
            raise ConfigError(f"drop_caption is {self.drop_caption}: it is a chance, give a number from 0 to 1")
        weights = self.caption_weights
        if weights is not None and (not weights or min(weights) < 0 or not sum(weights)):
            raise ConfigError(f"caption_weights is {weights}: give none below 0, and one above it")

    def num_batches(self, num_rows: int) -> int:
        """Batches that so many rows of one shape make in an epoch."""
        return num_rows // self.batch_size if self.remainder == "drop" else -(-num_rows // self.batch_size)


@dataclass(frozen=True)
class Chosen:
    """The rows of one global batch: in the order of the stream they come from, unless batches are levelled."""

    rows: ShapeRows
    groups: Ints
    places: Ints
    """Row in its row group."""
    captions: Ints
    """Which of its captions, or EMPTY_PROMPT."""
    lengths: Ints
    """Tokens of that caption."""

    def part(self, rank: int, num_ranks: int) -> Chosen:
        """What one rank reads. The parts follow the stream, so a rank reads whole runs of a window and no other rank's."""
        first, last = (len(self.groups) * edge // num_ranks for edge in (rank, rank + 1))
        return Chosen(
            self.rows, *(values[first:last] for values in (self.groups, self.places, self.captions, self.lengths))
        )


@dataclass(frozen=True)
class Window:
    """The rows of some batches of one shape, in the order they have in a batch, and the batch each belongs to."""

    all: Chosen
    batches: Ints

    def batch(self, number: int) -> Chosen:
        """One of its batches."""
        index = np.flatnonzero(self.batches == number)
        mine = (values[index] for values in (self.all.groups, self.all.places, self.all.captions, self.all.lengths))
        return Chosen(self.all.rows, *mine)


class Planner:
    """Global batches over the shapes of one resolution."""

    def __init__(
        self, shapes: list[ShapeRows], config: LoaderConfig, empty_tokens: int, *, levelled: bool = False
    ) -> None:
        """`levelled` gives every batch of a window captions of all lengths, instead of captions of like length."""
        if levelled and config.remainder != "drop":
            raise ConfigError(f"remainder is {config.remainder!r}: packed text takes whole batches, set it to 'drop'")
        self.shapes, self.config, self.empty_tokens, self.levelled = shapes, config, empty_tokens, levelled
        self._counts = np.array([config.num_batches(rows.num_rows) for rows in shapes])
        self.num_batches = int(self._counts.sum())
        self._deal = lru_cache(maxsize=2)(self._deal_of)
        self._stream = lru_cache(maxsize=2 * len(shapes))(self._stream_of)
        self._window = lru_cache(maxsize=2 * HAND_WINDOWS)(self._window_of)

    @property
    def num_waiting(self) -> int:
        """Rows that an epoch leaves out; which ones differs between epochs, unless a shape has too few for a batch."""
        used = np.minimum(self._counts * self.config.batch_size, [rows.num_rows for rows in self.shapes])
        return sum(rows.num_rows for rows in self.shapes) - int(used.sum())

    def chosen(self, step: int) -> Chosen:
        """The rows of a step, counted from 0 over all epochs."""
        epoch, number = divmod(step, self.num_batches)
        shape, window, batch = self._deal(epoch).at(number)
        return self._window(epoch, shape, window).batch(batch)

    def _deal_of(self, epoch: int) -> Deal:
        return deal(self._counts, self.config.seed, DEAL, epoch)

    def _stream_of(self, epoch: int, shape: int) -> RowStream:
        return row_stream(self.shapes[shape].sizes, self.config.seed, ORDER, epoch, shape)

    def _window_of(self, epoch: int, shape: int, number: int) -> Window:
        size, rows = self.config.batch_size, self.shapes[shape]
        first = number * WINDOW_BATCHES * size
        last = min(first + WINDOW_BATCHES * size, int(self._counts[shape]) * size, rows.num_rows)
        groups, places = self._stream(epoch, shape).at(np.arange(first, last))
        captions, lengths = self._draw(rows, groups, places, epoch)
        shuffled = permutation(len(groups), self.config.seed, WINDOW, epoch, shape, number)
        by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
        if self.levelled:
            order = levelled(by_length, size)
            chosen = Chosen(rows, *(values[order] for values in (groups, places, captions, lengths)))
            return Window(chosen, np.arange(len(order)) // size)
        batches = np.empty(len(groups), np.int64)
        batches[by_length] = np.arange(len(groups)) // size
        return Window(Chosen(rows, groups, places, captions, lengths), batches)

    def _draw(self, rows: ShapeRows, groups: Ints, places: Ints, epoch: int) -> tuple[Ints, Ints]:
        """A caption for each row, from a hash of (seed, epoch, key), and its length."""
        names = rows.pack.manifest.caption_names
        if not rows.pack.manifest.text_dim:
            return np.full(len(groups), EMPTY_PROMPT), np.zeros(len(groups), np.int64)
        captions, lengths = [], []
        draw, drop = (salt(self.config.seed, use, epoch) for use in (CAPTION, DROP))
        for run in runs(groups):
            group, at = rows.group(int(groups[run.start])), places[run]
            hashes = group.fixed("key_hash", np.uint64)[at, 0]
            weights = self._weights(group.fixed("caption_weights", np.float32, len(names))[at])
            drawn = choose(weights, uniform(hashes, draw))
            tokens = group.fixed("num_tokens", np.int32, len(names))[at, drawn]
            dropped = uniform(hashes, drop) < self.config.drop_caption
            captions.append(np.where(dropped, EMPTY_PROMPT, drawn))
            lengths.append(np.where(dropped, self.empty_tokens, tokens))
        return np.concatenate(captions), np.concatenate(lengths)

    def _weights(self, packed_NV: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.config.caption_weights is None:
            return packed_NV
        return np.broadcast_to(np.asarray(self.config.caption_weights, np.float32), packed_NV.shape)


def levelled(by_length: Ints, size: int) -> Ints:
    """Whole batches of `size` out of rows sorted by length, each with some of every length; batch after batch.

    Sorted rows are dealt to the batches back and forth, and a batch's are laid in bit-reversed order: an n-th part of it, for
    n a power of two, holds every n-th of its lengths, so parts differ by less than the longest and the shortest caption.
    """
    tiers_TB = by_length.reshape(size, -1).copy()
    tiers_TB[1::2] = tiers_TB[1::2, ::-1]
    bits = max(size - 1, 1).bit_length()
    reversed_bits = [int(f"{place:0{bits}b}"[::-1], 2) for place in range(size)]
    levels: Ints = tiers_TB[np.argsort(reversed_bits)].T.ravel()
    return levels


def runs(values: Ints) -> Iterator[slice]:
    """Slices of equal neighbours."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    yield from (slice(first, last) for first, last in itertools.pairwise(edges) if last > first)
