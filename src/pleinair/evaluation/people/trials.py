"""What is asked of people: comparisons with one named attribute each, and the trials of a session made of them.

    Showing --comparisons--> every pair of subjects x every group of up to eight pictures x the questions that fit it
                 `--session(person, seed)--> trials: a share of them, sides shuffled,
                                             some again with sides exchanged (do they agree with themselves?),
                                             some controls with a known answer (are they looking?)

People who count how many kinds a set of pictures shows are right about 30% of the time without the attribute named, and
78% with it, eight pictures a side (arXiv 2511.10547): hence one attribute a question and eight pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from pleinair.captioning.templates import with_article
from pleinair.config import config_digest
from pleinair.evaluation.people.shown import Gallery, Showing
from pleinair.records.errors import ConfigError
from pleinair.records.preferences import Attribute

NUM_SIDE = 8
"""Pictures of a side, at most."""
LEAST_SIDE = 4
NUM_EXAMPLES = 4
NUM_TRIALS = 40
REPEATED = CONTROLLED = 0.1
"""Shares of a session's trials, on top of them; two at least."""


@dataclass(frozen=True)
class Half:
    """One side: rows of a gallery."""

    gallery: Gallery
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides and the question about them, in no order that a person sees."""

    attribute: Attribute
    about: str
    """The style's words or the thing's label; empty where none is named."""
    halves: tuple[Half, Half]
    examples: tuple[int, ...] = ()
    """Rows of the real pictures that show the style in question, of other prompts."""
    known: Literal["", "first"] = ""
    """`first`: a control, whose first half is the answer."""

    @property
    def key(self) -> str:
        """The same for the same question about the same pictures."""
        sides = [[half.gallery.subject, half.gallery.identity, list(half.rows)] for half in self.halves]
        return config_digest([self.attribute, self.about, sides])[:20]

    @property
    def question(self) -> str:
        """As a person reads it."""
        return {
            "styles": "Which side shows more different styles?",
            "follows_style": f"Which side follows \u201c{self.about} style\u201d better?",
            "shows_thing": f"Which side shows {with_article(self.about)} better?",
            "prefer": "Which side would you rather go on with?",
        }[self.attribute]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One showing of a comparison."""

    trial: str
    comparison: Comparison
    exchanged: bool
    """Whether the first half is on the right."""
    repeat: bool = False

    @property
    def left(self) -> Half:
        """What the person sees on the left."""
        return self.comparison.halves[int(self.exchanged)]

    @property
    def right(self) -> Half:
        """What the person sees on the right."""
        return self.comparison.halves[int(not self.exchanged)]

    @property
    def control(self) -> Literal["", "left", "right"]:
        """The known answer, where there is one."""
        if not self.comparison.known:
            return ""
        return "right" if self.exchanged else "left"


@dataclass(frozen=True)
class Group:
    """Pictures that are shown together, and what may be asked of them."""

    rows: tuple[int, ...]
    asks: Sequence[tuple[Attribute, str]]
    style: str = ""


def groups(showing: Showing, style_words: dict[str, str]) -> list[Group]:
    """Open prompts by themselves, told ones by style and by thing; up to eight pictures, four at least."""
    by_unit: dict[str, list[int]] = {}
    by_style: dict[str, list[int]] = {}
    by_label: dict[str, list[int]] = {}
    for row, one in enumerate(showing.asked):
        if one.request.kind == "default":
            by_unit.setdefault(one.request.label, []).append(row)
        elif one.request.kind in ("specified", "unseen"):
            by_style.setdefault(one.request.style, []).append(row)
            by_label.setdefault(one.request.label, []).append(row)
    return [
        *(
            Group(rows, [("styles", ""), ("shows_thing", label), ("prefer", "")])
            for label, all_rows in by_unit.items()
            for rows in _split(all_rows)
        ),
        *(
            Group(rows, [("follows_style", style_words.get(style, style))], style)
            for style, all_rows in by_style.items()
            for rows in _split(all_rows)
        ),
        *(Group(rows, [("shows_thing", label)]) for label, all_rows in by_label.items() for rows in _split(all_rows)),
    ]


