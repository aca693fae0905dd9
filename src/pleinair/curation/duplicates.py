"""Near-duplicates: which pictures are the same picture, and which of them stays.

    fingerprints -> pairs within a radius -> groups (union-find) -> one keeper per group

How alike two pictures must be depends on what their labels say, because drawings of different things can differ by a
clock hand, and a style may be another's drawings rendered anew:

    identical   the labels contradict each other (another concept, or another hand): only the very same picture
    near        nothing contradicts (a label is missing, or all are equal): a copy, resized or recompressed
    render      the same concept in two styles declared to be renders of the same drawings

Pairs come from the exact search of `hamming`. Renders differ too much for that and need no search: they are the few
pictures of one concept.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pleinair.curation.hamming import MAX_RADIUS, Pairs, distances, near_pairs, packed
from pleinair.records.errors import ConfigError

_RELIT, _CLIPPED = 1.03, 250
_PAIRS_AT_ONCE = 2**14


@dataclass(frozen=True, kw_only=True)
class Radius:
    """How far apart fingerprints of duplicates may be. A pair must pass all three."""

    phash: int
    """Bits of `phash12_v2`, of 144."""
    colour: int
    """Sum over bins of the difference of levels of `colour_v2`."""
    thumb: int
    """Largest difference of any channel of any cell of `thumb16_v2`, of 255."""
    light: float = 1.0
    """Factor by which one may be lighter than the other. Cells are compared with it taken out; colours are not compared
    where it is over 1.03, as what was white is grey then and only the cells know that it is one change."""


@dataclass(frozen=True, kw_only=True)
class DuplicateLimits:
    """Radii and preferences; docs/curation.md has the measurements behind the defaults."""

    identical: Radius = field(default_factory=lambda: Radius(phash=0, colour=2, thumb=4))
    """Pairs whose labels contradict each other."""
    near: Radius = field(default_factory=lambda: Radius(phash=15, colour=14, thumb=48, light=1.5))
    """Pairs whose labels do not."""
    render: Radius = field(default_factory=lambda: Radius(phash=52, colour=16, thumb=255))
    """Pairs of one concept in styles that are renders of each other."""
    renders: tuple[tuple[str, str], ...] = ()
    """Pairs (style, style whose drawings it renders again)."""
    style_order: tuple[str, ...] = ()
    """Styles whose pictures are kept first; those not named come last."""
    min_entropy: float = 0.3
    """Bits per channel under which a picture takes part only if its bytes are equal: flat pictures all look alike."""

    def __post_init__(self) -> None:
        for name in ("identical", "near"):
            radius = getattr(self, name)
            if not 0 <= radius.phash <= MAX_RADIUS:
                most = f"0 to {MAX_RADIUS} bits, what the search can promise"
                raise ConfigError(f"duplicates.{name}.phash is {radius.phash}: give {most}")
            if not 1 <= radius.light <= 4:
                raise ConfigError(f"duplicates.{name}.light is {radius.light}: give a factor of 1 to 4")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the search knows about one picture."""

    name: str
    md5: str
    phash12_v2: str
    colour_v2: str
    thumb16_v2: bytes
    entropy: float
    num_pixels: int
    held_out: bool = False
    style: str | None = None
    concept: str | None = None


@dataclass(frozen=True)
class Duplicate:
    """A picture in a group of duplicates. The keeper's `drop` is empty and `of` is None."""

    name: str
    group: str
    """Name of the group's keeper."""
    of: str | None
    drop: str


def find_duplicates(pictures: Sequence[Picture], limits: DuplicateLimits) -> list[Duplicate]:
    """All pictures that have duplicates, keepers included. The order of `pictures` does not matter."""
    ordered = sorted(pictures, key=lambda picture: picture.name)
    pairs = duplicate_pairs(ordered, limits)
    found = []
    for members in groups(len(ordered), pairs):
        ranked = sorted((ordered[member] for member in members), key=lambda picture: _rank(picture, limits))
        found += [_verdict(picture, ranked[0]) for picture in ranked]
    return found


