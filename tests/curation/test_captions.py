"""Captions always say what is drawn and in which style, the same words for the same picture."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleinair.captioning import captions, with_article
from pleinair.captioning.stages import captions as captions_stage
from pleinair.curation import STYLES, WORDING, held_out
from pleinair.curation.sources import SOURCE_NAMES
from pleinair.curation.sources.media import MEDIA
from pleinair.records.wording import Medium, Wording

APPLE: dict[str, Any] = {
    "image_name": "drawings/noto/red-apple",
    "source": "drawings",
    "label": "red apple",
    "tags": ["fruit", "red apple", "diet"],
    "style": "noto",
    "group_name": "food & drink",
}
WORDS = st.text(st.characters(categories=("Ll", "Lu")), min_size=1, max_size=12)


@given(WORDS, WORDS, WORDS, st.lists(WORDS, max_size=12), st.one_of(st.none(), WORDS))
def test_label_and_style_are_in_every_length(
    name: str, label: str, style: str, tags: list[str], group: str | None
) -> None:
    row = {"image_name": name, "source": "drawings", "label": label, "tags": tags, "style": style, "group_name": group}
    made = captions(row, WORDING)
    assert made is not None
    for text in (made.long, made.medium, made.short):
        assert label in text
        assert style in text
        assert text == " ".join(text.split())
    assert len(made.short) < len(made.medium) <= len(made.long)


@given(st.text(min_size=1).filter(str.strip), WORDS, WORDS)
def test_the_owners_words_win_and_are_completed(caption: str, label: str, style: str) -> None:
    made = captions({"image_name": "x", "caption": caption, "label": label, "style": style})
    assert made is not None
    for text in (made.long, made.medium, made.short):
        assert label.lower() in text.lower()
        assert style.lower() in text.lower()
    assert made.long.startswith(" ".join(caption.split()).rstrip("."))


def test_the_prompt_form_is_among_the_short_captions() -> None:
    shorts = {captions({**APPLE, "image_name": f"{n}"}, WORDING).short for n in range(50)}  # type: ignore[union-attr]
    assert shorts == {"a red apple, noto style", "a red apple in noto style"}


def test_captions_of_one_picture_never_change() -> None:
    assert captions(APPLE, WORDING) == captions(dict(reversed(APPLE.items())), WORDING)


def test_the_long_caption_carries_tags_and_group_but_not_the_label_twice() -> None:
    made = captions(APPLE, WORDING)
    assert made is not None
    assert "It shows: fruit, diet." in made.long
    assert "food & drink" in made.long
    assert "white" in made.long


def test_style_words_are_those_of_the_prompt() -> None:
    row = {**APPLE, "style": "emojione-classic"}
    (columns,) = captions_stage([row], wording=WORDING.to_document())
    assert "emojione classic style" in str(columns["caption_short"])


def test_an_owners_caption_gives_its_first_sentence_and_first_clause() -> None:
    made = captions({"image_name": "x", "caption": "A fox, asleep under\n a tree. It is autumn.", "style": "ink"})
    assert made is not None
    assert made.long == "A fox, asleep under a tree. It is autumn, ink style"
    assert made.medium == "A fox, asleep under a tree, ink style"
    assert made.short == "A fox, ink style"


def test_a_label_without_a_style_is_enough_and_nothing_is_not() -> None:
    made = captions({"image_name": "x", "label": "owl"})
    assert made is not None
    assert (made.short, made.medium, made.long) == ("an owl", "a picture of an owl", "an owl.")
    assert captions({"image_name": "x", "style": "ink", "tags": ["a"]}) is None


def said(source: str, **row: Any) -> set[str]:
    """Every form of caption that some picture of the source with these facts has."""
    found = [captions({"image_name": f"{n}", "source": source, **row}, WORDING) for n in range(40)]
    return {text for made in found if made for text in (made.long, made.medium, made.short)}


def test_the_captions_of_a_drawing_are_for_ever() -> None:
    assert said("drawings", label="red apple", style="noto", tags=["fruit"], group_name="food") == {
        "a red apple, noto style",
        "a red apple in noto style",
        "a red apple in noto style on a plain white background",
        "a red apple, noto style, white background",
        "a drawing of a red apple in noto style, on white",
        "a red apple, noto style, on a plain white background. It shows: fruit. Group: food.",
        "a drawing of a red apple in noto style, alone on a white background. It shows: fruit. Group: food.",
        "a red apple in noto style. Group: food. It shows: fruit. The background is white.",
    }
    assert "a drawing of a waving hand in noto style, on white" in said("skin-tones", label="waving hand", style="noto")


def test_captions_say_what_kind_of_picture_the_source_has() -> None:
    assert said("gcompris", label="red panda", style="photo", group_name="animals") == {
        "a photo of a red panda", "a photo of a red panda. Group: animals.",
    }  # fmt: skip
    assert said("cifar-10", label="frog", style="small photo") == {
        "a small photo of a frog",
        "a small photo of a frog.",
    }
    assert said("openclipart", label="anchor", style="clip art") == {"clip art of an anchor", "clip art of an anchor."}
    icons = said("icons", label="anchor", style="flat-color-icons")
    assert "an icon of an anchor in flat colour icon style, on white" in icons
    assert not any("drawing" in text for text in icons)


def test_a_sentence_that_a_stamp_comes_with_is_its_caption_without_the_name_of_its_file() -> None:
    row = {"label": "rabbit little", "style": "stamp"}
    assert said("tuxpaint", caption="A little rabbit.", **row) == {"A little rabbit.", "A little rabbit"}
    assert said("tuxpaint", **row) == {"a rabbit little", "a picture of a rabbit little", "a rabbit little."}


def test_of_an_owners_folder_no_kind_and_no_ground_is_claimed() -> None:
    assert said("holiday", label="fox", style="ink") == {
        "a fox, ink style", "a fox in ink style", "a picture of a fox in ink style",
        "a fox, ink style.", "a picture of a fox in ink style.", "a fox in ink style.",
    }  # fmt: skip


def test_every_source_with_a_name_says_what_it_has() -> None:
    assert set(MEDIA) == set(SOURCE_NAMES)
    assert MEDIA["tuxpaint"].phrase == Medium().phrase
    assert WORDING.from_document(json.loads(json.dumps(WORDING.to_document()))) == WORDING


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("red apple", "a red apple"), ("elephant", "an elephant"), ("hourglass", "an hourglass"), ("unicorn", "a unicorn"),
        ("one-piece swimsuit", "a one-piece swimsuit"), ("grapes", "grapes"), ("glass of milk", "a glass of milk"),
        ("octopus", "an octopus"), ("face with rolling eyes", "a face with rolling eyes"), ("two hearts", "two hearts"),
        ("flag of Canada", "the flag of Canada"), ("keycap 1", "keycap 1"), ("1st place medal", "1st place medal"),
        ("family: man, boy", "family: man, boy"), ("bread", "bread"), ("Japanese castle", "Japanese castle"), ("kiss", "a kiss"),
    ],
)  # fmt: skip
def test_labels_are_said_with_their_article(label: str, said: str) -> None:
    assert with_article(label) == said


def test_the_stage_drops_what_has_no_words_with_the_reason() -> None:
    unreadable = {
        "image_name": "a",
        "caption_error": "caption file a.txt is not UTF-8 (byte 3 is 0xe9): save it as UTF-8",
    }
    drops = [
        row["captions_drop"] for row in captions_stage([unreadable, {"image_name": "b"}, APPLE], wording=NOTHING_KNOWN)
    ]
    assert drops == [
        "caption: caption file a.txt is not UTF-8 (byte 3 is 0xe9): save it as UTF-8",
        "caption: neither caption nor label; add a .txt or .json file beside the picture",
        "",
    ]


def test_a_tenth_of_the_pairs_is_held_out_always_the_same_and_none_without_a_name() -> None:
    pairs = [(f"concept-{n}", style) for n in range(1000) for style in STYLES]
    assert sum(held_out(*pair) for pair in pairs) == NUM_HELD_OUT_FOR_EVER
    assert [n for n in range(40) if held_out(f"concept-{n}", "noto")] == HELD_OUT_FOR_EVER
    assert not held_out(None, "noto")
    assert not held_out("red-apple", None)


NOTHING_KNOWN = Wording().to_document()
HELD_OUT_FOR_EVER = [16, 23, 24, 36]
NUM_HELD_OUT_FOR_EVER = 1106  # of 11,000
