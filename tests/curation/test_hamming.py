"""The search for near hashes, against comparing all with all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pleinair.curation.hamming import HASH_BITS, near_pairs, packed


def as_words(bits: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return packed([row.tobytes().hex() for row in np.packbits(bits, axis=1)])


def pairs_of(words: NDArray[np.uint64], radius: int, new_from: int = 0) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for block in near_pairs(words, radius, new_from=new_from) for i, j in block}


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(2, 80), st.integers(0, 17), st.booleans(), st.booleans())
def test_the_search_finds_exactly_what_comparing_all_finds(
    seed: int, count: int, radius: int, skewed: bool, grown: bool
) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2, (max(1, count // 6), HASH_BITS), dtype=np.uint8)
    if skewed:
        centres[:, :120] = 0
    bits = centres[rng.integers(0, len(centres), count)]
    for row in bits:
        row[rng.choice(HASH_BITS, rng.integers(0, radius + 3), replace=False)] ^= 1
    new_from = int(rng.integers(0, count)) if grown else 0
    naive = {
        (i, j)
        for i, j in itertools.combinations(range(count), 2)
        if j >= new_from and (bits[i] != bits[j]).sum() <= radius
    }
    assert pairs_of(as_words(bits), radius, new_from) == naive


@pytest.mark.parametrize("radius", [0, 2, 14, 17])
def test_bands_of_every_width_find_hashes_at_exactly_the_radius(radius: int) -> None:
    rng = np.random.default_rng(radius)
    bits = rng.integers(0, 2, (6000, HASH_BITS), dtype=np.uint8)
    bits[3000:3200] = bits[:200]
    for row in bits[3000:3200]:
        row[rng.choice(HASH_BITS, radius, replace=False)] ^= 1
    assert {(place, 3000 + place) for place in range(200)} <= pairs_of(as_words(bits), radius)


def test_no_arrangement_of_differing_bits_slips_through_the_bands_of_many_hashes() -> None:
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2, (70_000, HASH_BITS), dtype=np.uint8)
    bits[-1] = bits[0]
    two_in_each_of_eight_bands = [18 * band + place for band in range(8) for place in (3, 9)]
    for place in (*two_in_each_of_eight_bands, 4):
        bits[-1, place ^ 7] ^= 1  # within a byte packbits counts from the other end
    assert (0, 69_999) in pairs_of(as_words(bits), 17)


def test_thousands_of_equal_hashes_come_in_blocks() -> None:
    words = as_words(np.zeros((1100, HASH_BITS), np.uint8))
    blocks = list(near_pairs(words, 0))
    assert max(len(block) for block in blocks) <= 2**17
    assert len(set((np.concatenate(blocks) @ [1100, 1]).tolist())) == 1100 * 1099 // 2


def test_a_radius_beyond_the_promise_is_refused() -> None:
    with pytest.raises(ValueError, match="radius 18 is outside 0 to 17 bits"):
        next(near_pairs(as_words(np.zeros((2, HASH_BITS), np.uint8)), 18))
