"""What is asked of a model: the frozen prompts of the suite, and how many pictures of each a run draws.

    labels, styles --build--> Request list --digest--> compared with the frozen one
                                  |
                                  +-- plan(size): which of them, how many seeds --> Asked list (request, seed)

A request carries what a checker needs to know, so that nothing is parsed from a prompt. Prompts are made from the labels
by the rules here alone; their digest stands in every result, and results of different digests are not compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from pleinair.captioning.templates import with_article
from pleinair.curation.heldout import held_out
from pleinair.records.errors import ConfigError

Kind = Literal[
    "default",
    "specified",
    "unseen",
    "user",
    "long",
    "language",
    "colour",
    "any-colour",
    "count",
    "position",
    "pair",
    "text",
    "any-kind",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
Size = Literal["quick", "full"]

NEEDED: Mapping[Kind, tuple[str, ...]] = {
    **dict.fromkeys(("default", "any-colour"), ("label",)),
    **dict.fromkeys(("specified", "unseen", "user", "long", "language"), ("label", "style")),
    "colour": ("label", "colour"),
    "count": ("label", "count"),
    "pair": ("label", "other"),
    "position": ("label", "other", "relation"),
    "text": ("text",),
    "any-kind": ("label", "variants"),
}
"""Fields that a checker of each kind reads."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
COLOURED = ("heart", "circle", "square")
"""Things that the drawing sets draw in every one of these colours, so that there are real pictures to compare with."""
FROZEN: Mapping[str, str] = {
    "quick": "562295fe43729ce2",
    "full": "eea6ff9df396dd4c",
}
"""How the digests of the prompts begin, by size, where a subject knows the things of `drawings-64`: what is published."""
SEEDS_OF_A_PROMPT, SEEDS_OF_A_KIND, SEEDS_OF_A_RUN = 101, 1_000_003, 100_000_007
"""Apart enough that no two pictures of any plans and seeds share their noise."""
NUMBERS = ("one", "two", "three", "four")
RELATIONS = ("to the left of", "to the right of", "above", "below")
COUNTED = ("red apple", "banana", "strawberry", "fish", "key", "soccer ball", "cactus", "rocket")
PLURALS: Mapping[str, str] = {"strawberry": "strawberries", "fish": "fish", "cactus": "cacti"}
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "apple": ("red apple", "green apple"),
    "ball": ("soccer ball", "baseball", "basketball", "tennis"),
    "bird": ("bird", "eagle", "duck", "owl", "penguin", "baby chick"),
    "car": ("automobile", "police car", "racing car"),
    "face": ("grinning face", "smiling face with sunglasses", "angry face"),
    "fish": ("fish", "tropical fish", "blowfish"),
    "flower": ("sunflower", "rose", "tulip", "hibiscus", "cherry blossom"),
    "shoe": ("running shoe", "high-heeled shoe"),
    "tree": ("palm tree", "evergreen tree", "deciduous tree", "Christmas tree"),
}
"""Words that leave open which of several things is meant."""
WORDS = ("OPEN", "STOP", "HELLO", "SALE", "NEW", "CAFE", "EXIT", "YES", "2026", "ART")
LANGUAGES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "de": (
        "{thing} im Look von {style}",
        {
            "fox": "ein Fuchs",
            "banana": "eine Banane",
            "house": "ein Haus",
            "sun": "die Sonne",
            "key": "ein Schl\u00fcssel",
        },
    ),
    "fr": (
        "{thing}, style {style}",
        {"fox": "un renard", "banana": "une banane", "house": "une maison", "sun": "le soleil", "key": "une cl\u00e9"},
    ),
    "es": (
        "{thing}, estilo {style}",
        {"fox": "un zorro", "banana": "un pl\u00e1tano", "house": "una casa", "sun": "el sol", "key": "una llave"},
    ),
    "zh": (
        "{style}\u98ce\u683c\u7684{thing}",
        {
            "fox": "\u72d0\u72f8",
            "banana": "\u9999\u8549",
            "house": "\u623f\u5b50",
            "sun": "\u592a\u9633",
            "key": "\u94a5\u5319",
        },
    ),
}
"""Per language how a style is said, and some labels."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and what its picture should show."""

    kind: Kind
    prompt: str
    label: str = ""
    """The thing, by its label; empty where a text is asked for."""
    style: str = ""
    """The style by name; empty where it is left open."""
    colour: str = ""
    count: int = 1
    relation: str = ""
    other: str = ""
    """The second thing of a position or a pair."""
    language: str = "en"
    text: str = ""
    variants: tuple[str, ...] = ()
    """The things that the prompt leaves a choice of, by their labels."""

    @property
    def unit(self) -> str:
        """What it is called in results."""
        return f"{self.kind}: {self.prompt}"