def _rank(picture: Picture, limits: DuplicateLimits) -> tuple[bool, int, int, str]:
    return keeper_order(picture.name, picture.held_out, picture.style, picture.num_pixels, limits.style_order)


def keeper_order(
    name: str, held_out: bool, style: str | None, num_pixels: int, style_order: Sequence[str]
) -> tuple[bool, int, int, str]:
    """Sort key of the keeper rule, best first.

    Held-out pictures come first: kept, they are never trained on; dropped in favour of a copy, they would be.
    """
    place = style_order.index(style) if style in style_order else len(style_order)
    return not held_out, place, -num_pixels, name


def _verdict(picture: Picture, keeper: Picture) -> Duplicate:
    if picture is keeper:
        return Duplicate(picture.name, keeper.name, None, "")
    if picture.md5 == keeper.md5:
        return Duplicate(picture.name, keeper.name, keeper.name, f"duplicate: same bytes as {keeper.name}")
    bits = int(distances(packed([picture.phash12_v2]), packed([keeper.phash12_v2]))[0])
    return Duplicate(picture.name, keeper.name, keeper.name, f"duplicate: {bits} of 144 bits from {keeper.name}")


def duplicate_pairs(pictures: Sequence[Picture], limits: DuplicateLimits) -> Pairs:
    """Every pair that counts as duplicates, as indices into `pictures`."""
    if not pictures:
        return np.empty((0, 2), dtype=np.int64)
    table = _Fingerprints.of(pictures, limits)
    found = [_equal_values(np.array([picture.md5 for picture in pictures], dtype=object))]
    widest = max(limits.identical.phash, limits.near.phash)
    places = np.flatnonzero(table.searchable)
    for near in near_pairs(table.bits[places], widest):
        candidates = places[near]
        found.append(candidates[table.accepts(candidates, limits)])
    renders = _render_candidates(pictures, limits)
    found.append(renders[table.within(renders, limits.render)])
    # One number per pair: np.unique over rows sorts twenty times slower.
    codes = np.unique(np.concatenate(found) @ np.array([len(pictures), 1]))
    return np.stack(np.divmod(codes, len(pictures)), axis=1)


