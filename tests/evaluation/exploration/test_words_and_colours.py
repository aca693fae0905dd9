from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest

from pleinair.captioning.ocr import text_reader
from pleinair.evaluation.exploration.colours import colour_name, pixel_colour
from pleinair.evaluation.exploration.requests import WORDS, Asked, Request
from pleinair.evaluation.exploration.sheet import Seen, Sheet
from pleinair.evaluation.exploration.styles import colours, default_kinds
from pleinair.evaluation.exploration.subjects import noise_pictures, written
from pleinair.evaluation.exploration.writing import read_word, text_error
from pleinair.model.judge import JudgeScores
from pleinair.records.letters import character_error, edit_distance
from tests.evaluation.exploration.sheets import LABELS, WORLD

SHOWN = ("red", "blue", "yellow", "green")


def sheet_of(asked: Sequence[Asked], seen: Sequence[Seen], logits: np.ndarray | None = None) -> Sheet:
    """A sheet of checkers' findings, and of what one judge says where it is asked."""
    none = np.zeros((len(asked), 1), np.float32)
    scores = JudgeScores(style_logits=none, concept_logits=none if logits is None else logits, embedding=none)
    return Sheet(WORLD, asked, np.zeros((len(asked), 64, 64, 3), np.uint8), {"first": scores}, none, none, seen)


@lru_cache
def naive_distance(first: str, second: str) -> int:
    if not first or not second:
        return len(first) + len(second)
    return min(
        naive_distance(first[1:], second) + 1,
        naive_distance(first, second[1:]) + 1,
        naive_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


@pytest.mark.parametrize(("first", "second"), [("kitten", "sitting"), ("", "abc"), ("flaw", "lawn"), ("same", "same")])
def test_the_edit_distance_is_that_of_the_definition(first: str, second: str) -> None:
    assert edit_distance(first, second) == naive_distance(first, second)


def test_case_and_spaces_are_no_error_and_more_wrong_than_letters_is_one() -> None:
    assert character_error("OPEN", "o pen") == 0
    assert character_error("OPEN", "") == 1
    assert character_error("NO", "completely different") == 1
    assert character_error("OPEN", "OPAN") == 0.25


def test_words_set_in_a_font_are_read_and_noise_is_not() -> None:
    asked = [Asked(Request(kind="text", prompt=word, text=word), 0) for word in WORDS[:4]]
    reader = text_reader("rapidocr")
    real = [Seen(read=read_word(reader, written(word))) for word in WORDS[:4]]
    noise = [Seen(read=read_word(reader, picture)) for picture in noise_pictures(4, 0)]
    assert text_error(sheet_of(asked, real))[0].value < 0.3
    assert text_error(sheet_of(asked, noise))[0].value == 1


def test_the_colour_asked_for_counts_and_so_do_the_colours_of_a_prompt_without_one() -> None:
    told = [Asked(Request(kind="colour", prompt=f"a {name} heart", label="heart", colour=name), 0) for name in SHOWN]
    free = [Asked(Request(kind="any-colour", prompt=f"a {thing}", label=thing), 0) for thing in ("disc", "heart") * 2]
    seen = [Seen(colour="red")] * 4 + [Seen(colour=name) for name in ("red", "blue", "green", "blue")]
    right, many = colours(sheet_of([*told, *free], seen))
    assert right.value == 1 / 4
    assert many.value == pytest.approx((2 + 1) / 2)


def test_kinds_of_a_thing_are_counted_among_pictures_that_show_one_of_them() -> None:
    trees, cars = LABELS[:3], LABELS[3:5]
    asked = [Asked(Request(kind="any-kind", prompt="a tree", label="tree", variants=trees), seed) for seed in range(4)]
    asked += [Asked(Request(kind="any-kind", prompt="a car", label="car", variants=cars), seed) for seed in range(2)]
    # Two palms, an oak and a fish; two cars of one kind. Things come before others in the order of their names.
    shown = np.tile(-np.arange(len(LABELS), dtype=np.float32), (6, 1))
    for row, thing in enumerate((0, 0, 1, 23, 4, 4)):
        shown[row, thing] = 9
        if thing == 23:
            shown[row, 5:] += 100
    (found,) = default_kinds(sheet_of(asked, [Seen()] * 6, shown), "first")
    assert found.units["any-kind: a tree"] == pytest.approx(
        [np.exp(-(2 / 3 * np.log(2 / 3) + np.log(1 / 3) / 3)) * 3 / 4]
    )
    assert found.units["any-kind: a car"] == [1.0]


@pytest.mark.parametrize(
    ("pixel", "name"),
    [
        ((221, 46, 68), "red"),
        ((244, 144, 12), "orange"),
        ((253, 203, 88), "yellow"),
        ((120, 177, 89), "green"),
        ((85, 172, 238), "blue"),
        ((170, 142, 214), "purple"),
        ((193, 105, 79), "brown"),
        ((41, 47, 51), "black"),
    ],
)
def test_the_colours_of_a_drawing_set_have_their_names(pixel: tuple[int, int, int], name: str) -> None:
    assert pixel_colour(*(value / 255 for value in pixel)) == name


def test_the_colour_of_a_picture_is_that_of_most_of_its_ink() -> None:
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[20:40, 20:40] = (85, 172, 238)
    picture[20:24, 20:40] = (221, 46, 68)
    assert colour_name(picture) == "blue"
    assert colour_name(np.full((64, 64, 3), 255, np.uint8)) == "black"
