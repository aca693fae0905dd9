"""Subjects with one planted fault, and with changes that should not matter: what a measure must and must not see.

style collapse    every picture in one style            concept collapse   the same thing whatever is asked
copies            one picture per prompt, again         training copies    trained pictures, unchanged
noise             no picture at all                     wrong prompts      the pictures of other prompts
forgetful         noise where a pair is new or a thing rare
other seed        the same prompts again: nothing may move but by chance
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pleinair.config import config_digest
from pleinair.evaluation.exploration.requests import SEEDS_OF_A_RUN, Asked
from pleinair.evaluation.exploration.subjects import Progress, Subject, noise_pictures, quiet
from pleinair.evaluation.exploration.tail import thirds
from pleinair.evaluation.exploration.world import Pictures, World


@dataclass(frozen=True)
class Damaged:
    """A subject that is asked other things than it is measured on, or whose pictures are changed."""

    name: str
    subject: Subject
    ask: Callable[[Asked], Asked] = lambda one: one
    change: Callable[[Pictures], Pictures] = lambda pictures: pictures

    @property
    def identity(self) -> str:
        """Of the fault and the subject."""
        return config_digest([self.name, self.subject.identity])

    def draw(self, asked: Sequence[Asked], on_progress: Progress = quiet) -> Pictures:
        """The subject's pictures, with the fault."""
        return self.change(self.subject.draw([self.ask(one) for one in asked], on_progress))


def style_collapse(subject: Subject, style: str) -> Damaged:
    """Everything in one style."""
    return Damaged("style collapse", subject, lambda one: Asked(replace(one.request, style=style), one.seed))


def concept_collapse(subject: Subject, label: str) -> Damaged:
    """The same thing whatever is asked."""
    return Damaged(
        "concept collapse",
        subject,
        lambda one: Asked(replace(one.request, label=label, other=label, variants=(label,)), one.seed),
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


def other_seed(subject: Subject) -> Damaged:
    """No damage: other pictures of the same requests."""
    return Damaged("other seed", subject, lambda one: Asked(one.request, one.seed + SEEDS_OF_A_RUN))


@dataclass(frozen=True)
class Forgetful:
    """A subject that draws noise for pairs kept from training, and for the rarest third of the things it is asked for."""

    subject: Subject
    world: World
    name: str = "forgetful"

    @property
    def identity(self) -> str:
        """Of the fault and the subject."""
        return config_digest([self.name, self.subject.identity])

    def draw(self, asked: Sequence[Asked], on_progress: Progress = quiet) -> Pictures:
        """The subject's pictures, and noise."""
        pictures = self.subject.draw(asked, on_progress).copy()
        rare, _ = thirds(self.world, {one.request.label for one in asked})
        lost = np.array([one.request.kind == "unseen" or one.request.label in rare for one in asked], bool)
        pictures[lost] = noise_pictures(int(lost.sum()), 0)
        return pictures


@dataclass(frozen=True)
class TrainingCopies:
    """Trained pictures of the thing asked for, held-out ones never."""

    world: World
    name: str = "training copies"

    @property
    def identity(self) -> str:
        """Of the world."""
        return config_digest([self.name, self.world.identity])

    def draw(self, asked: Sequence[Asked], on_progress: Progress = quiet) -> Pictures:
        """One of the thing's trained pictures per row."""
        return np.stack([self._picture(one) for one in asked])

    def _picture(self, one: Asked) -> Pictures:
        rows = self.world.rows_of_concept[self.world.concept_of_label[one.request.label]]
        rows = rows[~self.world.held_out[rows]]
        picture: Pictures = self.world.pictures[int(np.random.default_rng(one.seed).choice(rows))]
        return picture
