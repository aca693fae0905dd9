"""What is written in a picture against what should be: the comparisons of OneIG, LongText-Bench and CVTG-2K.

Each is written from its benchmark's description of the number, and tested on answers worked out by hand.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence

from pleinair.evaluation.published.benchmark import Question

NO_TEXT = "No text recognized."
_CHINESE = re.compile("[\u4e00-\u9fff]")
_ACCENTED = (
    "\u00e0\u00e2\u00e4\u00e9\u00e8\u00ea\u00eb\u00ee\u00ef\u00f4\u00f6\u00f9\u00fb\u00fc\u00e7"
    "\u00c0\u00c2\u00c4\u00c9\u00c8\u00ca\u00cb\u00ce\u00cf\u00d4\u00d6\u00d9\u00db\u00dc\u00c7"
)
_OTHER = re.compile(rf"[^\u4e00-\u9fa5a-zA-Z0-9\s{_ACCENTED}]")
_BLANKS = re.compile(r"\s+")
_NED_EPSILON = 1e-5


def reading_question(max_tokens: int) -> Question:
    """Ask what is written. The wording is ours; the official one asks for the same."""
    return Question(
        text="Write down all text that can be read in the image, once, and nothing else. "
        f"If there is none, answer: {NO_TEXT}",
        max_tokens=max_tokens,
    )


def is_chinese(text: str) -> bool:
    """Whether a Chinese sign is in it."""
    return bool(_CHINESE.search(text))


def letters(text: str) -> str:
    """Letters, digits and single blanks; the rest is dropped."""
    return _BLANKS.sub(" ", _OTHER.sub("", text)).strip()


def signs(text: str) -> str:
    """Letters and digits without any blank: how Chinese is compared."""
    return _BLANKS.sub("", _OTHER.sub("", text))


def num_shared(wanted: Sequence[str], read: Sequence[str]) -> int:
    """How many of the wanted words were read, each as often as it is wanted at most."""
    return sum((Counter(wanted) & Counter(read)).values())


def edit_distance(one: str, other: str) -> int:
    """Fewest signs to insert, delete or replace (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, sign in enumerate(one, start=1):
        before, row[0] = row[0], number
        for place, against in enumerate(other, start=1):
            before, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, before + (sign != against)),
            )
    return row[-1]


def closeness(word: str, read: Sequence[str]) -> float:
    """1 - normalised edit distance of a word to the word read that is most like it (difflib's ratio chooses)."""
    best = difflib.get_close_matches(word, read, n=1, cutoff=0)
    if not best:
        return 0.0
    return 1 - edit_distance(word, best[0]) / (max(len(word), len(best[0])) + _NED_EPSILON)
