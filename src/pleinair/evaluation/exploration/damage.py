"""Subjects with one planted fault, and with changes that should not matter: what a measure must and must not see.

style collapse    every picture in one style            concept collapse   the same thing whatever is asked
copies            one picture per prompt, again         training copies    trained pictures, unchanged
noise             no picture at all                     wrong prompts      the pictures of other prompts
reordered         the same pictures in another order of work: nothing may move
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pleinair.evaluation.exploration.requests import Asked
from pleinair.evaluation.exploration.subjects import Progress, Subject, noise_pictures, quiet
from pleinair.evaluation.exploration.world import Pictures, World


@dataclass(frozen=True)
class Damaged:
    """A subject that is asked other things than it is measured on, or whose pictures are changed."""

    name: str
    subject: Subject
    ask: Callable[[Asked], Asked] = lambda one: one
    change: Callable[[Pictures], Pictures] = lambda pictures: pictures

    def draw(self, asked: Sequence[Asked], on_progress: Progress = quiet) -> Pictures:
        """The subject's pictures, with the fault."""
        return self.change(self.subject.draw([self.ask(one) for one in asked], on_progress))


def style_collapse(subject: Subject, style: str) -> Damaged:
    """Everything in one style."""
    return Damaged("style collapse", subject, lambda one: Asked(replace(one.request, style=style), one.seed))


def concept_collapse(subject: Subject, label: str) -> Damaged:
    """The same thing whatever is asked."""
    return Damaged(
        "concept collapse", subject, lambda one: Asked(replace(one.request, label=label, other=label), one.seed)
    )


def copies(subject: Subject) -> Damaged:
    """One picture per prompt, whatever the seed."""
    return Damaged("copies", subject, lambda one: Asked(one.request, 0))


def noise(subject: Subject) -> Damaged:
    """Uniform noise instead of pictures."""
    return Damaged("noise", subject, change=lambda pictures: noise_pictures(len(pictures), 0))


def wrong_prompts(subject: Subject) -> Damaged:
    """Pictures of other prompts: each row gets that of the row half the list away."""
    return Damaged("wrong prompts", subject, change=lambda pictures: np.roll(pictures, len(pictures) // 2, axis=0))


@dataclass(frozen=True)
class TrainingCopies:
    """Trained pictures of the thing asked for, held-out ones never."""

    world: World
    name: str = "training copies"

    def draw(self, asked: Sequence[Asked], on_progress: Progress = quiet) -> Pictures:
        """One of the thing's trained pictures per row."""
        return np.stack([self._picture(one) for one in asked])

    def _picture(self, one: Asked) -> Pictures:
        rows = self.world.rows_of_concept[self.world.concept_of_label[one.request.label]]
        rows = rows[~self.world.held_out[rows]]
        picture: Pictures = self.world.pictures[int(np.random.default_rng(one.seed).choice(rows))]
        return picture
