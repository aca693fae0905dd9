from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from pleinair.captioning.ocr import text_reader
from pleinair.evaluation.exploration.colours import colour_name, pixel_colour
from pleinair.evaluation.exploration.requests import WORDS, Asked, Request
from pleinair.evaluation.exploration.sheet import Sheet
from pleinair.evaluation.exploration.subjects import noise_pictures, written
from pleinair.evaluation.exploration.writing import text_error
from pleinair.model.judge import JudgeScores
from pleinair.records.letters import character_error, edit_distance
from tests.evaluation.exploration.sheets import WORLD


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
    reader, none = text_reader("rapidocr"), np.zeros((4, 1), np.float32)
    scores = {"first": JudgeScores(style_logits=none, concept_logits=none, embedding=none)}
    real = Sheet(WORLD, asked, np.stack([written(word) for word in WORDS[:4]]), scores, none, none)
    noise = Sheet(WORLD, asked, noise_pictures(4, 0), scores, none, none)
    assert text_error(real, reader)[0].value < 0.3
    assert text_error(noise, reader)[0].value == 1


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