def _split(rows: Sequence[int]) -> list[tuple[int, ...]]:
    parts = [tuple(rows[start : start + NUM_SIDE]) for start in range(0, len(rows), NUM_SIDE)]
    return [part for part in parts if len(part) >= LEAST_SIDE]


def comparisons(showing: Showing, style_words: dict[str, str]) -> list[Comparison]:
    """All there are. Raises ConfigError when the prompts hold no group to ask about."""
    found = groups(showing, style_words)
    if not found:
        raise ConfigError(
            f"no prompt of these results has {LEAST_SIDE} pictures: evaluate the suite's own prompts, or give more of a kind"
        )
    return [
        Comparison(
            attribute=attribute,
            about=about,
            halves=(Half(first, group.rows), Half(second, group.rows)),
            examples=_examples(showing, group),
        )
        for first, second in combinations(showing.subjects, 2)
        for group in found
        for attribute, about in group.asks
    ]


def _examples(showing: Showing, group: Group) -> tuple[int, ...]:
    """Real pictures of the style, spread over its prompts, none of the pictures in question."""
    rows = [
        row
        for row, one in enumerate(showing.asked)
        if group.style and one.request.style == group.style and row not in group.rows
        if one.request.kind in ("specified", "unseen")
    ]
    return tuple(rows[:: max(1, len(rows) // NUM_EXAMPLES)][:NUM_EXAMPLES])


def controls(showing: Showing, style_words: dict[str, str]) -> list[Comparison]:
    """Questions whose answer is known: real pictures against noise, and against one of them again and again."""
    found, noise, copies = [], showing.noise, showing.copies
    for group in groups(showing, style_words):
        for attribute, about in group.asks:
            other = Half(copies, (group.rows[0],) * len(group.rows)) if attribute == "styles" else None
            found.append(
                Comparison(
                    attribute=attribute,
                    about=about,
                    halves=(Half(showing.real, group.rows), other or Half(noise, group.rows)),
                    examples=_examples(showing, group),
                    known="first",
                )
            )
    return found


def session(
    possible: Sequence[Comparison], known: Sequence[Comparison], person: str, num_trials: int, seed: int
) -> list[Trial]:
    """A person's trials, always the same for the same arguments: a server that was restarted goes on.

    Pairs of subjects and attributes come in turn, so that a short session has some of each. A repeat comes in the second
    half, of a comparison of the first, with its sides exchanged.
    """
    if num_trials < 1:
        raise ConfigError(f"a session of {num_trials} trials asks nothing: give one or more")
    name = config_digest([person, seed, [one.key for one in possible], num_trials])
    rng = np.random.default_rng(int(name[:16], 16))
    chosen = in_turn(possible, rng)[:num_trials]
    half = (len(chosen) + 1) // 2
    again = rng.permutation(half)[: _share(REPEATED, len(chosen), half)]
    order = [(one, bool(rng.integers(2)), False) for one in chosen]
    repeats = [(chosen[place], not order[place][1], True) for place in sorted(again.tolist())]
    checks = [(one, bool(rng.integers(2)), False) for one in in_turn(known, rng)]
    for one in repeats:
        order.insert(int(rng.integers(half, len(order) + 1)), one)
    for one in checks[: _share(CONTROLLED, len(chosen), len(checks))]:
        order.insert(int(rng.integers(len(order) + 1)), one)
    return [
        Trial(trial=config_digest([name, place])[:20], comparison=comparison, exchanged=exchanged, repeat=repeat)
        for place, (comparison, exchanged, repeat) in enumerate(order)
    ]


def _share(share: float, num: int, most: int) -> int:
    return min(most, max(2, round(share * num)))


def in_turn(possible: Sequence[Comparison], rng: np.random.Generator) -> list[Comparison]:
    """Shuffled, one of each pair of subjects and attribute after the other."""
    kinds: dict[tuple[str, ...], list[Comparison]] = {}
    for place in rng.permutation(len(possible)):
        one = possible[place]
        kinds.setdefault((one.attribute, *(half.gallery.identity for half in one.halves)), []).append(one)
    depth = max(map(len, kinds.values()), default=0)
    return [of[place] for place in range(depth) for of in kinds.values() if place < len(of)]
