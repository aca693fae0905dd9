"""The rubric of a prompt by rules: the same prompt always gives the same rubric, at no cost.

    prompt --quoted words, style, ground taken out--> phrases --number, colours, name--> things --what stands between--> relations

It reads plain English as the drawing prompts are written: `three red apples to the left of a key, noto style`. Names it
was told (`things`) are found anywhere in a sentence, the longest first; where it finds none, each phrase is taken for the
name of a thing. What it does not understand is no requirement: it would rather require too little than something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pleinair.records.letters import letters_of
from pleinair.rewards.requirements import Requirement, Rubric, required

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "gray")
NUMBERS: Mapping[str, int] = {
    word: number
    for number, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1
    )
}
RELATIONS = ("to the left of", "to the right of", "above", "below")
_MEANT: Mapping[str, str] = {
    "left of": "to the left of",
    "on the left of": "to the left of",
    "right of": "to the right of",
    "on the right of": "to the right of",
    "over": "above",
    "on top of": "above",
    "under": "below",
    "underneath": "below",
    "beneath": "below",
    **{relation: relation for relation in RELATIONS},
}
"""How people say a relation, to the relation."""
_RELATION = re.compile(rf"\b({'|'.join(sorted(_MEANT, key=len, reverse=True))})\b", re.IGNORECASE)
QUOTED = re.compile('["\u201c\u201d\u201e]([^"\u201c\u201d\u201e]+)["\u201c\u201d\u201e]')
_STYLE_AFTER = re.compile(r"\bin the style of (?:the )?([\w][\w .-]*?)(?=[,.;:]|$)", re.IGNORECASE)
_STYLE_BEFORE = re.compile(
    r"(?:\bin (?:the |an? )?|[,;:]\s*(?:the |an? )?|^)([\w][\w-]*(?: [\w-]+)?) style\b", re.IGNORECASE
)
_GROUND = re.compile(
    r"(?:,|\balone|\bin front of|\bon)*\s*(?:\ba\b|\ban\b|\bthe\b)?\s*(?:plain )?\b(white|black) background\b"
    r"|,? \bon (white|black)(?=[,.;:]|$)|\bthe background is (white|black)\b",
    re.IGNORECASE,
)
_MEDIUM = re.compile(
    r"\b(?:an? |the )?(?:drawing|picture|photo|photograph|image|icon|illustration|painting) of\b", re.IGNORECASE
)
_WRITTEN = re.compile(
    r"(?:\b(?:with |and )?(?:the |an? )?(?:words?|text|letters|writing)\s*)?(?:\b(?:that )?(?:says|saying|reading)\s*)?"
    + QUOTED.pattern,
    re.IGNORECASE,
)
"""Quoted words with what introduces them; a sign that says them is a thing of its own."""
_PHRASE = re.compile(r"[,.;:!?()]|\b(?:and|with|beside|near|next to|behind|in front of)\b", re.IGNORECASE)
_ARTICLES = ("a", "an", "the", "some", "exactly")
_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_MOST_WORDS = 8
"""Of one name."""
_Placed = tuple[str, int, int]
"""A word with where it starts and ends."""


@dataclass(frozen=True)
class Mention:
    """A thing that a prompt names, and what it says of it."""

    name: str
    number: int | None
    """None where the prompt leaves it open, as `a fox` does."""
    colours: tuple[str, ...]
    start: int
    end: int


class PromptParser:
    """A `Decompose` by rules."""

    def __init__(self, things: Iterable[str] = (), styles: Iterable[str] = ()) -> None:
        """`things` and `styles` are names a prompt may say, such as those a judge knows."""
        self._things = {words_of(name): name for name in things}
        self._styles = {words_of(name): name for name in styles}

    def __call__(self, prompts: Sequence[str]) -> list[Rubric]:
        """The rubric of each prompt; empty where nothing in it can be checked."""
        return [tuple(dict.fromkeys(self._requirements(prompt))) for prompt in prompts]

    def _requirements(self, prompt: str) -> Iterator[Requirement]:
        quoted, rest = _taken_out(_WRITTEN, prompt)
        for words in quoted:
            if letters_of(words):
                yield required("text", f'"{words}" is written in it', value=words)
        grounds, rest = _taken_out(_GROUND, rest)
        style, rest = self._style(rest)
        plain = _MEDIUM.sub(" ", rest)
        mentions = self._mentions(plain)
        for mention in mentions:
            yield from _of_mention(mention)
        yield from _relations(plain, mentions)
        if style:
            yield required("style", f"it is in {style} style", value=style)
        for ground in grounds:
            yield required("background", f"the background is {ground.lower()}", value=ground.lower())

    def _style(self, text: str) -> tuple[str, str]:
        """The style that is asked for, and the text without it."""
        for pattern in (_STYLE_AFTER, _STYLE_BEFORE):
            if found := pattern.search(text):
                name = found[1].strip()
                return self._styles.get(words_of(name), name), f"{text[: found.start()]} , {text[found.end() :]}"
        for place, length in _spans(_words_at(text)):
            words = _words_at(text)[place : place + length]
            if known := self._styles.get(tuple(word.lower() for word, _, _ in words)):
                return known, f"{text[: words[0][1]]} {text[words[-1][2] :]}"
        return "", text

    def _mentions(self, text: str) -> list[Mention]:
        words = _words_at(text)
        found, place = [], 0
        while place < len(words):
            mention, used = self._known_at(words, place)
            if mention is not None:
                found.append(mention)
            place += used
        return found or list(_guessed(text))

    def _known_at(self, words: Sequence[_Placed], place: int) -> tuple[Mention | None, int]:
        """The longest known name that begins here, behind its number and colours; and how many words to go on."""
        for length in range(min(_MOST_WORDS, len(words) - place), 0, -1):
            spoken = tuple(word.lower() for word, _, _ in words[place : place + length])
            for form in singular(spoken):
                if form in self._things:
                    return _mention(words, place, length, self._things[form], spoken), length
        return None, 1


def _mention(words: Sequence[_Placed], place: int, length: int, name: str, spoken: tuple[str, ...]) -> Mention:
    """The thing with what stands before it: `three red`."""
    number, colours, first = _before(words, place)
    own = tuple(word for word in spoken if word in COLOURS)
    return Mention(name, number, (*colours, *own), words[first][1], words[place + length - 1][2])


def _before(words: Sequence[_Placed], place: int) -> tuple[int | None, tuple[str, ...], int]:
    """Number and colours in the words before a place, and where they begin."""
    number: int | None = None
    colours: list[str] = []
    first = place
    while first and number is None:
        word = words[first - 1][0].lower()
        if word in COLOURS:
            colours.insert(0, word)
        elif (said := number_of(word)) is not None:
            number = said
        elif word not in _ARTICLES and word not in ("small", "big", "large", "little"):
            break
        first -= 1
    return number, tuple(colours), first


def _guessed(text: str) -> Iterator[Mention]:
    """Each phrase as a thing, where no name in the text is known."""
    start = 0
    cuts = [cut.span() for pattern in (_PHRASE, _RELATION) for cut in pattern.finditer(text)]
    for cut_start, cut_end in [*sorted(cuts), (len(text), len(text))]:
        words = _words_at(text[start:cut_start])
        place = 0
        while place < len(words) and _tells_how(words[place][0].lower()):
            place += 1
        if place < len(words):
            number, colours, _ = _before(words, place)
            name = " ".join(word for word, _, _ in words[place:])
            if number is not None and number > 1:
                name = " ".join(singular(words_of(name))[:2][-1])
            yield Mention(name, number, colours, start + words[0][1], start + words[-1][2])
        start = max(start, cut_end)


def _tells_how(word: str) -> bool:
    return word in _ARTICLES or word in COLOURS or number_of(word) is not None


def _of_mention(mention: Mention) -> Iterator[Requirement]:
    name = mention.name
    yield required("object", f"it shows {name}", subject=name)
    if mention.number is not None:
        yield required("count", f"the number of {name} is {mention.number}", subject=name, value=str(mention.number))
    for colour in dict.fromkeys(mention.colours):
        colour = "grey" if colour == "gray" else colour
        yield required("colour", f"{name} is {colour}", subject=name, value=colour)


def _relations(text: str, mentions: Sequence[Mention]) -> Iterator[Requirement]:
    """What is said between two things that follow each other."""
    for first, second in pairwise(mentions):
        if said := _RELATION.search(text, first.end, second.start):
            relation = _MEANT[said[1].lower()]
            words = f"{first.name} is {relation} {second.name}"
            yield required("relation", words, subject=first.name, value=relation, other=second.name)


def _taken_out(pattern: re.Pattern[str], text: str) -> tuple[list[str], str]:
    """What a pattern finds, and the text without it."""
    found = [next(filter(None, match.groups())) for match in pattern.finditer(text)]
    return found, pattern.sub(" ", text)


def _words_at(text: str) -> list[_Placed]:
    return [(found[0], found.start(), found.end()) for found in _WORD.finditer(text)]


def _spans(words: Sequence[_Placed]) -> Iterator[tuple[int, int]]:
    """Every run of at most three words, the longer first."""
    for length in (3, 2, 1):
        yield from ((place, length) for place in range(len(words) - length + 1))


def words_of(name: str) -> tuple[str, ...]:
    """A name's words in small letters."""
    return tuple(word.lower() for word in _WORD.findall(name))


def number_of(word: str) -> int | None:
    """The number a word says, from one to ninety-nine in digits, to ten in letters."""
    return int(word) if re.fullmatch(r"[1-9]\d?", word) else NUMBERS.get(word)


def singular(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The words as they are, and what they may be several of, the likelier first: `red apples` -> itself, `red apple`."""
    *before, last = words
    forms = [last]
    for ending, instead in (("ies", "y"), ("s", ""), ("es", ""), ("ves", "f"), ("i", "us")):
        if last.endswith(ending) and len(last) > len(ending) + 1 and not last.endswith("ss"):
            forms.append(last[: -len(ending)] + instead)
    return [(*before, form) for form in dict.fromkeys(forms)]
