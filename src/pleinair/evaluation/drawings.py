"""What a run draws, and how its drawings are judged and shown.

    pairs of (concept, style) --plan_pairs--> Pair list --draw_pairs--> Drawings --score--> metrics, neighbours

A pair is drawn from its short caption. Held-out pairs are drawn several times, as they are few.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pleinair.evaluation.evaluate import JudgedSet, Metrics, evaluate
from pleinair.evaluation.metrics import nearest
from pleinair.model.judge import Judge, judge_pictures
from pleinair.packing.pictures import CuratedPicture
from pleinair.sampling import Sampler, SamplingConfig


@dataclass(frozen=True)
class Pair:
    """One (concept, style) pair that exists as a real drawing."""

    real: CuratedPicture
    seed: int

    @property
    def prompt(self) -> str:
        """The short caption."""
        return self.real.captions[-1]


@dataclass(frozen=True)
class Drawings:
    """Pairs and what was drawn for each, (N, H, W, 3)."""

    pairs: list[Pair]
    pixels_NHWC: npt.NDArray[np.uint8]

    def chosen(self, held_out: bool) -> Drawings:
        """The drawings of held-out pairs, or of the others."""
        index = [i for i, pair in enumerate(self.pairs) if pair.real.held_out == held_out]
        return Drawings([self.pairs[i] for i in index], self.pixels_NHWC[index])


def plan_pairs(
    pictures: Sequence[CuratedPicture],
    num_train_pairs: int,
    samples_per_heldout_pair: int,
    first: Sequence[str],
    seed: int = 0,
) -> list[Pair]:
    """Pairs to draw: every held-out one `samples_per_heldout_pair` times, and `num_train_pairs` trained ones.

    Pairs of the concepts in `first` (labels) come before others among the trained ones, all of them if they fit.
    """
    held_out = [picture for picture in pictures if picture.held_out]
    trained = [picture for picture in pictures if not picture.held_out]
    order = np.random.default_rng(seed).permutation(len(trained))
    ranked = sorted((trained[i] for i in order), key=lambda picture: picture.label not in first)
    plan = [Pair(picture, seed=1000 * sample) for sample in range(samples_per_heldout_pair) for picture in held_out]
    return plan + [Pair(picture, seed=0) for picture in ranked[:num_train_pairs]]


def draw_pairs(
    sampler: Sampler, pairs: Sequence[Pair], config: SamplingConfig, on_progress: Callable[[int, int], None]
) -> Drawings:
    """One picture per pair. Its noise depends on the pair's seed and place in the list."""
    seeds = [pair.seed + 1_000_003 * index for index, pair in enumerate(pairs)]
    return Drawings(list(pairs), sampler.sample([pair.prompt for pair in pairs], seeds, config, on_progress))


def score(
    judge: Judge,
    drawn: Drawings,
    floor: Drawings,
    reconstruct: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]],
    resolution: int,
) -> Metrics:
    """All numbers of a run; `reconstruct` takes pictures through the autoencoder."""
    heldout, train = drawn.chosen(held_out=True), drawn.chosen(held_out=False)
    real_heldout = {pair.real.key: pair.real for pair in heldout.pairs}.values()
    ceiling = np.stack([picture.pixels[resolution] for picture in real_heldout])
    real = np.stack([pair.real.pixels[resolution] for pair in drawn.pairs])
    sets = {
        "train": _labelled(judge, [pair.real for pair in train.pairs], train.pixels_NHWC),
        "heldout": _labelled(judge, [pair.real for pair in heldout.pairs], heldout.pixels_NHWC),
        "ceiling": _labelled(judge, list(real_heldout), ceiling),
        "reconstruction": _labelled(judge, list(real_heldout), reconstruct(ceiling)),
        "floor": _labelled(judge, [pair.real for pair in floor.pairs], floor.pixels_NHWC),
        "real": _labelled(judge, [pair.real for pair in drawn.pairs], real),
    }
    return evaluate(judge, sets)


def _labelled(judge: Judge, pictures: Sequence[CuratedPicture], pixels_NHWC: npt.NDArray[np.uint8]) -> JudgedSet:
    styles = [judge.config.style_names.index(picture.style or "") for picture in pictures]
    concepts = [judge.config.concept_names.index(picture.concept or "") for picture in pictures]
    return JudgedSet(pictures=pixels_NHWC, styles=np.array(styles), concepts=np.array(concepts))


@dataclass(frozen=True)
class Neighbours:
    """A drawing and the trained pictures nearest to it."""

    drawing: int
    """Index into the drawings."""
    trained: list[tuple[CuratedPicture, float]]
    """Nearest first, with cosine similarity in judge features."""


def nearest_trained(
    judge: Judge,
    drawn: Drawings,
    trained: Sequence[CuratedPicture],
    resolution: int,
    num_drawings: int,
    num_neighbours: int = 4,
) -> list[Neighbours]:
    """Neighbours of drawings spread evenly over the list, half of them held out: memory or invention?"""
    held = [i for i, pair in enumerate(drawn.pairs) if pair.real.held_out]
    seen = [i for i, pair in enumerate(drawn.pairs) if not pair.real.held_out]
    chosen = [
        rows[i * len(rows) // (num_drawings // 2)] for rows in (held, seen) if rows for i in range(num_drawings // 2)
    ]
    features = judge_pictures(judge, drawn.pixels_NHWC[chosen]).embedding
    reference = judge_pictures(judge, np.stack([picture.pixels[resolution] for picture in trained])).embedding
    order, similarity = nearest(features, reference, num_neighbours)
    return [
        Neighbours(drawing, [(trained[int(j)], float(s)) for j, s in zip(order[row], similarity[row], strict=True)])
        for row, drawing in enumerate(chosen)
    ]


def read_drawings(path: Path, stamp: str) -> npt.NDArray[np.uint8] | None:
    """Drawings kept under this stamp, or None."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        return file["pixels"] if str(file["stamp"]) == stamp else None


def write_drawings(path: Path, stamp: str, pixels_NHWC: npt.NDArray[np.uint8]) -> None:
    """Keep drawings, by rename."""
    staging = path.with_name(f".{path.name}.partial")
    with staging.open("wb") as file:
        np.savez(file, pixels=pixels_NHWC, stamp=np.array(stamp))
    os.replace(staging, path)