@dataclass(frozen=True)
class _Fingerprints:
    """Fingerprints as arrays, one row per picture."""

    bits: NDArray[np.uint64]
    colours: NDArray[np.int16]
    thumbs: NDArray[np.uint8]
    concepts: NDArray[np.int64]
    styles: NDArray[np.int64]
    searchable: NDArray[np.bool_]

    @classmethod
    def of(cls, pictures: Sequence[Picture], limits: DuplicateLimits) -> _Fingerprints:
        colours = [[int(level, 16) for level in picture.colour_v2] for picture in pictures]
        return cls(
            bits=packed([picture.phash12_v2 for picture in pictures]),
            colours=np.array(colours, dtype=np.int16),
            thumbs=np.frombuffer(b"".join(picture.thumb16_v2 for picture in pictures), dtype=np.uint8).reshape(
                len(pictures), -1
            ),
            concepts=codes([picture.concept for picture in pictures]),
            styles=codes([picture.style for picture in pictures]),
            searchable=_searchable(pictures, limits.min_entropy),
        )

    def accepts(self, pairs: Pairs, limits: DuplicateLimits) -> NDArray[np.bool_]:
        """Which candidates are within the radius their labels ask for."""
        first, second = pairs.T
        contradict = differ(self.concepts[first], self.concepts[second]) | differ(
            self.styles[first], self.styles[second]
        )
        accepted: NDArray[np.bool_] = self.within(pairs, limits.near)
        accepted[contradict] = self.within(pairs[contradict], limits.identical)
        return accepted

    def within(self, pairs: Pairs, radius: Radius) -> NDArray[np.bool_]:
        """Which pairs are within `radius`; the cheap tests spare the dear one."""
        if len(pairs) > _PAIRS_AT_ONCE:  # 768 cells a pair are held at once
            parts = np.array_split(pairs, -(-len(pairs) // _PAIRS_AT_ONCE))
            return np.concatenate([self.within(part, radius) for part in parts])
        passed = distances(self.bits[pairs[:, 0]], self.bits[pairs[:, 1]]) <= radius.phash
        first, second = pairs[passed].T
        same_colours = np.abs(self.colours[first] - self.colours[second]).sum(axis=1) <= radius.colour
        if radius.light > 1:
            light, difference = relit(self.thumbs[first], self.thumbs[second])
            same_colours |= light > _RELIT
            passed[passed] = same_colours & (difference <= radius.thumb) & (light <= radius.light)
            return passed
        passed[passed] = same_colours
        first, second = pairs[passed].T
        differences = np.abs(self.thumbs[first].astype(np.int16) - self.thumbs[second])
        passed[passed] = differences.max(axis=1, initial=0) <= radius.thumb
        return passed


def relit(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The factor by which the lighter thumb of each pair is lighter, and the largest difference that it leaves.

    Least squares over what the lighter one has not clipped.
    """
    swap = first.sum(axis=1, dtype=np.int64) > second.sum(axis=1, dtype=np.int64)
    dark, lit = (np.where(swap[:, None], *pair).astype(np.float32) for pair in ((second, first), (first, second)))
    seen = np.where(lit < _CLIPPED, dark, 0)
    squares = (seen * dark).sum(axis=1)
    light = np.where(squares > 0, (seen * lit).sum(axis=1) / np.maximum(squares, 1), 1).clip(min=1).astype(np.float32)
    difference = np.abs(np.minimum(dark * light[:, None], 255) - lit).max(axis=1, initial=0)
    return light, difference


def _searchable(pictures: Sequence[Picture], min_entropy: float) -> NDArray[np.bool_]:
    """Pictures the search looks at: not flat, and of those equal in bytes and labels one, as equality joins the rest."""
    seen: set[tuple[str, str | None, str | None]] = set()
    chosen = []
    for picture in pictures:
        kind = (picture.md5, picture.concept, picture.style)
        chosen.append(picture.entropy >= min_entropy and kind not in seen)
        seen.add(kind)
    return np.array(chosen, dtype=np.bool_)


def differ(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Both known, and not the same."""
    different: NDArray[np.bool_] = (first >= 0) & (second >= 0) & (first != second)
    return different


def codes(values: Sequence[str | None]) -> NDArray[np.int64]:
    """Numbers that are equal where the values are; -1 for none."""
    numbers: dict[str | None, int] = {None: -1}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)


def _equal_values(values: NDArray[np.object_]) -> Pairs:
    """Pairs that chain together all equal values."""
    order = sorted(range(len(values)), key=lambda place: (values[place], place))
    neighbours = [(a, b) for a, b in itertools.pairwise(order) if values[a] == values[b]]
    return np.array(neighbours, dtype=np.int64).reshape(-1, 2)


def _render_candidates(pictures: Sequence[Picture], limits: DuplicateLimits) -> Pairs:
    """Pairs of one concept in styles that render the same drawings."""
    by_place = {(picture.style, picture.concept): place for place, picture in enumerate(pictures) if picture.concept}
    pairs = [
        sorted((place, by_place[original, concept]))
        for render, original in limits.renders
        for (style, concept), place in by_place.items()
        if style == render and (original, concept) in by_place
    ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def groups(count: int, pairs: Pairs) -> list[list[int]]:
    """Connected components with at least two members, each sorted, ordered by first member."""
    parent = list(range(count))

    def root(member: int) -> int:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for first, second in pairs.tolist():
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    members: dict[int, list[int]] = {}
    for member in range(count):
        members.setdefault(root(member), []).append(member)
    return [group for group in members.values() if len(group) > 1]
