"""What models say is cleaned, and what is no caption is recognised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleinair.captioning.guards import caption_fault, clean, looping, refuses

FOX = "A red fox sleeps under an old oak tree while snow falls on the meadow behind it."


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (FOX, FOX),
        (f"Sure! Here is a description of the picture: {FOX}", f"Here is a description of the picture: {FOX}"),
        (f"Here is the caption:\n\n{FOX}", FOX),
        (f'"{FOX}"', FOX),
        (f"{FOX}<|im_end|></s>", FOX),
        ("A\x00 fox\u200b and\u202e a\tdog\n", "A fox and a dog"),
        ("A sign says \u201cPLEIN AIR\u201d.", "A sign says \u201cPLEIN AIR\u201d."),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
    ],
)
def test_machinery_is_taken_off_and_words_are_left(said: str, kept: str) -> None:
    assert clean(said) == kept


@given(st.text())
def test_cleaned_text_can_be_stored_and_is_clean(text: str) -> None:
    once = clean(text)
    once.encode()
    assert "\x00" not in once
    assert "\n" not in once
    assert once == " ".join(once.split())


@pytest.mark.parametrize(
    "said",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m unable to view images directly.",
        "As an AI language model, I do not see pictures.",
        "I cannot identify people in this picture.",
        "It seems no image was provided.",
    ],
)
def test_a_refusal_is_no_caption(said: str) -> None:
    assert refuses(said)
    assert caption_fault(clean(said), most_words=50).startswith("refused")


@pytest.mark.parametrize(
    "said",
    [FOX, f"{FOX} {FOX} A note on the tree reads: I can't see the forest.", "A robot painted on a wall says hello."],
)
def test_a_caption_is_no_refusal(said: str) -> None:
    assert caption_fault(said, most_words=60) == ""


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("", "too short"),
        ("A fox", "too short"),
        (" ".join(f"word{n}" for n in range(61)), "too long: 61 words, over 60"),
        ("a red fox and " * 5, "loops: 'a red fox'"),
    ],
)
def test_what_is_no_caption_is_named(said: str, fault: str) -> None:
    assert caption_fault(said, most_words=60).startswith(fault)


def test_three_alike_in_a_list_are_no_loop() -> None:
    assert looping("the red fox sees the red fox while the red fox sleeps") == ""
