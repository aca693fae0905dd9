from __future__ import annotations

import numpy as np
import pytest

from pleinair.evaluation.exploration.composition import in_relation, passes, pieces_of
from pleinair.evaluation.exploration.requests import Request
from pleinair.evaluation.exploration.subjects import composed, grid_places, related_places
from tests.evaluation.exploration.sheets import LABELS, WORLD


def disc(colour: tuple[int, int, int], radius: float = 28) -> np.ndarray:
    """A filled circle on white."""
    down, right = np.mgrid[:64, :64]
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[np.hypot(down - 31.5, right - 31.5) < radius] = colour
    return picture


def logits(*labels: str) -> np.ndarray:
    """What a judge says that sees these things and likes no others."""
    table = np.tile(np.linspace(1, 0, len(LABELS)), (len(labels), 1))
    for row, label in enumerate(labels):
        table[row] = np.where(np.arange(len(LABELS)) == LABELS.index(label), 9, table[row])
    return table.astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_things_put_together_are_counted_apart(count: int) -> None:
    picture = composed([disc((200, 0, 0))] * count, grid_places(count))
    assert len(pieces_of(picture)) == count


def test_a_piece_is_shown_as_large_as_a_whole_picture() -> None:
    small = composed([disc((200, 0, 0))], [(0.25, 0.25)])
    (piece,) = pieces_of(small)
    assert (piece.right, piece.down) == pytest.approx((0.25, 0.25), abs=0.02)
    ink = (piece.picture < 235).any(axis=2)
    assert ink.any(axis=0).mean() > 0.9


def test_crumbs_and_white_are_no_pieces() -> None:
    picture = np.full((64, 64, 3), 255, np.uint8)
    assert pieces_of(picture) == []
    picture[3:6, 3:6] = 0
    assert pieces_of(picture) == []


@pytest.mark.parametrize("relation", ["to the left of", "to the right of", "above", "below"])
def test_two_things_in_a_relation_are_found_in_it_and_in_no_opposite(relation: str) -> None:
    picture = composed([disc((200, 0, 0), 28), disc((0, 0, 200), 24)], related_places(relation))
    first, second = pieces_of(picture)  # largest first
    assert in_relation(first, second, relation)
    assert not in_relation(second, first, relation)


def test_a_count_needs_that_many_and_each_of_them_the_thing() -> None:
    three = Request(kind="count", prompt="three", label=LABELS[20], count=3)
    pieces = pieces_of(composed([disc((200, 0, 0))] * 3, grid_places(3)))
    assert passes(three, pieces, logits(*[LABELS[20]] * 3), WORLD)
    assert not passes(three, pieces, logits(LABELS[20], LABELS[20], LABELS[23]), WORLD)
    assert not passes(three, pieces[:2], logits(*[LABELS[20]] * 2), WORLD)


def test_a_pair_needs_two_pieces_and_both_things_whichever_comes_first() -> None:
    pair = Request(kind="pair", prompt="both", label=LABELS[20], other=LABELS[21])
    pieces = pieces_of(composed([disc((200, 0, 0))] * 2, grid_places(2)))
    assert passes(pair, pieces, logits(LABELS[20], LABELS[21]), WORLD)
    assert passes(pair, pieces, logits(LABELS[21], LABELS[20]), WORLD)
    assert not passes(pair, pieces, logits(LABELS[20], LABELS[20]), WORLD)
    assert not passes(pair, pieces[:1], logits(LABELS[20]), WORLD)
    both_in_one = np.maximum(logits(LABELS[20], LABELS[0]), logits(LABELS[21], LABELS[0]))
    assert not passes(pair, pieces, both_in_one, WORLD)
