"""What an entity may be called in a caption: titles to words, plurals, and which one-word names are too common.

A name and a caption are cut into words the same way: NFKC, runs of letters and digits, case folded. So hyphens, dots and
apostrophes separate words on both sides: `St. Peter's` is `st peter s` in either.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from importlib.resources import files

_WORD = re.compile(r"[^\W_]+")
_QUALIFIER = re.compile(r"\s*\([^()]*\)\s*$")
_IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet", "tooth": "teeth",
    "goose": "geese", "mouse": "mice", "louse": "lice", "ox": "oxen", "die": "dice", "leaf": "leaves",
    "cactus": "cacti", "fungus": "fungi", "octopus": "octopuses", "axis": "axes", "oasis": "oases",
}  # fmt: skip
_UNCHANGED = frozenset(
    {"sheep", "deer", "fish", "series", "species", "aircraft", "spacecraft", "swine", "moose", "bison"}
)


def words(text: str) -> list[str]:
    """The words of a text, case kept; fold each before comparing."""
    return _WORD.findall(text if text.isascii() else unicodedata.normalize("NFKC", text))


def folded_words(text: str) -> tuple[str, ...]:
    """The words of a text as they are compared."""
    return tuple(word.casefold() for word in words(text))


def capitals(text: str) -> list[bool]:
    """For each of `words(text)`, whether it has a capital that is not owed to the beginning of a sentence."""
    whole = text if text.isascii() else unicodedata.normalize("NFKC", text)
    found, end = [], 0
    for word in _WORD.finditer(whole):
        opens = end == 0 or any(sign in whole[end : word.start()] for sign in ".!?:")
        found.append(word[0][0].isupper() and not opens)
        end = word.end()
    return found


def unqualified(title: str) -> str:
    """A title without what tells it from its namesakes: `Mercury (planet)` -> `Mercury`."""
    return _QUALIFIER.sub("", title) or title


def plurals(word: str) -> tuple[str, ...]:
    """Forms a folded English noun may take in the plural, other than itself; not all need exist."""
    if word in _UNCHANGED or not word.isalpha() or len(word) < 3:
        return ()
    if word in _IRREGULAR:
        return (_IRREGULAR[word],)
    if word.endswith("man"):
        return (word[:-3] + "men",)
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return (word + "es",)
    if word.endswith("y") and word[-2] not in "aeiou":
        return (word[:-1] + "ies",)
    if word.endswith("fe"):
        return (word[:-2] + "ves", word + "s")
    if word.endswith("f"):
        return (word[:-1] + "ves", word + "s")
    if word.endswith("o"):
        return (word + "es", word + "s")
    return (word + "s",)


@cache
def stop_words() -> frozenset[str]:
    """Words that are never a name by themselves: function words, and words of captions about captions."""
    text = files("pleinair.curation.entities").joinpath("stop_words.txt").read_text(encoding="utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())


def usable(name: tuple[str, ...]) -> bool:
    """Whether these folded words can be looked for: not one stop word, one number or one letter or two."""
    if len(name) == 2 and name[0] in ("a", "an"):  # `A'man` would be every `a man`
        return False
    if len(name) != 1:
        return bool(name) and not all(word in stop_words() for word in name)
    return len(name[0]) > 2 and not name[0].isdecimal() and name[0] not in stop_words()
