"""Captions from labels: three lengths, the same words for the same picture every time.

    short    a red apple, noto style
    medium   a red apple in noto style on a plain white background
    long     a red apple, drawn in the noto style. It shows: apple, fruit, red. From the group food & drink, ...

Each length has a few templates and the picture's key picks one, so a model does not learn one sentence by heart. What
kind of picture it is (`a drawing of`, `a photo of`) is known by its source and never guessed. The owner's own caption wins
where there is one. Label and style words, where known, are in every caption.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pleinair.records.wording import Medium, Wording


@dataclass(frozen=True)
class Captions:
    """One picture in three lengths."""

    long: str
    medium: str
    short: str


_SHORT = ("{thing}, {style} style", "{thing} in {style} style")
_MEDIUM = (
    "{thing} in {style} style on a plain white background",
    "{thing}, {style} style, white background",
    "{medium} of {thing} in {style} style, on white",
)
_LONG = (
    "{thing}, {style} style, on a plain white background.{tags}{group}",
    "{medium} of {thing} in {style} style, alone on a white background.{tags}{group}",
    "{thing} in {style} style.{group}{tags} The background is white.",
)
_BACKGROUND = re.compile(
    r"(?:,| in front of)? (?:on|alone on) a (?:plain )?white background|, white background|, on white| The background is white\."
)
_MOST_TAGS = 8
DRAWN = ("a drawing", "an icon")
"""Kinds of pictures that are drawn, by their phrases."""


def captions(
    row: Mapping[str, Any], wording: Wording | None = None, *, white_background: bool = True
) -> Captions | None:
    """Captions of a row with `image_name` and any of `source, caption, label, tags, style, group_name`; None if wordless.

    `wording` says what kind of picture a source has and how a prompt names a style; default: nothing is known of any.
    `white_background` is false where somebody looked and there is none.
    """
    wording = wording or Wording()
    medium, style = wording.medium(row), wording.style(row)
    if row.get("caption"):
        return _from_owner(str(row["caption"]), row.get("label") if medium.labels_are_words else None, style)
    if not row.get("label"):
        return None
    label = str(row["label"])
    if not style:
        return _without_style(row, label, medium)
    words = {
        "thing": with_article(label),
        "medium": medium.phrase,
        "style": style,
        "tags": _tag_sentence(row.get("tags") or (), label),
        "group": _group_sentence(row),
    }
    white_background = white_background and medium.on_white
    pick = int.from_bytes(hashlib.sha256(str(row["image_name"]).encode()).digest()[:8], "big")
    made = (_pick(templates, pick) for templates in (_LONG, _MEDIUM, _SHORT))
    return Captions(*((form if white_background else _BACKGROUND.sub("", form)).format(**words) for form in made))


def _pick(templates: Sequence[str], number: int) -> str:
    return templates[number % len(templates)]


def _from_owner(caption: str, label: str | None, style: str) -> Captions:
    """The owner's words in full, their first sentence, its first clause; label and style added where missing."""
    caption = " ".join(caption.split())
    sentence = re.split(r"(?<=[.!?])\s", caption, maxsplit=1)[0]
    clause = sentence.split(",", 1)[0].rstrip(".!?")
    return Captions(*(completed(text, label, style) for text in (caption, sentence, clause)))


def completed(text: str, label: str | None, style: str) -> str:
    """The text with what it lacks: `a fox` -> `a fox, noto style`."""
    missing = [label] if label and label.lower() not in text.lower() else []
    if style and style.lower() not in text.lower():
        missing.append(f"{style} style")
    return ", ".join([text.rstrip(".") if missing else text, *missing])


def _without_style(row: Mapping[str, Any], label: str, medium: Medium) -> Captions:
    """What kind of picture it is, where that is known, is said in every length, as styles are."""
    thing, tags = with_article(label), _tag_sentence(row.get("tags") or (), label)
    said = f"{medium.phrase} of {thing}"
    if medium.phrase == Medium().phrase:
        return Captions(f"{thing}.{tags}", said, thing)
    return Captions(f"{said}.{tags}{_group_sentence(row)}", said, said)


def _group_sentence(row: Mapping[str, Any]) -> str:
    return f" Group: {row['group_name']}." if row.get("group_name") else ""


def _tag_sentence(tags: Sequence[str], label: str) -> str:
    chosen = [tag for tag in tags if tag.lower() != label.lower()][:_MOST_TAGS]
    return f" It shows: {', '.join(chosen)}." if chosen else ""


_UNCOUNTABLE = (
    *(
        "bread",
        "bacon",
        "butter",
        "cooked rice",
        "curry rice",
        "custard",
        "fire",
        "fog",
        "ice",
        "lotion",
        "popcorn",
        "rice",
    ),
    *(
        "construction",
        "cooking",
        "dizzy",
        "salt",
        "sake",
        "shaved ice",
        "soap",
        "soft ice cream",
        "spaghetti",
        "sushi",
        "tea",
        "wind face",
        "zzz",
        "yarn",
    ),
)
_DETERMINED = re.compile(r"\d|[A-Z]|(keycap|regional|two|three|twelve|no|non|on)\b")
_VOWEL_SOUND = re.compile(r"(?!uni|euro|one|use|ukulele)[aeiou]|hour|x-ray", re.IGNORECASE)


def with_article(label: str) -> str:
    """The label as one says it: `a red apple`, `an elephant`, `the flag of Canada`, `grapes`."""
    if label.startswith("flag of "):
        return f"the {label}"
    head = re.split(r" (?:with|without|of|in|on|from|for) ", label, maxsplit=1)[0]
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is"))
    if plural or ":" in label or label in _UNCOUNTABLE or _DETERMINED.match(label):
        return label
    return f"{'an' if _VOWEL_SOUND.match(label) else 'a'} {label}"
