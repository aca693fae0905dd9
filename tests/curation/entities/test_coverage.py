"""No entity that was present vanishes: for any captions, and said aloud where it cannot be held."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pleinair.curation.entities.coverage import (
    coverage_bins,
    pictures_per_entity,
    rarity_weights,
    require_none_lost,
    sample_rare_first,
    taken,
)
from pleinair.curation.entities.matching import Matches
from pleinair.records.errors import CoverageError

NUM_ENTITIES = 12


def matches_of(captions: list[list[int]]) -> Matches:
    offsets = np.cumsum([0, *map(len, captions)])
    return Matches(offsets, np.array([one for caption in captions for one in sorted(set(caption))], np.int32))


def keys(count: int) -> list[str]:
    return [f"picture-{number}" for number in range(count)]


CAPTIONS = st.lists(st.sets(st.integers(0, NUM_ENTITIES - 1), max_size=4).map(sorted), min_size=1, max_size=60)


@settings(max_examples=200)
@given(captions=CAPTIONS, keep=st.integers(1, 4), share=st.floats(0, 1), seed=st.integers(-5, 5))
def test_every_entity_keeps_its_pictures_or_the_sample_is_refused(
    captions: list[list[int]], keep: int, share: float, seed: int
) -> None:
    matches, size = matches_of(captions), round(share * len(captions))
    before = pictures_per_entity(matches, NUM_ENTITIES)
    try:
        sample = sample_rare_first(keys(len(captions)), matches, size, num_entities=NUM_ENTITIES, keep=keep, seed=seed)
    except CoverageError:
        assert size < len(captions), "all pictures always do"
        return
    assert sample.chosen.sum() == size
    after = pictures_per_entity(taken(matches, sample.chosen), NUM_ENTITIES)
    assert (after >= np.minimum(before, keep)).all()
    require_none_lost(before, after, keys(NUM_ENTITIES), keep=keep)


def long_tail(count: int = 2000) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[min(int(rng.geometric(0.5)) - 1, NUM_ENTITIES - 1)] for _ in range(count)]


def test_the_size_that_is_asked_for_is_the_size_that_works() -> None:
    captions = [[0], [1], [2], [0, 1, 2], []]
    with pytest.raises(CoverageError, match="(\\d+) are needed for 3 entities with keep=2") as refused:
        sample_rare_first(keys(5), matches_of(captions), 1, num_entities=3, keep=2)
    needed = int(str(refused.value).split("entity: ")[1].split(" ")[0])
    assert sample_rare_first(keys(5), matches_of(captions), needed, num_entities=3, keep=2).num_required == needed


def test_the_sample_does_not_depend_on_the_order_of_the_pictures() -> None:
    captions, names = long_tail(), keys(2000)
    order = np.random.default_rng(1).permutation(2000).tolist()

    def chosen(order: list[int], seed: int = 0) -> set[str]:
        sample = sample_rare_first(
            [names[place] for place in order],
            matches_of([captions[place] for place in order]),
            300,
            num_entities=NUM_ENTITIES,
            keep=3,
            seed=seed,
        )
        return {names[order[place]] for place in np.flatnonzero(sample.chosen)}

    assert chosen(order) == chosen(list(range(2000)))
    assert chosen(order) != chosen(order, seed=1)


def test_rare_entities_are_drawn_more_often_than_their_share() -> None:
    matches = matches_of(long_tail())
    before = pictures_per_entity(matches, NUM_ENTITIES)

    def after(power: float) -> float:
        sample = sample_rare_first(keys(2000), matches, 400, num_entities=NUM_ENTITIES, power=power)
        counts = pictures_per_entity(taken(matches, sample.chosen), NUM_ENTITIES)
        return float(counts[0] / counts.sum())

    assert before[0] / before.sum() == pytest.approx(0.5, abs=0.03)
    assert after(0.0) == pytest.approx(0.5, abs=0.07)
    assert after(1.0) < after(0.5) < after(0.0)
    assert after(1.0) < 0.2


def test_a_picture_weighs_as_its_rarest_entity_and_without_one_as_the_commonest() -> None:
    matches = matches_of([[0, 1], [0], [], [0], [0]])
    weights = rarity_weights(matches, pictures_per_entity(matches, 2), power=0.5)
    assert weights.tolist() == [1.0, 0.5, 0.5, 0.5, 0.5]


def test_a_lost_entity_is_named() -> None:
    before, after = np.array([3, 1, 0, 5]), np.array([1, 0, 0, 1])
    with pytest.raises(CoverageError, match="1 entities lost too many pictures: fox \\(1 before, 0 after\\)"):
        require_none_lost(before, after, ["owl", "fox", "elf", "cat"])
    with pytest.raises(CoverageError, match="3 entities lost .* owl \\(3 before, 1 after\\)"):
        require_none_lost(before, after, ["owl", "fox", "elf", "cat"], keep=2)
    require_none_lost(before, before, ["owl", "fox", "elf", "cat"], keep=9)


def test_every_count_is_in_one_bin() -> None:
    counts = np.array([0, 1, 2, 3, 4, 9, 10, 99, 100, 999, 1000, 10**9])
    assert list(coverage_bins(counts).values()) == [1, 1, 2, 2, 2, 2, 2]


def test_a_wrong_size_or_keep_is_refused() -> None:
    for size, keep in ((-1, 1), (6, 1), (2, 0)):
        with pytest.raises(ValueError, match="give a size|keep is 0"):
            sample_rare_first(keys(5), matches_of([[0]] * 5), size, num_entities=1, keep=keep)
