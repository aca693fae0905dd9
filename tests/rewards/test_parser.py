"""The rubric of a prompt by rules: numbers, colours, things, how they lie, styles, words."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pleinair.records.errors import ConfigError
from pleinair.rewards.parser import PromptParser
from pleinair.rewards.requirements import ESSENTIAL, WEIGHTS, Requirement

THINGS = ("fox", "red apple", "apple", "key", "strawberry", "fish", "soccer ball", "blue circle", "cactus", "wolf")
PARSER = PromptParser(THINGS, ("noto", "fluent 3d", "high contrast"))


def told(prompt: str, parser: PromptParser = PARSER) -> list[tuple[str, ...]]:
    """Kind, subject, value and other of each requirement, without the empty ends."""
    (rubric,) = parser([prompt])
    whole = [(one.kind, one.subject, one.value, one.other) for one in rubric]
    return [tuple(part for part in one if part) for one in whole]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a fox, noto style", [("object", "fox"), ("style", "noto")]),
        ("a fox in fluent 3d style", [("object", "fox"), ("style", "fluent 3d")]),
        ("a fox in the style of noto", [("object", "fox"), ("style", "noto")]),
        ("fox noto", [("object", "fox"), ("style", "noto")]),
        (
            "a drawing of a fox in noto style, on white",
            [("object", "fox"), ("style", "noto"), ("background", "white")],
        ),
        (
            "a key in noto style on a plain white background",
            [("object", "key"), ("style", "noto"), ("background", "white")],
        ),
        ("three strawberries", [("object", "strawberry"), ("count", "strawberry", "3")]),
        ("2 fish", [("object", "fish"), ("count", "fish", "2")]),
        ("four cacti", [("object", "cactus"), ("count", "cactus", "4")]),
        ("a red apple", [("object", "red apple"), ("colour", "red apple", "red")]),
        ("two green apples", [("object", "apple"), ("count", "apple", "2"), ("colour", "apple", "green")]),
        ("a gray wolf", [("object", "wolf"), ("colour", "wolf", "grey")]),
        (
            "a soccer ball to the left of a key",
            [("object", "soccer ball"), ("object", "key"), ("relation", "soccer ball", "to the left of", "key")],
        ),
        (
            "a fox on top of a red apple, noto style",
            [
                ("object", "fox"),
                ("object", "red apple"),
                ("colour", "red apple", "red"),
                ("relation", "fox", "above", "red apple"),
                ("style", "noto"),
            ],
        ),
        ("a fox and a key", [("object", "fox"), ("object", "key")]),
        ('the word "OPEN"', [("text", "OPEN")]),
        (
            'a key with the words "for you", noto style',
            [("text", "for you"), ("object", "key"), ("style", "noto")],
        ),
        (
            "I would like a friendly picture of a fox that looks as if it came from the noto set: noto style, nothing else "
            "in it, on a plain white background.",
            [("object", "fox"), ("style", "noto"), ("background", "white")],
        ),
    ],
)
def test_a_prompt_is_taken_apart_into_what_it_requires(prompt: str, expected: list[tuple[str, ...]]) -> None:
    assert told(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a small dragon", [("object", "small dragon")]),
        ("three purple dragons", [("object", "dragon"), ("count", "dragon", "3"), ("colour", "dragon", "purple")]),
        (
            "a dragon above a castle",
            [("object", "dragon"), ("object", "castle"), ("relation", "dragon", "above", "castle")],
        ),
        ("a dragon, pixel art style", [("object", "dragon"), ("style", "pixel art")]),
    ],
)
def test_where_no_name_is_known_each_phrase_is_a_thing(prompt: str, expected: list[tuple[str, ...]]) -> None:
    assert told(prompt, PromptParser()) == expected


def test_things_and_words_are_essential_and_weigh_most() -> None:
    (rubric,) = PARSER(['two red apples, noto style, with the word "SALE"'])
    assert {one.kind: (one.weight, one.essential) for one in rubric} == {
        kind: (WEIGHTS[kind], kind in ESSENTIAL) for kind in ("text", "object", "count", "colour", "style")
    }
    assert [one.text for one in rubric][:2] == ['"SALE" is written in it', "it shows red apple"]


@pytest.mark.parametrize("prompt", ["", "   ", '""', "...", "\u72d0\u72f8"])
def test_a_prompt_that_is_not_understood_requires_little_and_breaks_nothing(prompt: str) -> None:
    assert [one.kind for one in PromptParser(THINGS)([prompt])[0]] in ([], ["object"])


@settings(max_examples=60)
@given(st.text(max_size=60))
def test_any_text_is_taken_apart_the_same_way_twice(prompt: str) -> None:
    assert PARSER([prompt, prompt])[0] == PromptParser(THINGS, ("noto", "fluent 3d", "high contrast"))([prompt])[0]


def test_a_requirement_of_no_weight_or_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="weighs 0"):
        Requirement(kind="object", text="there is a fox", weight=0)
    with pytest.raises(ConfigError, match="of kind 'mood'"):
        Requirement(kind="mood", text="it is sad")  # type: ignore[arg-type]