@dataclass(frozen=True)
class Asked:
    """A request and the seed of one picture of it."""

    request: Request
    seed: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How many prompts of a kind are drawn, and how often each."""

    prompts: Mapping[Kind, int] = field(default_factory=dict)
    """0 or missing: none; more than there are: all."""
    seeds: Mapping[Kind, int] = field(default_factory=dict)
    """Pictures per prompt; 1 where missing."""


PLANS: Mapping[Size, Plan] = {
    "quick": Plan(
        prompts={
            "default": 24,
            "specified": 120,
            "unseen": 60,
            "colour": 12,
            "any-colour": 3,
            "user": 12,
            "long": 12,
            "language": 12,
            "count": 16,
            "position": 12,
            "pair": 12,
            "text": 5,
            "any-kind": 8,
        },
        seeds={"default": 8, "any-colour": 8, "any-kind": 8},
    ),
    "full": Plan(
        prompts={
            "default": 40,
            "specified": 300,
            "unseen": 120,
            "colour": 99,
            "any-colour": 3,
            "user": 40,
            "long": 40,
            "language": 20,
            "count": 32,
            "position": 40,
            "pair": 40,
            "text": 10,
            "any-kind": 9,
        },
        seeds={**dict.fromkeys(KINDS, 5), "default": 16, "any-colour": 16, "any-kind": 16},
    ),
}
"""`quick` asks some of `full`'s prompts, with the first of its seeds. Five seeds of every prompt in `full`."""


def build_requests(concepts: Mapping[str, str], style_words: Mapping[str, str]) -> list[Request]:
    """Every request of the suite, for concepts by their labels and styles with their words.

    A pair of `specified` is one that training may hold, one of `unseen` is kept from it.
    """
    labels = list(concepts)
    return [
        *(Request(kind="default", prompt=with_article(label), label=label) for label in labels),
        *_specified(concepts, style_words),
        *(
            Request(kind="colour", prompt=f"{with_article(colour)} {thing}", label=f"{colour} {thing}", colour=colour)
            for thing in COLOURED
            for colour in COLOURS
        ),
        *(Request(kind="any-colour", prompt=f"a {thing}", label=thing) for thing in COLOURED),
        *_languages(labels, style_words),
        *_compositions([label for label in COUNTED if label in labels]),
        *(Request(kind="text", prompt=f'the word "{word}"', text=word) for word in WORDS),
        *_any_kinds(labels),
    ]


def _specified(concepts: Mapping[str, str], style_words: Mapping[str, str]) -> Iterator[Request]:
    for label, concept in concepts.items():
        for style, words in style_words.items():
            thing = with_article(label)
            kind: Kind = "unseen" if held_out(concept, style) else "specified"
            truth: dict[str, Any] = {"label": label, "style": style}
            yield Request(kind=kind, prompt=f"{thing}, {words} style", **truth)
            yield Request(kind="user", prompt=f"{label} {words}", **truth)
            yield Request(
                kind="long",
                prompt=f"I would like a friendly picture of {thing} that looks as if it came from the {words} set: "
                f"{words} style, nothing else in it, on a plain white background.",
                **truth,
            )


def _languages(labels: Sequence[str], style_words: Mapping[str, str]) -> Iterator[Request]:
    styles = list(style_words.items())
    for language, (form, things) in LANGUAGES.items():
        for number, (label, thing) in enumerate(things.items()):
            style, words = styles[number % len(styles)]
            if label in labels:
                prompt = form.format(thing=thing, style=words)
                yield Request(kind="language", prompt=prompt, label=label, style=style, language=language)


