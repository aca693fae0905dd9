"""Discs, bars and crosses on white, filled or in outline: things a small judge learns to name in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from pleinair.model.judge import Judge, JudgeConfig, as_tensor
from pleinair.records.rewards import Pictures, RewardContext
from pleinair.rewards.picture_judge import PictureJudge, calibrated

STYLES, THINGS = ("filled", "outline"), ("disc", "bar", "cross")
COLOURS = {"red": (220, 30, 40), "blue": (40, 90, 220), "green": (40, 160, 60)}
LARGE, SMALL = 22.0, 9.0
LEARNS_SHAPES = JudgeConfig(
    style_names=STYLES,
    concept_names=THINGS,
    widths=(8, 16, 32),
    blocks=(0, 0, 1),
    concept_features=16,
    style_features=4,
)


def shape(
    thing: str,
    *,
    style: str = "filled",
    colour: Sequence[int] = (220, 30, 40),
    at: tuple[float, float] = (32, 32),
    size: float = LARGE,
    onto: Pictures | None = None,
) -> Pictures:
    """One thing, (64, 64, 3), its middle at (down, right); on a picture that is there already, or on white."""
    down, across = np.mgrid[:64, :64].astype(float)
    y, x = np.abs(down - at[0]), np.abs(across - at[1])
    depth = {
        "disc": size - np.hypot(y, x),
        "bar": np.minimum(size - y, 0.33 * size - x),
        "cross": np.minimum(size - np.maximum(x, y), 0.33 * size - np.minimum(x, y)),
    }[thing]
    shown = (depth > 0) & ((depth < 3) if style == "outline" else True)
    picture = np.full((64, 64, 3), 255, np.uint8) if onto is None else onto.copy()
    picture[shown] = colour
    return picture


def random_shapes(num: int, seed: int = 0) -> tuple[Pictures, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pictures with the numbers of their styles and things."""
    rng = np.random.default_rng(seed)
    styles, things = rng.integers(2, size=num), rng.integers(3, size=num)
    pictures = [
        shape(
            THINGS[thing],
            style=STYLES[style],
            colour=tuple(rng.permutation([215, 60, 40]) + rng.integers(-30, 30, size=3)),
            at=(float(rng.integers(28, 36)), float(rng.integers(28, 36))),
            size=float(rng.uniform(16, 24)),
        )
        for style, thing in zip(styles, things, strict=True)
    ]
    return np.stack(pictures), styles, things


@cache
def trained_judge() -> Judge:
    """A judge of shapes, taught in a hundred plain steps: how judges are really trained is tested beside the training."""
    torch.manual_seed(1)
    judge, (pictures, styles, things) = Judge(LEARNS_SHAPES), random_shapes(320)
    optimiser = torch.optim.AdamW(judge.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 100)
    for step in range(100):
        rows = np.random.default_rng([1, step]).integers(len(pictures), size=24)
        said = judge(as_tensor(pictures[rows]))
        loss = F.cross_entropy(said.style_logits, torch.from_numpy(styles[rows]))
        loss = loss + F.cross_entropy(said.concept_logits, torch.from_numpy(things[rows]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return judge.eval()


@cache
def picture_judge() -> PictureJudge:
    """The judge of a rubric, calibrated on shapes it did not see."""
    return calibrated(PictureJudge(trained_judge()), *random_shapes(200, seed=7))


@cache
def untrained_judge() -> PictureJudge:
    """One that has learnt nothing, where it does not matter what it says."""
    torch.manual_seed(0)
    return PictureJudge(Judge(LEARNS_SHAPES).eval())


def context(groups: Sequence[int]) -> RewardContext:
    """Pictures of these groups, one seed each."""
    return RewardContext(seeds=tuple(range(len(groups))), groups=tuple(groups), checkpoint="some-weights")
