"""Pairs of 144-bit hashes within a Hamming radius: exact, in memory that does not grow with what is compared.

The bits are cut into bands. Of two hashes at most 2 m - 1 bits apart, some one of m bands differs in one bit at most. So
every band is sorted, and each of its buckets meets itself and the buckets whose value differs in one bit: a millionth of
all pairs. Those are compared in blocks that stay in the cache, first by the word that the band is not in.

    10^6 hashes   8 bands of 18 bits, 0.3 x 10^9 comparisons, seconds
    10^8 hashes   the same with 24-bit bands, one band at a time from disk: sorted files in, pairs out (not run here)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

HASH_BITS = 144
MAX_RADIUS = 17
_WIDEST_BAND = 24
_PAIRS_AT_ONCE = 2**17

Pairs = NDArray[np.int64]
"""Shape (number of pairs, 2), first index below second."""


def packed(hashes: list[str]) -> NDArray[np.uint64]:
    """Hashes of 36 hex digits as three 64-bit words each, shape (count, 3), the last padded with zeros."""
    words = np.zeros((len(hashes), 24), dtype=np.uint8)
    words[:, :18] = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint8).reshape(len(hashes), 18)
    return words.view(np.uint64)


def distances(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Differing bits, row by row."""
    bits: NDArray[np.int64] = np.bitwise_count(first ^ second).sum(axis=1, dtype=np.int64)
    return bits


def near_pairs(words: NDArray[np.uint64], radius: int, *, new_from: int = 0) -> Iterator[Pairs]:
    """Pairs of rows of `words` (see `packed`) at most `radius` bits apart, in blocks; a pair may come more than once.

    With `new_from`, only pairs with a row from there on: what was found among the earlier rows stays found. Equal rows
    are compared once and then paired each with each, so give only what must be told apart. Raises ValueError over 17 bits.
    """
    if not 0 <= radius <= MAX_RADIUS:
        raise ValueError(
            f"radius {radius} is outside 0 to {MAX_RADIUS} bits, what bands with one-bit probes can promise"
        )
    for band in _bands(words, radius):
        for mask in band.masks:
            for first, second in band.meetings(mask, new_from):
                near = _near(band, first, second, radius)
                pairs = np.stack([band.order[first[near]], band.order[second[near]]], axis=1)
                yield np.sort(pairs, axis=1).astype(np.int64)


def _bands(words: NDArray[np.uint64], radius: int) -> Iterator[_Band]:
    widest = min(_WIDEST_BAND, max(12, len(words).bit_length() + 1))  # buckets of a few hashes, but not mostly empty
    count = max(radius // 2 + 1, -(-HASH_BITS // widest))
    for low, high in pairwise(round(edge) for edge in np.linspace(0, HASH_BITS, count + 1)):
        # With fewer differing bits than bands one band is untouched, and probing neighbours would find nothing new.
        masks = [0] if radius < count else [0, *(1 << bit for bit in range(high - low))]
        yield _Band.of(words, low, high, masks)


@dataclass(frozen=True)
class _Band:
    """One band of all hashes, sorted by its value."""

    order: NDArray[np.int64]
    values: NDArray[np.uint32]
    words: NDArray[np.uint64]
    """Shape (3, count), in the band's order, the word that says most first."""
    starts: NDArray[np.int64]
    """Where each value's bucket begins; one more than there are values."""
    masks: list[int]

    @classmethod
    def of(cls, words: NDArray[np.uint64], low: int, high: int, masks: list[int]) -> _Band:
        values = _cut(words, low, high)
        order = np.argsort(values, kind="stable")
        away = [1, 0, 2] if low < 64 else [0, 1, 2]
        counts = np.bincount(values, minlength=1 << (high - low))
        starts = np.concatenate([[0], np.cumsum(counts)])
        return cls(order, values[order], np.ascontiguousarray(words[order].T[away]), starts, masks)

    def meetings(self, mask: int, new_from: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Places in the band's order whose values differ by `mask`, each pair of places once."""
        places = np.arange(len(self.values))
        if new_from:
            places = places[self.order >= new_from]
        elif mask:
            places = places[(self.values & mask) == 0]
        other = self.values[places] ^ np.uint32(mask)
        begin = self.starts[other] if mask or new_from else places + 1
        size = self.starts[other + np.uint32(1)] - begin
        for first, second in _spread(places, begin, size):
            if new_from:
                new = self.order[second] >= new_from
                keep = ~new | (first < second)
                first, second = first[keep], second[keep]
            yield first, second


def _cut(words: NDArray[np.uint64], low: int, high: int) -> NDArray[np.uint32]:
    """Bits `low` to `high` of every hash as a number."""
    word, shift = divmod(low, 64)
    value = words[:, word] >> np.uint64(shift)
    if shift + high - low > 64:
        value |= words[:, word + 1] << np.uint64(64 - shift)
    return (value & np.uint64((1 << (high - low)) - 1)).astype(np.uint32)


def _spread(
    places: NDArray[np.int64], begin: NDArray[np.int64], size: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Each place with every number from its `begin` on, `size` of them, in blocks."""
    ends = np.cumsum(size)
    total, row = int(ends[-1]) if len(ends) else 0, 0
    for low in range(0, total, _PAIRS_AT_ONCE):
        high = min(low + _PAIRS_AT_ONCE, total)
        last = int(np.searchsorted(ends, high, side="left")) + 1
        before = ends[row:last] - size[row:last]
        part = np.minimum(ends[row:last], high) - np.maximum(before, low)
        second = np.arange(low, high) + np.repeat(begin[row:last] - before, part)
        yield np.repeat(places[row:last], part), second
        row = last - 1


def _near(band: _Band, first: NDArray[np.int64], second: NDArray[np.int64], radius: int) -> NDArray[np.int64]:
    """Which meetings are within the radius: one word rules out nearly all, the others decide about the rest."""
    apart = np.bitwise_count(band.words[0][first] ^ band.words[0][second])
    near: NDArray[np.int64] = np.flatnonzero(apart <= radius)
    left = apart[near].astype(np.int64)
    for word in band.words[1:]:
        left += np.bitwise_count(word[first[near]] ^ word[second[near]])
    within: NDArray[np.int64] = near[left <= radius]
    return within
