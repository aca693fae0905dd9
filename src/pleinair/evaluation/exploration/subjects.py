"""What is measured: anything that answers requests with pictures.

    Drawn            a model's sampler
    Real             real pictures of what was asked, put together where two things are asked for: the upper end
    Reconstructed    any other subject's pictures, through an autoencoder
    and the damaged  a subject with one fault planted (see `damage`)

A subject answers each request by its seed alone, whatever else is asked beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pleinair.config import config_digest
from pleinair.evaluation.exploration.requests import Asked, Request
from pleinair.evaluation.exploration.world import Pictures, World
from pleinair.model.autoencoder import LatentCodec, LatentSpace
from pleinair.model.digest import part_digest
from pleinair.model.pixels import to_bytes, to_signed_unit
from pleinair.records.errors import ConfigError
from pleinair.sampling import Sampler, SamplingConfig

SIDE = 64
NUM_AT_ONCE = 64
"""Pictures encoded and decoded at once."""
Progress = Callable[[int, int], None]


class Subject(Protocol):
    """Something that draws."""

    @property
    def name(self) -> str:
        """What results call it."""
        ...

    @property
    def identity(self) -> str:
        """Digest of what draws: equal ones give equal pictures for equal requests, on one machine."""
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

    @cached_property
    def identity(self) -> str:
        """Of all weights and settings."""
        own = self.sampler
        latents, text = own.codec.describe().identity, own.text_encoder.digest
        return config_digest([part_digest(own.transformer), part_digest(own.projection), latents, text, self.config])

    def draw(self, asked: Sequence[Asked], on_progress: Progress = quiet) -> Pictures:
        """Prompts of like length together: what is padded is drawn for nothing. Raises ConfigError for NaN pictures."""
        order = sorted(range(len(asked)), key=lambda place: len(asked[place].request.prompt))
        prompts, seeds = [asked[i].request.prompt for i in order], [asked[i].seed for i in order]
        sampler = replace(self.sampler, codec=FiniteCodec(self.sampler.codec))
        drawn = sampler.sample(prompts, seeds, self.config, on_progress)
        pictures = np.empty_like(drawn)
        pictures[order] = drawn
        return pictures


class FiniteCodec:
    """A codec that decodes finite latents only: as bytes, NaN would be some colour, and measured as bad drawing."""

    def __init__(self, codec: LatentCodec) -> None:
        self.codec, self.latent_channels, self.downscale = codec, codec.latent_channels, codec.downscale

    def describe(self) -> LatentSpace:
        """The codec's."""
        return self.codec.describe()

    def encode(self, pictures_BCHW: Tensor) -> Tensor:
        """The codec's."""
        return self.codec.encode(pictures_BCHW)

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """The codec's. Raises ConfigError for latents that are not finite."""
        broken = ~torch.isfinite(latents_BChw).flatten(1).all(dim=1)
        if broken.any():
            raise ConfigError(
                f"{int(broken.sum())} of {len(broken)} pictures that the model drew are not finite (NaN or infinite): its "
                "weights are damaged or its training diverged; give an earlier checkpoint"
            )
        return self.codec.decode(latents_BChw)


@dataclass(frozen=True)
class Real:
    """Real pictures of what was asked."""

    world: World
    name: str = "real"

    @property
    def identity(self) -> str:
        """Of the world."""
        return config_digest([self.name, self.world.identity])

    def draw(self, asked: Sequence[Asked], on_progress: Progress = quiet) -> Pictures:
        """A picture of the thing in the style asked for, or in one drawn from the styles that draw it."""
        return np.stack([self._picture(one.request, np.random.default_rng(one.seed)) for one in asked])

    def _picture(self, request: Request, rng: np.random.Generator) -> Pictures:
        if request.kind == "text":
            return written(request.text)
        if request.kind == "any-colour":
            colours = [label for label in self.world.concept_of_label if label.endswith(f" {request.label}")]
            return self._of(str(rng.choice(colours or [request.label])), "", rng)
        if request.kind == "any-kind":
            return self._of(str(rng.choice(request.variants)), request.style, rng)
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
    codec: LatentCodec
    name: str = "reconstruction"

    @cached_property
    def identity(self) -> str:
        """Of the subject and the autoencoder."""
        return config_digest([self.name, self.subject.identity, self.codec.describe().identity])

    @torch.inference_mode()
    def draw(self, asked: Sequence[Asked], on_progress: Progress = quiet) -> Pictures:
        """The subject's pictures, encoded and decoded."""
        drawn = self.subject.draw(asked, on_progress)
        parts = [drawn[start : start + NUM_AT_ONCE] for start in range(0, len(drawn), NUM_AT_ONCE)]
        return np.concatenate([to_bytes(self.codec.decode(self.codec.encode(to_signed_unit(one)))) for one in parts])


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