def _compositions(labels: Sequence[str]) -> Iterator[Request]:
    for label in labels:
        for count, number in enumerate(NUMBERS, start=1):
            things = PLURALS.get(label, f"{label}s") if count > 1 else label
            yield Request(kind="count", prompt=f"{number} {things}", label=label, count=count)
    for place, label in enumerate(labels):
        for step in range(1, len(labels)):
            other = labels[(place + step) % len(labels)]
            first, second = with_article(label), with_article(other)
            relation = RELATIONS[(place + step) % len(RELATIONS)]
            yield Request(kind="pair", prompt=f"{first} and {second}", label=label, other=other)
            yield Request(
                kind="position", prompt=f"{first} {relation} {second}", label=label, other=other, relation=relation
            )


def _any_kinds(labels: Sequence[str]) -> Iterator[Request]:
    for word, of in VARIANTS.items():
        variants = tuple(label for label in of if label in labels)
        if len(variants) > 1:
            yield Request(kind="any-kind", prompt=with_article(word), label=word, variants=variants)


def to_document(request: Request) -> dict[str, Any]:
    """As JSON, without the fields that ask nothing."""
    written = {one.name: getattr(request, one.name) for one in fields(Request)}
    told = {name: value for name, value in written.items() if value != _NOTHING[name] or name in NEEDED[request.kind]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}


_NOTHING: Mapping[str, Any] = {one.name: one.default for one in fields(Request)}


def from_document(written: Mapping[str, Any]) -> Request:
    """The inverse. Raises ValueError, TypeError or KeyError for what is no request."""
    unknown = set(written) - _NOTHING.keys()
    if unknown or written["kind"] not in KINDS or not str(written["prompt"]).strip():
        raise ValueError(f"unknown field {min(unknown)!r}" if unknown else "no known kind, or an empty prompt")
    missing = [name for name in NEEDED[written["kind"]] if not written.get(name)]
    if missing:
        raise ValueError(f"{written['kind']} needs {' and '.join(missing)}")
    if written.get("relation", RELATIONS[0]) not in RELATIONS:
        raise ValueError(f"the relation {written['relation']!r} is none of {', '.join(RELATIONS)}")
    return Request(**{**written, "variants": tuple(written.get("variants", ()))})


def are_frozen(size: str, prompts_sha256: str) -> bool:
    """Whether these are the published prompts of a size, so that results may be set beside published ones."""
    return size in FROZEN and prompts_sha256.startswith(FROZEN[size])


def digest_requests(requests: Sequence[Request]) -> str:
    """What identifies a list of requests, whatever their order."""
    lines = sorted(json.dumps(to_document(request), sort_keys=True) for request in requests)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def plan_requests(requests: Sequence[Request], plan: Plan, *, seed: int = 0) -> list[Asked]:
    """The plan's share of each kind, the same for every subject, and every picture's seed.

    `seed` moves the pictures' seeds, not the prompts: two runs of one checkpoint with other seeds are comparable.
    """
    chosen: list[Asked] = []
    for number, kind in enumerate(KINDS):
        of_kind = [request for request in requests if request.kind == kind]
        order = np.random.default_rng(number).permutation(len(of_kind))[: plan.prompts.get(kind, 0)]
        for place in sorted(order.tolist()):
            start = seed * SEEDS_OF_A_RUN + number * SEEDS_OF_A_KIND + place * SEEDS_OF_A_PROMPT
            chosen += [Asked(of_kind[place], start + again) for again in range(plan.seeds.get(kind, 1))]
    return chosen


def read_requests(path: Path) -> list[Request]:
    """Requests of one's own: a JSON object with the fields of `Request` on each line. Raises ConfigError."""
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as unreadable:
        raise ConfigError(
            f"{path} cannot be read ({unreadable}): give a file of one JSON object per line"
        ) from unreadable
    if not lines:
        raise ConfigError(f"{path} holds no prompts: write one JSON object per line, such as {_EXAMPLE}")
    return [_parsed(path, number, line) for number, line in enumerate(lines, start=1)]


_EXAMPLE = '{"kind": "specified", "prompt": "a red fox, noto style", "label": "fox", "style": "noto"}'


def _parsed(path: Path, number: int, line: str) -> Request:
    try:
        return from_document(json.loads(line))
    except (ValueError, TypeError, KeyError) as refused:
        raise ConfigError(
            f"line {number} of {path} is no request ({refused}): kinds are {', '.join(KINDS)}; write {_EXAMPLE}"
        ) from refused
