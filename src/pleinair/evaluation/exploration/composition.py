"""GenEval-style checks with an exact checker: how many things, where, and which, on a white ground.

    picture --ink, joined over small gaps--> pieces --each on its own ground--> the judges name it

A picture passes a count if it has that many pieces and each is the thing; a pair if two of the pieces are the two things; a
position if, besides, their middles are so. The same checker on real pictures put together by hand is the ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pleinair.evaluation.exploration.measured import Measured, mean_by_unit, measured
from pleinair.evaluation.exploration.requests import Request
from pleinair.evaluation.exploration.sheet import JUDGES, Sheet, Witnesses, among_first
from pleinair.evaluation.exploration.world import World
from pleinair.model.judge import JudgeScores
from pleinair.records.errors import require

Pixels = npt.NDArray[np.uint8]
INK = 235
SMALLEST_SHARE = 0.015
"""Of the picture: smaller pieces are crumbs."""
NUM_GUESSES = 10
"""A thing at half the size is named less surely than a whole picture."""


@dataclass(frozen=True)
class Piece:
    """One thing on white."""

    picture: Pixels
    """(64, 64, 3), the thing as large as a whole picture shows it."""
    right: float
    """Its middle, in 0..1 of the picture."""
    down: float


def pieces_of(picture_HWC: Pixels) -> list[Piece]:
    """The things of a picture, largest first."""
    cv2 = require("cv2", "curate")
    ink_HW = (picture_HWC < INK).any(axis=2).astype(np.uint8)
    joined_HW = cv2.dilate(ink_HW, np.ones((3, 3), np.uint8))
    _, _, stats, middles = cv2.connectedComponentsWithStats(joined_HW, connectivity=8)
    height, width = ink_HW.shape
    found = [
        (int(area), Piece(_alone(picture_HWC, left, top, wide, high), float(x / width), float(y / height)))
        for (left, top, wide, high, area), (x, y) in zip(stats[1:], middles[1:], strict=True)
        if area >= SMALLEST_SHARE * height * width
    ]
    return [piece for _, piece in sorted(found, key=lambda one: -one[0])]


def _alone(picture_HWC: Pixels, left: int, top: int, wide: int, high: int) -> Pixels:
    side = max(wide, high)
    ground = Image.new("RGB", (side, side), "white")
    ground.paste(
        Image.fromarray(picture_HWC[top : top + high, left : left + wide]), ((side - wide) // 2, (side - high) // 2)
    )
    return np.asarray(ground.resize((picture_HWC.shape[1],) * 2, Image.Resampling.BICUBIC))


def compositions(sheet: Sheet, witnesses: Witnesses) -> dict[str, list[Measured]]:
    """By judge: `can_count`, `can_pair`, `can_position`, as far as the plan asks for them."""
    asked = sheet.of_kind("count", "pair", "position")
    if not len(asked):
        return {judge: [] for judge in JUDGES}
    pieces = [pieces_of(picture) for picture in asked.pictures]
    flat = [piece.picture for found in pieces for piece in found]
    scores = witnesses.scores(np.stack(flat)) if flat else {}
    return {judge: _measures(asked, pieces, scores.get(judge), judge) for judge in JUDGES}


def _measures(
    asked: Sheet, pieces: Sequence[Sequence[Piece]], scores: JudgeScores | None, judge: str
) -> list[Measured]:
    passed, start = [], 0
    for one, found in zip(asked.asked, pieces, strict=True):
        logits_PC = None if scores is None else scores.concept_logits[start : start + len(found)]
        passed.append(bool(found) and logits_PC is not None and passes(one.request, found, logits_PC, asked.world))
        start += len(found)
    right, kinds = np.array(passed, bool), np.array([one.request.kind for one in asked.asked])
    names: Mapping[str, str] = {"count": "can_count", "pair": "can_pair", "position": "can_position"}
    return [
        measured(
            name,
            mean_by_unit(
                [unit for unit, of in zip(asked.units, kinds == kind, strict=True) if of], right[kinds == kind]
            ),
            int((kinds == kind).sum()),
        )
        for kind, name in names.items()
        if (kinds == kind).any()
    ]


def passes(request: Request, found: Sequence[Piece], logits_PC: npt.NDArray[np.float32], world: World) -> bool:
    """Whether the pieces, whose concepts have these logits, are what was asked."""

    def is_thing(label: str) -> npt.NDArray[np.bool_]:
        return among_first(logits_PC, [world.concept_of_label[label]] * len(found), NUM_GUESSES)

    first = is_thing(request.label)
    if request.kind == "count":
        return len(found) == request.count and bool(first.all())
    second = is_thing(request.other)
    pairs = [(a, b) for a in np.flatnonzero(first).tolist() for b in np.flatnonzero(second).tolist() if a != b]
    return len(found) == 2 and any(in_relation(found[a], found[b], request.relation) for a, b in pairs)


def in_relation(first: Piece, second: Piece, relation: str) -> bool:
    """Whether the first thing's middle lies so to the second's; any way where no relation is asked for."""
    return {
        "to the left of": first.right < second.right,
        "to the right of": first.right > second.right,
        "above": first.down < second.down,
        "below": first.down > second.down,
    }.get(relation, True)
