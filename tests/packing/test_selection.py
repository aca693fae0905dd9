"""The choice of a mix as pure functions: shares, luck, clusters, entities."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from pleinair.curation.entities.matching import Matches
from pleinair.packing.mix import ClusterBalance, EntityPriority, Mix, MixSource
from pleinair.packing.selection import Choice, Pool, choose, even_shares, largest_remainder, luck_of, tree_shares
from pleinair.records.errors import ConfigError, CoverageError

RNG = np.random.default_rng(3)


def made_mix(*weights: float | None, **more: Any) -> Mix:
    sources = tuple(MixSource(name=f"s{place}", weight=weight) for place, weight in enumerate(weights or (None,)))
    return Mix(name="m", sources=sources, **more)


def made_pool(sizes: list[int], clusters: list[str] | None = None, entities: list[list[int]] | None = None) -> Pool:
    """Pictures of sources of these sizes, in the order of luck; clusters and entities by picture."""
    source_N = np.repeat(np.arange(len(sizes)), sizes).astype(np.int16)
    count = len(source_N)
    luck_N = luck_of([f"picture {number}" for number in range(count)], 0)
    order = np.argsort(luck_N)
    leaves = tuple(sorted(set(clusters or [""])))
    leaf_N = np.array([leaves.index(cluster) for cluster in clusters or [""] * count], np.int32)
    lists = entities or [[] for _ in range(count)]
    lists = [lists[place] for place in order]
    offsets = np.cumsum([0, *map(len, lists)])
    names = tuple(f"e{number}" for number in range(1 + max((entity for own in lists for entity in own), default=-1)))
    mentions = np.array([entity for own in lists for entity in own], np.int32)
    return Pool(luck_N[order], source_N[order], leaf_N[order], leaves, Matches(offsets, mentions), names)


def entity_counts(pool: Pool, choice: Choice) -> list[int]:
    owners = np.repeat(np.arange(len(pool.luck_N)), np.diff(pool.matches.offsets))
    kept = choice.repeats_N[owners] > 0
    return np.bincount(pool.matches.entities[kept], minlength=len(pool.entities)).tolist()


def test_targets_are_the_weights_within_rounding_and_sum_up() -> None:
    for _ in range(200):
        weights = RNG.random(RNG.integers(1, 9)).tolist()
        total = int(RNG.integers(0, 1000))
        shares = largest_remainder(weights, total)
        assert sum(shares) == total
        assert all(abs(got - weight / sum(weights) * total) < 1 for got, weight in zip(shares, weights, strict=True))


def test_weights_are_met_within_rounding() -> None:
    choice = choose(made_pool([500, 300, 200]), made_mix(1.0, 2.0, 1.0, pictures=401))
    assert choice.targets == (100, 201, 100)
    assert set(choice.repeats_N.tolist()) == {0, 1}


def test_without_weights_every_picture_comes_once() -> None:
    choice = choose(made_pool([30, 20]), made_mix(None, None))
    assert choice.targets == (30, 20)
    assert set(choice.repeats_N.tolist()) == {1}


def test_a_source_too_small_for_its_weight_repeats_evenly_when_it_may() -> None:
    choice = choose(made_pool([100, 10]), made_mix(1.0, 1.0, pictures=50, max_repeats=3))
    assert choice.targets == (25, 25)
    assert Counter(choice.repeats_N[choice.repeats_N > 1].tolist()) == {2: 5, 3: 5}


def test_a_source_too_small_for_its_weight_is_refused_with_what_fits() -> None:
    pool = made_pool([100, 10])
    with pytest.raises(
        ConfigError, match=r"sources.s1 has 10 pictures and is asked for 25: ask for at most 20 .*repeats = 3"
    ):
        choose(pool, made_mix(1.0, 1.0, pictures=50))
    assert choose(pool, made_mix(1.0, 1.0, pictures=20)).targets == (10, 10)


def test_an_empty_source_with_a_weight_is_refused() -> None:
    with pytest.raises(ConfigError, match="sources.s1 has no picture that fits: correct its name or condition"):
        choose(made_pool([100, 0]), made_mix(1.0, 1.0, pictures=20))


def test_an_addition_moves_only_what_it_pushes_out() -> None:
    small, large = (set(luck_of([f"p{n}" for n in range(count)], 5)) for count in (1000, 1100))
    before, after = (set(sorted(luck)[:400]) for luck in (small, large))
    assert len(before - after) == len(after - before) <= 60
    pools = [Pool(np.array(sorted(luck)), *_plain(len(luck))) for luck in (small, large)]
    chosen = [set(pool.luck_N[choose(pool, made_mix(pictures=400)).repeats_N > 0].tolist()) for pool in pools]
    assert chosen == [before, after]


def _plain(count: int) -> tuple[Any, ...]:
    return (
        np.zeros(count, np.int16),
        np.zeros(count, np.int32),
        ("",),
        Matches(np.zeros(count + 1, np.int64), np.empty(0, np.int32)),
        (),
    )


def naive_even(sizes: list[int], floors: list[int], target: int) -> list[int]:
    """One at a time to the smallest share that has room: sorted, the only even answer."""
    shares = list(floors)
    while sum(shares) < target:
        place = min((share, place) for place, share in enumerate(shares) if share < sizes[place])[1]
        shares[place] += 1
    return shares


def test_even_shares_are_those_of_handing_out_one_by_one() -> None:
    for _ in range(300):
        sizes = RNG.integers(0, 12, RNG.integers(1, 8))
        floors = np.minimum(sizes, RNG.integers(0, 4, len(sizes)))
        target = int(RNG.integers(floors.sum(), sizes.sum() + 1))
        shares = even_shares(sizes, floors, target, RNG.integers(0, 9, len(sizes)).astype(np.uint64))
        assert shares.sum() == target
        assert ((floors <= shares) & (shares <= sizes)).all()
        assert sorted(shares.tolist()) == sorted(naive_even(sizes.tolist(), floors.tolist(), target))


def test_shares_are_even_at_every_level_from_the_top() -> None:
    nodes = [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"), ("1", "2"), ("2", "0")]
    sizes = np.array([100, 2, 50, 50, 50, 6])
    shares = tree_shares(nodes, sizes, np.zeros(6, np.int64), 66, seed=0)
    assert shares.tolist() == [28, 2, 10, 10, 10, 6]


def test_clusters_share_a_source_evenly_and_levels_cut_the_tree() -> None:
    clusters = ["0/0"] * 80 + ["0/1"] * 10 + ["1/0"] * 10
    pool = made_pool([100], clusters)
    taken = choose(pool, made_mix(pictures=30, clusters=ClusterBalance())).repeats_N
    assert np.bincount(pool.leaf_N, taken).tolist() == [10, 10, 10]
    taken = choose(pool, made_mix(pictures=20, clusters=ClusterBalance(levels=1))).repeats_N
    assert [taken[pool.leaf_N < 2].sum(), taken[pool.leaf_N == 2].sum()] == [10, 10]
    lucky = [place for place in range(100) if pool.leaf_N[place] < 2][:10]
    assert np.flatnonzero(taken[pool.leaf_N < 2]).tolist() == list(range(10)), "inside a cut cluster luck decides"
    assert taken[lucky].all()


@pytest.mark.parametrize("clusters", [None, ClusterBalance()])
@pytest.mark.parametrize("keep", [1, 3])
def test_no_entity_that_was_present_is_lost(keep: int, clusters: ClusterBalance | None) -> None:
    entities = [sorted({int(RNG.zipf(1.4)) % 150 for _ in range(RNG.integers(0, 4))}) for _ in range(1500)]
    paths = [f"{number % 5}/{number % 25}" for number in range(1500)]
    pool = made_pool([1000, 500], paths, entities)
    mix = made_mix(1.0, 1.0, pictures=600, entities=EntityPriority(keep=keep), clusters=clusters)
    choice = choose(pool, mix)
    assert (np.array(entity_counts(pool, choice)) >= np.minimum(pool.counts, keep)).all()
    assert choice.targets == (300, 300)
    without = choose(pool, made_mix(1.0, 1.0, pictures=600, clusters=clusters))
    assert (np.array(entity_counts(pool, without)) < np.minimum(pool.counts, keep)).any()


def test_pictures_that_come_anyway_count_for_their_entities() -> None:
    pool = made_pool([100, 4], None, [[0]] * 100 + [[0], [1], [2], [3]])
    mix = made_mix(1.0, 1.0, pictures=8, entities=EntityPriority())
    assert choose(pool, mix).num_required == 0
    doubled = made_mix(1.0, 1.0, pictures=16, max_repeats=2, entities=EntityPriority())
    assert (choose(pool, doubled).targets, choose(pool, doubled).num_required) == ((8, 8), 0)


def test_a_rare_entity_is_favoured_by_power() -> None:
    pool = made_pool([1000], None, [[0]] * 900 + [[1]] * 100)
    shares = [
        entity_counts(pool, choose(pool, made_mix(pictures=200, entities=EntityPriority(power=power))))[1]
        for power in (0.0, 1.0)
    ]
    assert shares[0] < 35 < 70 < shares[1]


def test_entities_without_room_are_refused_with_the_count() -> None:
    pool = made_pool([10], None, [[number] for number in range(10)])
    with pytest.raises(
        CoverageError, match=r"10 pictures of s0 are needed so that no entity vanishes.*room for 5 of 5"
    ):
        choose(pool, made_mix(pictures=5, entities=EntityPriority()))
