"""A small world of drawn shapes under names that the shipped judge knows, and a place that holds it as a warehouse would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from pleinair.cli.places import shipped
from pleinair.curation.heldout import held_out
from pleinair.evaluation.exploration.requests import Asked, Plan, build_requests, plan_requests, to_document
from pleinair.evaluation.exploration.subjects import Progress, Real, quiet
from pleinair.evaluation.exploration.world import Pictures, World
from pleinair.model.efficientnet import EfficientNetLite0
from pleinair.model.judge import load_judge
from pleinair.packs.pictures import PictureSet, save_pictures

LABELS = ("fox", "key", "banana", "house", "rocket", "cactus", "red apple", "green apple", "red heart", "blue heart")
NUM_TRAINED = 9
"""The blue heart only teaches judges."""


def shape(concept: int, style: int) -> Pictures:
    """A regular star of its own number of points, in a colour of its style."""
    down, right = np.mgrid[:64, :64] - 31.5
    radius = 20 + 8 * np.cos((concept + 2) * np.arctan2(down, right))
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[np.hypot(down, right) < radius] = [(37 * style) % 200, (91 * style) % 200, (151 * style) % 200]
    return picture


def slug(label: str) -> str:
    """The concept of a label."""
    return label.replace(" ", "-")


@cache
def drawn() -> PictureSet:
    """Every thing in every style."""
    styles = load_judge(shipped("judge")).config.style_names
    cells = [(concept, style) for concept in range(len(LABELS)) for style in range(len(styles))]
    return PictureSet(
        [f"{slug(LABELS[concept])}/{styles[style]}" for concept, style in cells],
        np.stack([shape(concept, style) for concept, style in cells]),
        [styles[style] for _, style in cells],
        [slug(LABELS[concept]) for concept, _ in cells],
        np.array([held_out(slug(LABELS[concept]), styles[style]) for concept, style in cells]),
    )


def write_place(place: Path) -> None:
    """`PLACE/home`, which holds the drawings, and `PLACE/cache`, a network of random weights where the encoder lies."""
    home, encoder = place / "home" / "exploration", place / "cache" / "efficientnet-lite0"
    home.mkdir(parents=True)
    encoder.mkdir(parents=True)
    save_pictures(drawn(), home / "drawings-64px.npz")
    (home / "drawings-64px.labels.json").write_text(json.dumps({label: slug(label) for label in LABELS}))
    save_file(EfficientNetLite0().state_dict(), encoder / "model.safetensors")


def small_plan(world: World) -> list[Asked]:
    """A few prompts of every kind of which these drawings can answer two; three pictures of open ones."""
    requests = build_requests(
        {label: slug(label) for label in world.trained_labels}, {one: one for one in world.style_names}
    )
    numbers = {"default": 5, "specified": 8, "unseen": 4, "user": 2, "long": 2, "language": 2, "text": 2}
    plan = Plan(prompts=numbers | {"count": 2, "pair": 2, "position": 2}, seeds={"default": 3})  # type: ignore[arg-type]
    return plan_requests(requests, plan)


def lines_of(asked: Sequence[Asked]) -> str:
    """A file of prompts of one's own."""
    distinct: Mapping[str, Asked] = {one.request.unit: one for one in asked}
    return "".join(json.dumps(to_document(one.request)) + "\n" for one in distinct.values())


class Counted:
    """Real pictures, and how many were asked for."""

    name, identity = "counted", "c" * 64

    def __init__(self, world: World) -> None:
        self.real, self.drawn = Real(world), 0

    def draw(self, asked: Sequence[Asked], on_progress: Progress = quiet) -> Pictures:
        """Real ones."""
        self.drawn += len(asked)
        return self.real.draw(asked)
