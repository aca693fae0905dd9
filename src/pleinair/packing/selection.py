"""Which pictures of a pool a mix takes: pure functions over arrays, the same on every machine.

    weights --largest remainder--> a target per source
    entities --rarest first--> pictures no entity can do without
    clusters --even from the top down, no less than those--> a share per leaf
    luck / rarity --smallest first--> the rest of every share

The luck of a picture is a keyed hash of its name, so neither the order of rows nor what else is in the warehouse changes it.
Shares are integers, and arithmetic that decides is division and comparison, which all machines do alike.

N pictures, in the order of their luck; M mentions of entities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pleinair.curation.entities.coverage import pictures_per_entity, rarity_weights, required_pictures
from pleinair.curation.entities.matching import Matches
from pleinair.packing.mix import Mix
from pleinair.records.errors import ConfigError, CoverageError

Ints: TypeAlias = npt.NDArray[np.int64]
Luck: TypeAlias = npt.NDArray[np.uint64]
Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pool:
    """The pictures a mix may take, by rising luck."""

    luck_N: Luck
    source_N: npt.NDArray[np.int16]
    """Place of the source in the mix."""
    leaf_N: npt.NDArray[np.int32]
    """Place in `leaves`."""
    leaves: tuple[str, ...]
    """Paths of clusters, `top/.../leaf`, sorted; one empty path where nothing is clustered."""
    matches: Matches
    """Entities that each picture names."""
    entities: tuple[str, ...]
    """Keys of entities, sorted."""

    @property
    def counts(self) -> Ints:
        """Pictures of each entity."""
        return pictures_per_entity(self.matches, len(self.entities))


@dataclass(frozen=True)
class Choice:
    """What is taken of a pool."""

    repeats_N: npt.NDArray[np.int32]
    """How often each picture comes; 0 leaves it out."""
    targets: tuple[int, ...]
    """Sum of the repeats by source."""
    num_required: int
    """Pictures taken because an entity would otherwise have fewer than it keeps."""


def luck_of(keys: Sequence[str], seed: int) -> Luck:
    """64 bits per key."""
    salt = seed.to_bytes(8, "little", signed=True)
    digests = (hashlib.blake2b(key.encode(), digest_size=8, key=salt).digest() for key in keys)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def choose(pool: Pool, mix: Mix) -> Choice:
    """Repeats that meet the mix. Raises ConfigError for weights the pool cannot meet, CoverageError for entities."""
    sizes = np.bincount(pool.source_N, minlength=len(mix.sources))
    total = length_of(mix, int(sizes.sum()))
    targets = source_targets(mix, sizes, total)
    groups = _groups(pool, mix, targets)
    base_N = np.zeros(len(pool.luck_N), np.int32)
    for members, target in groups:
        base_N[members] = target // max(1, len(members))
    required_N = _required(pool, mix, base_N > 0) & (base_N == 0)
    weights_N = _rarity(pool, mix)
    for members, target in groups:
        rest = target - int(base_N[members].sum())
        forced_N = required_N[members]
        _check_room(int(forced_N.sum()), rest, target, mix, pool.source_N[members])
        base_N[members[_take(pool, members, forced_N, rest, weights_N[members], mix)]] += 1
    taken = np.bincount(pool.source_N, base_N, minlength=len(mix.sources)).astype(int)
    return Choice(base_N, tuple(taken.tolist()), int(required_N.sum()))


def length_of(mix: Mix, size: int) -> int:
    """Pictures in one pass, repeats counted. Raises ConfigError for an empty pool."""
    if not size:
        raise ConfigError("no picture fits the mix: see what each condition costs with 'pleinair mix FILE --explain'")
    return mix.pictures if mix.pictures is not None else round((mix.epochs or 1.0) * size)


def source_targets(mix: Mix, sizes: Ints, total: int) -> list[int]:
    """How many pictures each source gives, repeats counted; `total` in one number where no source has a weight.

    Raises ConfigError naming a source that cannot give its share, and what would fit.
    """
    weights = [source.weight for source in mix.sources if isinstance(source.weight, float)]
    targets = largest_remainder(weights, total) if weights else [total]
    held = sizes.tolist() if weights else [int(sizes.sum())]
    for place, (target, size) in enumerate(zip(targets, held, strict=True)):
        if target > size * mix.max_repeats:
            _refuse_share(mix, place, weights, target, size, held)
    return targets


def _refuse_share(mix: Mix, place: int, weights: Sequence[float], target: int, size: int, held: Sequence[int]) -> None:
    name = f"sources.{mix.sources[place].name}" if weights else "the mix"
    if not size:
        raise ConfigError(f"{name} has no picture that fits: correct its name or condition, or remove it")
    shares = [weight / sum(weights) for weight in weights] or [1.0]
    most = int(min(count * mix.max_repeats / share for count, share in zip(held, shares, strict=True)))
    raise ConfigError(
        f"{name} has {size} pictures and is asked for {target}: ask for at most {most} pictures in all, change the weights, "
        f"or let a picture come more often with max_repeats = {-(-target // size)}"
    )


def largest_remainder(weights: Sequence[float], total: int) -> list[int]:
    """Integers in proportion to the weights whose sum is `total`, each within one of its exact share."""
    exact = [weight / sum(weights) * total for weight in weights]
    shares = [int(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda place: (shares[place] - exact[place], place))
    for place in by_rest[: total - sum(shares)]:
        shares[place] += 1
    return shares


def _groups(pool: Pool, mix: Mix, targets: Sequence[int]) -> list[tuple[Ints, int]]:
    """The places that share a target: a source each, or all."""
    if len(targets) == 1:
        return [(np.arange(len(pool.source_N)), targets[0])]
    return [(np.flatnonzero(pool.source_N == place), target) for place, target in enumerate(targets)]


def _required(pool: Pool, mix: Mix, already_N: Mask) -> Mask:
    if mix.entities is None:
        return np.zeros(len(pool.luck_N), bool)
    # The pool is in the order of luck, so the place is as good as the luck itself, and has no ties.
    place_N = np.arange(len(pool.luck_N), dtype=np.float64)
    return required_pictures(pool.matches, pool.counts, mix.entities.keep, place_N, already_N)


def _rarity(pool: Pool, mix: Mix) -> npt.NDArray[np.float64]:
    """Weight of each picture; rounded, as machines differ in the last bits of a power."""
    if mix.entities is None:
        return np.ones(len(pool.luck_N))
    weights_N = rarity_weights(pool.matches, pool.counts, power=mix.entities.power)
    return weights_N.astype(np.float32).astype(np.float64)


def _check_room(num_forced: int, rest: int, target: int, mix: Mix, source_N: npt.NDArray[np.int16]) -> None:
    if num_forced <= rest:
        return
    names = sorted({mix.sources[place].name for place in np.unique(source_N).tolist()})
    raise CoverageError(
        f"{num_forced} pictures of {', '.join(names)} are needed so that no entity vanishes, and there is room for {rest} "
        f"of {target}: ask for more pictures, give the source more weight, or lower entities.keep"
    )


def _take(pool: Pool, members: Ints, forced_N: Mask, target: int, weights_N: npt.NDArray[np.float64], mix: Mix) -> Ints:
    """Places in `members`: the forced ones, and the luckiest for their rarity, as even over clusters as the mix asks."""
    arrival_N = (pool.luck_N[members] >> np.uint64(11)).astype(np.float64) / weights_N
    arrival_N[forced_N] = -1.0
    if mix.clusters is None:
        luckiest: Ints = np.argsort(arrival_N, kind="stable")[:target]
        return luckiest
    leaf_N = pool.leaf_N[members]
    sizes = np.bincount(leaf_N, minlength=len(pool.leaves))
    floors = np.bincount(leaf_N[forced_N], minlength=len(pool.leaves))
    shares, leaf_of = _cluster_shares(pool.leaves, sizes, floors, target, mix)
    cut_N = leaf_of[leaf_N]
    order = np.lexsort((arrival_N, cut_N))
    sorted_N = cut_N[order]
    place_N = np.arange(len(order)) - np.searchsorted(sorted_N, sorted_N)
    taken: Ints = order[place_N < shares[sorted_N]]
    return taken


def _cluster_shares(leaves: Sequence[str], sizes: Ints, floors: Ints, target: int, mix: Mix) -> tuple[Ints, Ints]:
    """Shares of the clusters of the lowest balanced level, and which of them each leaf belongs to."""
    levels = mix.clusters.levels if mix.clusters else None
    paths = [tuple(leaf.split("/"))[:levels] for leaf in leaves]
    nodes = sorted(set(paths))
    number = {node: place for place, node in enumerate(nodes)}
    leaf_of = np.array([number[path] for path in paths], np.int64)
    node_sizes, node_floors = (
        np.bincount(leaf_of, of, minlength=len(nodes)).astype(np.int64) for of in (sizes, floors)
    )
    return tree_shares(nodes, node_sizes, node_floors, target, mix.seed), leaf_of


def tree_shares(nodes: Sequence[tuple[str, ...]], sizes: Ints, floors: Ints, target: int, seed: int) -> Ints:
    """Shares of leaves, sorted by path: even over the first parts of their paths, then over the second ones, and so on."""
    shares = np.zeros(len(nodes), np.int64)
    waiting = [(0, len(nodes), 0, target)]
    while waiting:
        start, stop, depth, share = waiting.pop()
        if not share:
            continue
        if stop - start == 1:
            shares[start] = share
            continue
        edges = _children(nodes, start, stop, depth)
        of_child = [np.add.reduceat(values[start:stop], np.array(edges[:-1]) - start) for values in (sizes, floors)]
        luck = luck_of(["/".join(nodes[edge][: depth + 1]) for edge in edges[:-1]], seed)
        given = even_shares(of_child[0], of_child[1], share, luck)
        waiting += [(*edges[place : place + 2], depth + 1, taken) for place, taken in enumerate(given.tolist())]
    return shares


def _children(nodes: Sequence[tuple[str, ...]], start: int, stop: int, depth: int) -> list[int]:
    """Where the children of a node begin, and where the last ends; a path that ends here is a child of its own."""
    heads = [nodes[place][depth : depth + 1] for place in range(start, stop)]
    return [start, *(start + at for at in range(1, len(heads)) if heads[at] != heads[at - 1]), stop]


def even_shares(sizes: Ints, floors: Ints, target: int, luck: Luck) -> Ints:
    """`target` in shares between floor and size that are as even as can be; the lucky get the remainder, one each."""
    low, high = 0, int(sizes.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.clip(middle, floors, sizes).sum() <= target else (low, middle - 1)
    shares: Ints = np.clip(low, floors, sizes)
    larger = np.flatnonzero((floors <= low) & (low < sizes))
    lucky = larger[np.argsort(luck[larger], kind="stable")][: target - int(shares.sum())]
    shares[lucky] += 1
    return shares
