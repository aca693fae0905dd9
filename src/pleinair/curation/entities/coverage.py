"""Which entities a set of pictures covers, and a sample in which none of them is lost.

    matches --count--> pictures per entity --rare first--> a sample --count again--> proof that every entity is still there

All functions are pure; a picture is a place in `keys` and in `Matches`, an entity a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pleinair.curation.entities.matching import Matches
from pleinair.records.errors import CoverageError

Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

BINS: tuple[tuple[str, int, int], ...] = (
    ("none", 0, 0),
    ("1", 1, 1),
    ("2-3", 2, 3),
    ("4-9", 4, 9),
    ("10-99", 10, 99),
    ("100-999", 100, 999),
    ("1000 and more", 1000, 1 << 62),
)
"""How many pictures an entity has: name, least, most."""


@dataclass(frozen=True)
class Sample:
    """A choice of pictures that keeps every entity."""

    chosen: Mask
    num_required: int
    """Pictures taken because an entity would otherwise have fewer than `keep`."""


def pictures_per_entity(matches: Matches, num_entities: int) -> Counts:
    """How many captions name each entity."""
    return np.bincount(matches.entities, minlength=num_entities).astype(np.int64)


def coverage_bins(counts: Counts) -> dict[str, int]:
    """Number of entities by how many pictures they have; see BINS."""
    return {name: int(((counts >= least) & (counts <= most)).sum()) for name, least, most in BINS}


def rarity_weights(matches: Matches, counts: Counts, *, power: float = 0.5) -> npt.NDArray[np.float64]:
    """Sampling weight of each picture: (pictures of its rarest entity) ** -power; largest count for those without any.

    `power` 0 is plain random sampling, 1 makes an entity of one picture as likely to be drawn as all of another's.
    """
    most = float(counts.max(initial=1))
    rarest = np.full(len(matches.offsets) - 1, most)
    named = np.flatnonzero(np.diff(matches.offsets))
    if len(named):
        rarest[named] = np.minimum.reduceat(counts[matches.entities], matches.offsets[named])
    weights: npt.NDArray[np.float64] = np.maximum(rarest, 1.0) ** -power
    return weights


def sample_rare_first(
    keys: Sequence[str],
    matches: Matches,
    size: int,
    *,
    num_entities: int,
    keep: int = 1,
    power: float = 0.5,
    seed: int = 0,
) -> Sample:
    """`size` of the pictures, in which every entity keeps at least min(keep, its pictures).

    Entities claim their pictures from the rarest on; what is left of `size` is drawn by `rarity_weights` without
    replacement. A picture's luck is a hash of its key and the seed: the same pictures give the same sample in any order.
    Raises CoverageError when `size` cannot hold what the entities need, with the size that can.
    """
    if not 0 <= size <= len(keys):
        raise ValueError(f"a sample of {size} of {len(keys)} pictures: give a size between 0 and {len(keys)}")
    if keep < 1:
        raise ValueError(f"keep is {keep}: every entity keeps at least 1 picture")
    counts = pictures_per_entity(matches, num_entities)
    luck = _luck(keys, seed)
    chosen = required_pictures(matches, counts, keep, luck)
    num_required = int(chosen.sum())
    if num_required > size:
        raise CoverageError(
            f"{size} pictures cannot keep every entity: {num_required} are needed for {int((counts > 0).sum())} entities "
            f"with keep={keep}; enlarge the sample, or lower keep"
        )
    # Exponential races: the smallest of luck ** weight-scaled arrivals are a weighted draw without replacement.
    arrivals = -np.log(luck) / rarity_weights(matches, counts, power=power)
    arrivals[chosen] = -1.0
    chosen[np.argsort(arrivals, kind="stable")[:size]] = True
    return Sample(chosen, num_required)


def _luck(keys: Sequence[str], seed: int) -> npt.NDArray[np.float64]:
    """A number in (0, 1) per key."""
    salt = seed.to_bytes(8, "little", signed=True)
    digests = (hashlib.blake2b(key.encode(), digest_size=8, key=salt).digest() for key in keys)
    bits = np.frombuffer(b"".join(digests), "<u8")
    return (bits.astype(np.float64) + 0.5) / 2.0**64


def required_pictures(
    matches: Matches, counts: Counts, keep: int, luck: npt.NDArray[np.float64], already: Mask | None = None
) -> Mask:
    """Pictures without which some entity would have fewer than min(keep, all it has); rare entities choose first.

    Those chosen `already` count, and stay in the answer.
    """
    chosen = np.zeros(len(matches.offsets) - 1, bool) if already is None else already.copy()
    kept = pictures_per_entity(taken(matches, chosen), len(counts))
    starts, pictures = _pictures_by_entity(matches, counts, luck)
    for entity in np.argsort(counts, kind="stable").tolist():
        need = min(keep, int(counts[entity])) - int(kept[entity])
        if need <= 0:
            continue
        own = pictures[starts[entity] : starts[entity + 1]]
        for picture in own[~chosen[own]][:need].tolist():
            chosen[picture] = True
            kept[matches.entities[matches.offsets[picture] : matches.offsets[picture + 1]]] += 1
    return chosen


def _pictures_by_entity(
    matches: Matches, counts: Counts, luck: npt.NDArray[np.float64]
) -> tuple[Counts, npt.NDArray[np.int64]]:
    """The pictures of each entity, luckiest first, as starts and places."""
    owners = np.repeat(np.arange(len(matches.offsets) - 1), np.diff(matches.offsets))
    order = np.lexsort((luck[owners], matches.entities))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]), owners[order]


def require_none_lost(before: Counts, after: Counts, names: Sequence[str], *, keep: int = 1) -> None:
    """Raises CoverageError naming entities that had pictures and now have fewer than min(keep, those)."""
    lost = np.flatnonzero(after < np.minimum(before, keep))
    if len(lost):
        worst = ", ".join(f"{names[entity]} ({before[entity]} before, {after[entity]} after)" for entity in lost[:5])
        raise CoverageError(
            f"{len(lost)} entities lost too many pictures: {worst}; sample with sample_rare_first, or enlarge the sample"
        )


def taken(matches: Matches, chosen: npt.NDArray[Any]) -> Matches:
    """The matches of the chosen pictures only, in their order."""
    places = np.flatnonzero(chosen)
    lengths = np.diff(matches.offsets)[places]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    inside = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], lengths)
    return Matches(offsets, matches.entities[np.repeat(matches.offsets[places], lengths) + inside])
