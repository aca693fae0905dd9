"""Near hashes among a million, with planted copies: of even bits, and of bits that are each set with its own probability.

The peer is faiss's multi-index hash with 24-bit bands and one flip, which promises 11 bits where ours is exact to 14.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from statistics import median

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.krablet.rounds import Result, interleaved, result
from pleinair.curation.hamming import HASH_BITS, near_pairs

COUNT, RADIUS = 1_000_000, 14
Hashes = NDArray[np.uint8]


def measure(rounds: int = 3) -> list[Result]:
    """`neardup_1m_seconds` and the same for skewed hashes and for new ones against old: CPU seconds of one core."""
    rng = np.random.default_rng(0)
    even, planted = with_copies(rng.integers(0, 2, (COUNT, HASH_BITS), dtype=np.uint8), rng)
    skewed, _ = with_copies((rng.random((COUNT, HASH_BITS)) < rng.beta(3, 3, HASH_BITS)).astype(np.uint8), rng)
    words_even, words_skewed = as_words(even), as_words(skewed)
    codes = np.packbits(even, axis=1)
    runs: dict[str, Callable[[], float]] = {
        "ours": lambda: cpu_seconds(lambda: near_pairs(words_even, RADIUS)),
        "skewed": lambda: cpu_seconds(lambda: near_pairs(words_skewed, RADIUS)),
        "new": lambda: cpu_seconds(lambda: near_pairs(words_even, RADIUS, new_from=COUNT - COUNT // 10)),
        "faiss": lambda: cpu_seconds(lambda: [faiss_pairs(codes)]),
    }
    values = interleaved(rounds, runs)
    found = {tuple(pair) for block in near_pairs(words_even, RADIUS) for pair in block.tolist()}
    missed = len(planted - found)
    peer = "faiss IndexBinaryMultiHash 6 x 24, exact to 11 bits"
    return [
        result(
            "neardup_1m_seconds",
            median(values["ours"]),
            "CPU s",
            peer,
            median(values["ours"]) / median(values["faiss"]),
        ),
        result("neardup_1m_missed", missed, f"of {len(planted)} planted"),
        result("neardup_1m_skewed_seconds", median(values["skewed"]), "CPU s"),
        result("neardup_100k_new_seconds", median(values["new"]), "CPU s"),
    ]


def with_copies(bits: Hashes, rng: np.random.Generator) -> tuple[Hashes, set[tuple[int, int]]]:
    """Every twentieth hash copied over one of the second half, up to `RADIUS` bits away; and these pairs."""
    half, number = len(bits) // 2, len(bits) // 20
    sources = rng.choice(half, number, replace=False)
    copies = half + rng.choice(half, number, replace=False)
    for source, copy in zip(sources, copies, strict=True):
        bits[copy] = bits[source]
        bits[copy, rng.choice(HASH_BITS, rng.integers(0, RADIUS + 1), replace=False)] ^= 1
    return bits, set(zip(sources.tolist(), copies.tolist(), strict=True))


def as_words(bits: Hashes) -> NDArray[np.uint64]:
    padded = np.zeros((len(bits), 24), dtype=np.uint8)
    padded[:, :18] = np.packbits(bits, axis=1)
    return padded.view(np.uint64)


def faiss_pairs(codes: Hashes) -> int:
    index = faiss.IndexBinaryMultiHash(HASH_BITS, 6, 24)
    index.nflip = 1
    index.add(codes)
    limits, _, _ = index.range_search(codes, RADIUS + 1)
    return int(limits[-1])


def cpu_seconds(search: Callable[[], Iterable[object]]) -> float:
    began = time.process_time()
    for _ in search():
        pass
    return time.process_time() - began
