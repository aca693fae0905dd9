"""What a published benchmark is; how one is run is in `drawing` and `judging`.

    prompt file --read--> Item (prompt, files, questions) --draw--> files, laid out as the official scorer looks for them
                                                                      |
                                    Measure <--measure-- Judged <--ask a judge--+

A benchmark is one value of `Benchmark` in a module of its own: how its prompts are read, what its files are called, what
is asked of every picture, and how the answers become numbers. Nothing of it is shipped, neither prompts nor judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

T = TypeVar("T")

Wants = Literal["words", "probabilities", "writing", "number"]
"""What a judge must be able to say: a word, how likely its first word was, what is written, or a score."""
NOT_RUN = "not run here by the authors: prompts and judge are the user's"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a picture."""

    text: str
    hint: str = ""
    """Added for a judge that is not the benchmark's own and has to be told the form of an answer."""
    accepted: frozenset[str] = frozenset()
    """First tokens whose probabilities, added up, are the answer; empty: what is said is the answer."""
    max_tokens: int = 8


@dataclass(frozen=True)
class Answer:
    """What a judge said to one question about one picture."""

    text: str = ""
    value: float = 0.0
    """Probability of the accepted tokens, or the number said, where the benchmark wants one."""
    usable: bool = True
    """False: the judge answered nothing one can use, which counts as no."""


@dataclass(frozen=True, kw_only=True)
class Item(Generic[T]):
    """A prompt of a benchmark."""

    key: str
    """What tells it from the others."""
    prompt: str
    files: tuple[str, ...]
    """Its picture files, below the folder of pictures: one per copy, or a single one with all copies in a grid."""
    questions: tuple[Question, ...]
    """Asked of every copy."""
    about: T
    """What its benchmark needs to aggregate the answers."""


@dataclass(frozen=True)
class Judged(Generic[T]):
    """A prompt with what was said of its pictures."""

    item: Item[T]
    answers: tuple[tuple[Answer, ...], ...]
    """Per picture, in the order of the questions."""


@dataclass(frozen=True)
class Measure:
    """One number."""

    value: float
    num: int
    of: str
    """What it is a mean over: prompts, questions, words."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is drawn, and under which name."""

    model: str = "pleinair"
    """Name of a folder, where a layout holds several models."""
    copies: int
    """Pictures of each prompt."""


def _no_companions(items: Sequence[Item[T]], pictures: Path) -> dict[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Benchmark(Generic[T]):
    """A published benchmark."""

    title: str
    brings: str
    """What the user brings as `--prompts`."""
    source: str
    """What format and formula were read from."""
    scorer: str
    """How the official scorer is started on the folder; `{out}` and `{prompts}` stand for paths."""
    wants: Wants
    copies: int
    """Pictures of each prompt, as published."""
    allowed: frozenset[int] = frozenset()
    """Other numbers of copies its layout can hold; empty: any."""
    in_grid: bool = False
    """All copies of a prompt in one file, in a square grid."""
    skips_black: bool = False
    """An all-black picture stands for one that could not be drawn, and is not judged."""
    official_judges: tuple[str, ...] = ()
    """The judge whose score bears the title; none: that takes the official scorer."""
    num_prompts: frozenset[int] = frozenset()
    """Sizes of the published sets; empty: any set of prompts gives a score of this title."""
    left_out: tuple[str, ...] = ()
    """Published dimensions that only the official scorer gives."""
    differs: tuple[str, ...] = ()
    """What could not be verified, or is done in another way here."""
    read: Callable[[Path, Plan], list[Item[T]]]
    """The prompts. Raises ConfigError naming file, line and what is missing."""
    measure: Callable[[Sequence[Judged[T]]], dict[str, Measure]]
    companions: Callable[[Sequence[Item[T]], Path], dict[str, str]] = field(default=_no_companions)
    """Text files that the scorer reads beside the pictures, by path below the output folder, given the pictures' folder."""


def mean(values: Sequence[float], of: str, scale: float = 1.0) -> Measure:
    """The mean of one or more values."""
    return Measure(scale * sum(values) / len(values), len(values), of)


def measured(groups: Mapping[str, Sequence[float]], of: str, scale: float = 1.0) -> dict[str, Measure]:
    """A mean for each group that has values."""
    return {name: mean(values, of, scale) for name, values in groups.items() if values}
