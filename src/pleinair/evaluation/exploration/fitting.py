"""The witnesses of a world: fitted once to the pictures training may see, kept, and how good they are.

world -> frozen features, in pieces that are kept --+--> second judge      FOLDER/second-judge.safetensors
         the same after planted changes ------------+--> copy embedding    FOLDER/copies.safetensors
held-out pictures -> JudgeReport: how often each judge is right, and whether its similarity tells anything
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pleinair.captioning.ocr import TextReader
from pleinair.evaluation.copies import CopyConfig, calibrate, changed, fit_copies, load_copies, save_copies
from pleinair.evaluation.exploration.looking import Witnesses
from pleinair.evaluation.exploration.sheet import among_first
from pleinair.evaluation.exploration.suite import Known
from pleinair.evaluation.exploration.world import World, discrimination_gap
from pleinair.evaluation.features import Features, PictureFeatures, Pictures
from pleinair.evaluation.second_judge import SecondJudgeConfig, fit_second_judge, load_second_judge, save_second_judge
from pleinair.model.judge import Judge

PIECE = 1024
"""Pictures looked at between two pieces that are kept."""
SECOND_JUDGE, COPIES = "second-judge.safetensors", "copies.safetensors"

Progress = Callable[[str], Callable[[int, int], None]]
"""What is done -> who is told how far it is."""


def fit_witnesses(
    world: World, judge: Judge, features: PictureFeatures, reader: TextReader, folder: Path, progress: Progress
) -> tuple[Witnesses, Known]:
    """The witnesses kept in `folder`, which belongs to this world and these features; what is not there is fitted."""
    folder.mkdir(parents=True, exist_ok=True)
    plain_NF = kept_features(features, world.pictures, folder / "plain", progress("real pictures looked at"))
    if not (folder / COPIES).exists():  # written last
        after = changed(world.pictures, 0)
        changed_NF = kept_features(features, after, folder / "changed", progress("changed pictures looked at"))
        _fit(world, features.name, plain_NF, changed_NF, folder, progress)
    second = load_second_judge(folder / SECOND_JUDGE)
    copies, calibration = load_copies(folder / COPIES)
    trained = [world.concept_of_label[label] for label in world.trained_labels]
    tested = np.flatnonzero(world.held_out & np.isin(world.concepts, trained))
    known = Known(copies.embed(plain_NF), tested, second.standardised(plain_NF[tested]), calibration.threshold)
    return Witnesses(judge, second, copies, calibration, features, reader), known


def _fit(
    world: World, features_name: str, plain_NF: Features, changed_NF: Features, folder: Path, progress: Progress
) -> None:
    seen, width = ~world.held_out, plain_NF.shape[1]
    config = SecondJudgeConfig(
        style_names=tuple(world.style_names),
        concept_names=tuple(world.concept_names),
        features=features_name,
        width=width,
    )
    both_NF = np.concatenate([plain_NF[seen], changed_NF[seen]])
    styles, concepts = (np.tile(of[seen], 2) for of in (world.styles, world.concepts))
    second = fit_second_judge(both_NF, styles, concepts, config, progress("second judge"))
    save_second_judge(second, folder / SECOND_JUDGE)
    copies = fit_copies(plain_NF[seen], changed_NF[seen], CopyConfig(width=width), progress("copy embedding"))
    calibration = calibrate(copies.embed(plain_NF[~seen]), copies.embed(changed_NF[~seen]))
    save_copies(copies, calibration, folder / COPIES)


def kept_features(
    features: PictureFeatures, pictures: Pictures, place: Path, on_progress: Callable[[int, int], None]
) -> Features:
    """Features of pictures, in half precision and in pieces `PLACE.0.npy` and on, so that an interruption costs little."""
    parts = []
    for start in range(0, len(pictures), PIECE):
        piece = place.with_name(f"{place.name}.{start // PIECE}.npy")
        if not piece.exists():
            staging = piece.with_name(f".{piece.name}")
            np.save(staging, features.of(pictures[start : start + PIECE]).astype(np.float16))
            os.replace(staging, piece)
        parts.append(np.load(piece, allow_pickle=False).astype(np.float32))
        on_progress(min(start + PIECE, len(pictures)), len(pictures))
    return np.concatenate(parts)


MADE_OF = {
    "first": "a small network of its own, trained on drawings",
    "second": "linear heads on EfficientNet-Lite0, trained on photographs",
}


@dataclass(frozen=True, kw_only=True)
class JudgeReport:
    """How good a judge is on real pictures that it never saw."""

    judge: str
    made_of: str
    style: float
    concept_top1: float
    concept_top5: float
    style_gap: float
    """AUROC of similarity within a style against across styles; one half is chance."""
    concept_gap: float
    num: int


def judge_reports(world: World, witnesses: Witnesses) -> list[JudgeReport]:
    """How good both judges are on the world's held-out pictures."""
    rows = np.flatnonzero(world.held_out)
    pictures, styles, concepts = world.pictures[rows], world.styles[rows], world.concepts[rows]
    return [
        JudgeReport(
            judge=name,
            made_of=MADE_OF[name],
            style=float((scores.style_logits.argmax(axis=1) == styles).mean()),
            concept_top1=float(among_first(scores.concept_logits, concepts, 1).mean()),
            concept_top5=float(among_first(scores.concept_logits, concepts, 5).mean()),
            style_gap=discrimination_gap(scores.style_logits, styles),
            concept_gap=discrimination_gap(scores.embedding, concepts),
            num=len(rows),
        )
        for name, scores in witnesses.scores(pictures).items()
    ]
