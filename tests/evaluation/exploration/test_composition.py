from __future__ import annotations

import numpy as np
import pytest

from pleinair.evaluation.exploration.composition import (
    Way,
    compositions,
    counted,
    in_relation,
    judged,
    passes,
    ways_to_see,
)
from pleinair.evaluation.exploration.requests import Asked, Request
from pleinair.evaluation.exploration.sheet import Seen, Sheet, Things
from pleinair.evaluation.exploration.subjects import composed, grid_places, noise_pictures, related_places
from tests.evaluation.exploration.sheets import LABELS, WORLD

THING, OTHER, NEITHER = LABELS[20], LABELS[21], LABELS[23]


def disc(colour: tuple[int, int, int], radius: float = 28) -> np.ndarray:
    """A filled circle on white."""
    down, right = np.mgrid[:64, :64]
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[np.hypot(down - 31.5, right - 31.5) < radius] = colour
    return picture


def two_parts() -> np.ndarray:
    """One thing of two parts, some pixels apart: a disc over a bar."""
    picture = disc((200, 0, 0), 18)
    picture[:8] = picture[58:] = 255
    picture[56:62, 8:56] = (200, 0, 0)
    return picture


def logits(*labels: str) -> np.ndarray:
    """What a judge says that sees these things and likes no others."""
    table = np.tile(np.linspace(1, 0, len(LABELS)), (len(labels), 1))
    for row, label in enumerate(labels):
        table[row] = np.where(np.arange(len(LABELS)) == LABELS.index(label), 9, table[row])
    return table.astype(np.float32)


def numbers(ways: list[Way]) -> set[int]:
    return {len(way) for way in ways}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_things_put_together_are_seen_apart(count: int) -> None:
    picture = composed([disc((200, 0, 0))] * count, grid_places(count))
    assert count in numbers(ways_to_see(picture))


def test_things_that_touch_are_seen_apart_and_a_thing_of_two_parts_as_one() -> None:
    touching = composed([disc((200, 0, 0), 31)] * 2, grid_places(2))
    assert numbers(ways_to_see(touching)) == {1, 2}
    parts = composed([two_parts()] * 2, grid_places(2))
    assert {2, 4} <= numbers(ways_to_see(parts))


def test_a_piece_is_shown_as_large_as_a_whole_picture_and_alone() -> None:
    (pair,) = [
        way for way in ways_to_see(composed([disc((200, 0, 0)), disc((0, 0, 200))], grid_places(2))) if len(way) > 1
    ]
    assert sorted((piece.right, piece.down) for piece in pair) == [
        pytest.approx((0.25, 0.5), abs=0.02),
        pytest.approx((0.75, 0.5), abs=0.02),
    ]
    for piece in pair:
        ink = (piece.picture < 235).any(axis=2)
        assert ink.any(axis=0).mean() > 0.9
        assert len(np.unique(piece.picture[28:36, 28:36].reshape(-1, 3), axis=0)) == 1


def test_crumbs_and_white_are_no_pieces_and_noise_is_one() -> None:
    picture = np.full((64, 64, 3), 255, np.uint8)
    assert ways_to_see(picture) == []
    picture[3:6, 3:6] = 0
    assert ways_to_see(picture) == []
    assert numbers(ways_to_see(noise_pictures(1, 0)[0])) == {1}


def test_a_picture_is_seen_the_way_that_looks_most_like_what_was_asked_whatever_the_number() -> None:
    parts = composed([two_parts()] * 2, grid_places(2))
    ways = sorted((way for way in ways_to_see(parts) if len(way) in (2, 4)), key=len)
    sure, unsure = logits(THING, THING), 0.3 * logits(*[THING] * 4)
    for wanted, right in ((2, True), (4, False)):
        request = Request(kind="count", prompt="things", label=THING, count=wanted)
        assert judged(request, ways, np.concatenate([sure, unsure]), WORLD) == Things(2, right)
    request = Request(kind="count", prompt="things", label=THING, count=4)
    assert judged(request, ways, np.concatenate([0.3 * sure, logits(*[THING] * 4)]), WORLD) == Things(4, True)
    assert judged(request, [], np.zeros((0, len(LABELS)), np.float32), WORLD) == Things(0, False)


@pytest.mark.parametrize("relation", ["to the left of", "to the right of", "above", "below"])
def test_two_things_in_a_relation_are_found_in_it_and_in_no_opposite(relation: str) -> None:
    picture = composed([disc((200, 0, 0), 28), disc((0, 0, 200), 24)], related_places(relation))
    first, second = next(way for way in ways_to_see(picture) if len(way) == 2)  # largest first
    assert in_relation(first, second, relation)
    assert not in_relation(second, first, relation)


def pieces(num: int) -> Way:
    return next(way for way in ways_to_see(composed([disc((200, 0, 0))] * num, grid_places(num))) if len(way) == num)


def test_a_count_needs_that_many_and_each_of_them_the_thing() -> None:
    three = Request(kind="count", prompt="three", label=THING, count=3)
    assert passes(three, pieces(3), logits(*[THING] * 3), WORLD)
    assert not passes(three, pieces(3), logits(THING, THING, NEITHER), WORLD)
    assert not passes(three, pieces(2), logits(*[THING] * 2), WORLD)


def test_a_pair_needs_two_pieces_and_both_things_whichever_comes_first() -> None:
    pair = Request(kind="pair", prompt="both", label=THING, other=OTHER)
    assert passes(pair, pieces(2), logits(THING, OTHER), WORLD)
    assert passes(pair, pieces(2), logits(OTHER, THING), WORLD)
    assert not passes(pair, pieces(2), logits(THING, THING), WORLD)
    assert not passes(pair, pieces(1), logits(THING), WORLD)
    both_in_one = np.maximum(logits(THING, LABELS[0]), logits(OTHER, LABELS[0]))
    assert not passes(pair, pieces(2), both_in_one, WORLD)


def test_shares_and_counts_are_of_what_each_judge_saw_and_nothing_seen_is_wrong() -> None:
    asked = [Asked(Request(kind="count", prompt=f"{num}", label=THING, count=num), 0) for num in (1, 2, 2)]
    seen = [Seen(things={"first": Things(1, True)}), Seen(things={"first": Things(3, False)}), Seen()]
    none = np.zeros((3, 1), np.float32)
    sheet = Sheet(WORLD, asked, np.zeros((3, 64, 64, 3), np.uint8), {}, none, none, seen)
    (found,) = compositions(sheet, "first")
    assert (found.name, found.num_pictures, found.value) == ("can_count", 3, 0.5)
    assert compositions(sheet, "second")[0].value == 0
    assert counted(sheet, "first") == {1: [1], 2: [3, 0]}
