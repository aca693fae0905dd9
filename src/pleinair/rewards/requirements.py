"""What a prompt requires of its picture, one checkable thing at a time.

A rubric is a prompt's requirements with their weights. Whatever writes rubrics, a rule or a model, is a `Decompose`;
whatever answers them is a `RequirementJudge` (see `rubric`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pleinair.records.errors import ConfigError

Kind = Literal["object", "count", "colour", "relation", "style", "text", "background", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

WEIGHTS: Mapping[Kind, float] = {
    "object": 3.0,
    "text": 3.0,
    "count": 2.0,
    "colour": 2.0,
    "relation": 2.0,
    "style": 2.0,
    "background": 1.0,
    "other": 1.0,
}
"""How much a requirement counts where nobody says otherwise: what a picture is of, before how it is."""
ESSENTIAL: frozenset[Kind] = frozenset({"object", "text"})
"""Without these it is a picture of something else, however well it does in all other things."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One thing that is true or false of a picture."""

    kind: Kind
    text: str
    """As a sentence, for a person or a model: `there is a fox`."""
    subject: str = ""
    """The thing it is about, by its name: `fox`; empty for the picture as a whole."""
    value: str = ""
    """What is required of it: the colour, the number in digits, the relation, the style, the words."""
    other: str = ""
    """The second thing of a relation."""
    weight: float = 1.0
    essential: bool = False
    """No other requirement makes up for it."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"a requirement of kind {self.kind!r:.60}: give {', '.join(KINDS)}")
        if not self.weight > 0:
            raise ConfigError(f"the requirement {self.text!r:.80} weighs {self.weight}: give a number above 0")


Rubric = tuple[Requirement, ...]
Decompose = Callable[[Sequence[str]], list[Rubric]]
"""The rubric of each prompt, in order. Raises RewardError when there is none to be had."""


def required(kind: Kind, text: str, *, subject: str = "", value: str = "", other: str = "") -> Requirement:
    """A requirement with the weight of its kind."""
    return Requirement(
        kind=kind,
        text=text,
        subject=subject,
        value=value,
        other=other,
        weight=WEIGHTS[kind],
        essential=kind in ESSENTIAL,
    )
