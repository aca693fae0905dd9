"""Words in pictures, read by a real OCR model, against what can be read at this size at all."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from pleinair.records.rewards import Pictures
from pleinair.rewards.writing import RapidReader, WritingReward, quoted, true_render
from tests.rewards.shapes import context
from tests.rewards.small_rewards import noise


@cache
def reward() -> WritingReward:
    return WritingReward(RapidReader())


def test_a_true_render_is_worth_all_and_noise_nothing() -> None:
    pictures = np.stack([true_render("OPEN", 64), noise(1, side=64)[0], np.full((64, 64, 3), 255, np.uint8)])
    answer = reward().score(['the word "OPEN"'] * 3, pictures, context([0] * 3))
    assert answer.values["writing"][0] == 1
    assert answer.values["writing"][1:].max() < 0.3
    assert answer.applies["writing"].all()


def test_each_wrong_letter_is_worth_less() -> None:
    written = ["HELLO", "HELLA", "HAPPY", "STOP"]
    pictures = np.stack([true_render(word, 96) for word in written])
    values = reward().score(['the word "HELLO"'] * 4, pictures, context([0] * 4)).values["writing"]
    assert values[0] > values[1] > values[2] >= values[3]


def test_a_prompt_that_quotes_nothing_is_not_asked_about() -> None:
    pictures = np.stack([true_render("OPEN", 64)] * 2)
    answer = reward().score(["a fox", 'a fox that says "OPEN"'], pictures, context([0, 1]))
    assert answer.applies["writing"].tolist() == [False, True]


def reads_darkness(picture: Pictures) -> str:
    """Reads `SALE` of a render, the first half of it of a softer one, and nothing of a picture that is light."""
    dark = float((picture < 128).mean())
    return "SALE" if dark > 0.05 else "SA" if dark > 0.01 else ""


def test_a_value_is_a_share_of_what_is_read_from_a_true_render() -> None:
    half = WritingReward(lambda picture: "SA")
    answer = half.score(['"SALE"'], np.zeros((1, 32, 32, 3), np.uint8), context([0]))
    assert answer.values["writing"].tolist() == [1.0]
    full = WritingReward(reads_darkness)
    soft = np.full((32, 32, 3), 255, np.uint8)
    soft[:4, :4] = 0
    assert full.score(['"SALE"'], soft[None], context([0])).values["writing"].tolist() == [0.5]


def test_words_that_cannot_be_read_from_a_true_render_are_not_asked_about() -> None:
    blind = WritingReward(lambda picture: "S")
    assert not blind.score(['"SALE"'], np.zeros((1, 32, 32, 3), np.uint8), context([0])).applies["writing"].any()


@pytest.mark.parametrize("text", ["A", "SALE", "a sentence of several words", "MMMMMMMMMMMMMMMMMMMMMMMMMMMMMM"])
def test_a_render_stays_inside_its_picture(text: str) -> None:
    picture = true_render(text, 64)
    assert picture.shape == (64, 64, 3)
    assert (picture < 128).any()
    if len(text) < 30:
        assert (picture[[0, -1]] > 128).all()
        assert (picture[:, [0, -1]] > 128).all()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ('a "b"', "b"),
        ('\u201cfor you\u201d and "me"', "for you me"),
        ("a fox's tail", ""),
        ('" "', ""),
        ("it's 'so'", ""),
    ],
)
def test_quoted_words_are_those_between_double_quotes(prompt: str, words: str) -> None:
    assert quoted(prompt) == words
