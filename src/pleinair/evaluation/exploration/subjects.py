"""What is measured: anything that answers requests with pictures.

    Drawn            a model's sampler
    Real             real pictures of what was asked, put together where two things are asked for: the upper end
    Reconstructed    any other subject's pictures, through an autoencoder
    and the damaged  a subject with one fault planted (see `damage`)

A subject answers each request by its seed alone, whatever else is asked beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pleinair.evaluation.exploration.requests import Asked, Request
from pleinair.evaluation.exploration.world import Pictures, World
from pleinair.sampling import Sampler, SamplingConfig

SIDE = 64
Progress = Callable[[int, int], None]


class Subject(Protocol):
    """Something that draws."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    def draw(self, asked: Sequence[Asked], on_progress: Progress = ...) -> Pictures:
        """(N, 64, 64, 3) uint8 on white, one picture per entry."""
        ...


def quiet(done: int, total: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class Drawn:
    """Pictures of a model."""

    name: str
    sampler: Sampler
    config: SamplingConfig

    def draw(self, asked: Sequence[Asked], on_progress: Progress = quiet) -> Pictures:
        """Prompts of like length together: what is padded is drawn for nothing."""
        order = sorted(range(len(asked)), key=lambda place: len(asked[place].request.prompt))
        prompts, seeds = [asked[i].request.prompt for i in order], [asked[i].seed for i in order]
        drawn = self.sampler.sample(prompts, seeds, self.config, on_progress)
        pictures = np.empty_like(drawn)
        pictures[order] = drawn
        return pictures


@dataclass(frozen=True)
class Real:
    """Real pictures of what was asked."""

    world: World
    name: str = "real"

    def draw(self, asked: Sequence[Asked], on_progress: Progress = quiet) -> Pictures:
        """A picture of the thing in the style asked for, or in one drawn from the styles that draw it."""
        return np.stack([self._picture(one.request, np.random.default_rng(one.seed)) for one in asked])

    def _picture(self, request: Request, rng: np.random.Generator) -> Pictures:
        if request.kind == "text":
            return written(request.text)
        if request.kind == "any-colour":
            colours = [label for label in self.world.concept_of_label if label.endswith(f" {request.label}")]
            return self._of(str(rng.choice(colours or [request.label])), "", rng)
        if request.kind == "count":
            return composed([self._of(request.label, "", rng)] * request.count, grid_places(request.count))
        if request.kind in ("pair", "position"):
            both = [self._of(request.label, "", rng), self._of(request.other, "", rng)]
            return composed(both, related_places(request.relation))
        return self._of(request.label, request.style, rng)

    def _of(self, label: str, style: str, rng: np.random.Generator) -> Pictures:
        row = self.world.row(label, style) if style else None
        if row is None:
            row = int(rng.choice(self.world.rows_of_concept[self.world.concept_of_label[label]]))
        picture: Pictures = self.world.pictures[row]
        return picture


@dataclass(frozen=True)
class Reconstructed:
    """Another subject's pictures through an autoencoder."""

    subject: Subject
    reconstruct: Callable[[Pictures], Pictures]
    name: str = "reconstruction"

    def draw(self, asked: Sequence[Asked], on_progress: Progress = quiet) -> Pictures:
        """The subject's pictures, encoded and decoded."""
        return self.reconstruct(self.subject.draw(asked, on_progress))


def grid_places(count: int) -> list[tuple[float, float]]:
    """Middles, right and down, of one to four things of half the side."""
    corners = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    return {1: [(0.5, 0.5)], 2: [(0.25, 0.5), (0.75, 0.5)]}.get(count, corners[:count])


def related_places(relation: str) -> list[tuple[float, float]]:
    """Middles of two things in a relation; side by side where none is asked for."""
    return {
        "to the right of": [(0.75, 0.5), (0.25, 0.5)],
        "above": [(0.5, 0.25), (0.5, 0.75)],
        "below": [(0.5, 0.75), (0.5, 0.25)],
    }.get(relation, [(0.25, 0.5), (0.75, 0.5)])


def composed(pictures: Sequence[Pictures], places: Sequence[tuple[float, float]]) -> Pictures:
    """Pictures at half the side on one white ground."""
    ground = np.full((SIDE, SIDE, 3), 255, np.uint8)
    half = SIDE // 2
    for picture, (right, down) in zip(pictures, places, strict=True):
        small = np.asarray(Image.fromarray(picture).resize((half, half), Image.Resampling.LANCZOS))
        top, left = round(down * SIDE) - half // 2, round(right * SIDE) - half // 2
        ground[top : top + half, left : left + half] = np.minimum(ground[top : top + half, left : left + half], small)
    return ground


def written(text: str) -> Pictures:
    """A word in black on white, as large as fits."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    brush = ImageDraw.Draw(picture)
    for size in range(40, 6, -1):
        font = ImageFont.load_default(size)
        left, top, right, bottom = brush.textbbox((0, 0), text, font=font)
        if right - left <= SIDE - 6:
            brush.text(((SIDE - right - left) / 2, (SIDE - bottom - top) / 2), text, fill="black", font=font)
            break
    return np.asarray(picture)


def noise_pictures(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Uniform noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
