"""Pictures beside what was asked and what the judges say: what every measure reads.

Asked list --Subject.draw--> pictures --Witnesses.look--> Sheet
                                         two judges, the copy embedding, frozen features, checkers of one question
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pleinair.evaluation.exploration.requests import Asked, Kind
from pleinair.evaluation.exploration.world import Pictures, Rows, World
from pleinair.evaluation.features import Features
from pleinair.model.judge import JudgeScores

Flags = npt.NDArray[np.bool_]
JUDGES = ("first", "second")
NUM_GUESSES = 5


@dataclass(frozen=True)
class Things:
    """What a judge makes of a picture of several things."""

    num: int
    """How many it sees."""
    right: bool
    """Whether they are as many, what and where was asked."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What checkers of one question found in a picture; what its request does not ask stays as it is here."""

    colour: str = ""
    """By its pixels."""
    read: str | None = None
    """By OCR; None where no word was asked for, or nothing reads."""
    things: Mapping[str, Things] = field(default_factory=dict)
    """By judge."""


@dataclass(frozen=True)
class Sheet:
    """One row per picture."""

    world: World
    asked: Sequence[Asked]
    pictures: Pictures
    scores: Mapping[str, JudgeScores]
    """By judge."""
    features: Features
    """Frozen, (N, F), standardised over real pictures."""
    copies: Features
    """Copy embedding, (N, D) of length 1."""
    seen: Sequence[Seen]

    def __len__(self) -> int:
        return len(self.asked)

    def of_kind(self, *kinds: Kind) -> Sheet:
        """The rows of some kinds of request."""
        return self.take(np.array([one.request.kind in kinds for one in self.asked], bool))

    def take(self, chosen: Flags) -> Sheet:
        """The chosen rows."""
        return self.rows(np.flatnonzero(chosen).astype(np.int64))

    def rows(self, rows: Rows) -> Sheet:
        """These rows, in this order."""
        return Sheet(
            self.world,
            [self.asked[row] for row in rows.tolist()],
            self.pictures[rows],
            {name: scores.take(rows) for name, scores in self.scores.items()},
            self.features[rows],
            self.copies[rows],
            [self.seen[row] for row in rows.tolist()],
        )

    @property
    def units(self) -> list[str]:
        """What each picture answers."""
        return [one.request.unit for one in self.asked]

    @property
    def labels(self) -> list[str]:
        """The thing each picture should show."""
        return [one.request.label for one in self.asked]

    def styles(self, judge: str) -> Rows:
        """(N,) the style the judge names."""
        named: Rows = self.scores[judge].style_logits.argmax(axis=1)
        return named

    def style_hit(self, judge: str) -> Flags:
        """Whether that is the style asked for."""
        names = list(self.world.style_names)
        hit: Flags = self.styles(judge) == [names.index(one.request.style) for one in self.asked]
        return hit

    def concept_hit(self, judge: str, guesses: int = NUM_GUESSES) -> Flags:
        """Whether the thing asked for is among the judge's first guesses; ties count against the picture."""
        logits_NC = self.scores[judge].concept_logits
        return among_first(logits_NC, [self.world.concept_of_label[label] for label in self.labels], guesses)


def among_first(logits_NC: npt.NDArray[np.float32], concepts_N: Sequence[int] | Rows, guesses: int) -> Flags:
    """Whether each row's concept is among its largest logits; ties count against it."""
    own_N1 = np.take_along_axis(logits_NC, np.asarray(concepts_N, np.int64)[:, None], axis=1)
    first: Flags = (logits_NC >= own_N1).sum(axis=1) <= guesses
    return first
