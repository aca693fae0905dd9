"""GenEval-style checks with an exact checker: how many things, where, and which, on a white ground.

    picture --ink that hangs together, gaps of 0 to 6 pixels closed, bridges of up to 8 opened--> ways to see it in pieces
        --> each piece on its own ground --judge--> the way whose pieces look most like what was asked --> passes or not

A soccer ball is black patches on white, two full drawings beside each other touch: how far apart the parts of one thing may
lie cannot be told from ink alone. The number asked for has no say in the choice, so nothing is counted to please.

A picture passes a count if it has that many pieces and each is the thing; a pair if its pieces are the two things; a
position if, besides, their middles are so. The same checker on real pictures put together by hand is the ceiling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pleinair.evaluation.exploration.measured import Measured, mean_by_unit, measured
from pleinair.evaluation.exploration.requests import Asked, Kind, Request
from pleinair.evaluation.exploration.sheet import Sheet, Things, among_first
from pleinair.evaluation.exploration.world import Pictures, World
from pleinair.model.judge import JudgeScores
from pleinair.records.errors import require

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Name = Callable[[Pictures], Mapping[str, JudgeScores]]
"""Pictures -> what each judge says of them."""

MEASURES: Mapping[Kind, str] = {"count": "can_count", "pair": "can_pair", "position": "can_position"}
INK = 235
SMALLEST_SHARE = 0.008
"""Of the picture: pieces with less ink are crumbs."""
LEAST_COVERED = 0.85
"""Share of the ink that a way to see a picture must account for."""
REACHES = (0, -1, -2, -4, 1, 2, 3)
"""Pixels by which ink is grown, or shrunk, on each side before what touches is one piece; of equal ways the first."""
MOST_PIECES = 6
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


Way = Sequence[Piece]
"""A picture seen as these pieces, largest first."""


def ways_to_see(picture_HWC: Pixels) -> list[Way]:
    """A picture as one to six pieces, by how far apart the parts of one may lie; none for a white one."""
    ink_HW: npt.NDArray[np.bool_] = picture_HWC.min(axis=2) < INK
    found: dict[tuple[int, ...], Way] = {}
    for reach in REACHES:
        masks = [mask for mask in masks_of(ink_HW, reach) if mask.mean() >= SMALLEST_SHARE]
        covered = sum(int(mask.sum()) for mask in masks)
        if 1 <= len(masks) <= MOST_PIECES and covered >= LEAST_COVERED * ink_HW.sum():
            masks.sort(key=lambda mask: -int(mask.sum()))
            found.setdefault(tuple(int(mask.sum()) for mask in masks), [piece_of(picture_HWC, mask) for mask in masks])
    return list(found.values())


def masks_of(ink_HW: npt.NDArray[np.bool_], reach: int) -> list[npt.NDArray[np.bool_]]:
    """The ink of each piece, once it is grown by `reach` pixels, or shrunk where that is negative."""
    cv2 = require("cv2", "curate")
    brush = np.ones((2 * abs(reach) + 1,) * 2, np.uint8)
    change = cv2.erode if reach < 0 else cv2.dilate
    num, labels_HW = cv2.connectedComponents(change(ink_HW.astype(np.uint8), brush), connectivity=8)
    pieces = [(labels_HW == label).astype(np.uint8) for label in range(1, num)]
    if reach < 0:
        pieces = [cv2.dilate(piece, brush) for piece in pieces]
    return [ink_HW & (piece > 0) for piece in pieces]


def piece_of(picture_HWC: Pixels, mask_HW: npt.NDArray[np.bool_]) -> Piece:
    """What a mask holds, alone on white and enlarged."""
    down, right = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    top, bottom, left, stop = int(down[0]), int(down[-1]) + 1, int(right[0]), int(right[-1]) + 1
    alone = np.where(mask_HW[..., None], picture_HWC, np.uint8(255))[top:bottom, left:stop]
    side = max(bottom - top, stop - left)
    ground = Image.new("RGB", (side, side), "white")
    ground.paste(Image.fromarray(alone), ((side - (stop - left)) // 2, (side - (bottom - top)) // 2))
    large = np.asarray(ground.resize((picture_HWC.shape[1],) * 2, Image.Resampling.BICUBIC))
    height, width = mask_HW.shape
    return Piece(large, (left + stop) / 2 / width, (top + bottom) / 2 / height)


def things_of(world: World, asked: Sequence[Asked], pictures: Pictures, name: Name) -> dict[int, Mapping[str, Things]]:
    """What each judge makes of every picture of several things, by row."""
    rows = [row for row, one in enumerate(asked) if one.request.kind in MEASURES]
    ways = {row: ways_to_see(pictures[row]) for row in rows}
    flat = [piece.picture for row in rows for way in ways[row] for piece in way]
    scores = name(np.stack(flat)) if flat else {}
    found: dict[int, Mapping[str, Things]] = {}
    start = 0
    for row in rows:
        num = sum(map(len, ways[row]))
        found[row] = {
            judge: judged(asked[row].request, ways[row], of.concept_logits[start : start + num], world)
            for judge, of in scores.items()
        }
        start += num
    return found


def judged(request: Request, ways: Sequence[Way], logits_PC: Logits, world: World) -> Things:
    """The way whose pieces look most like what was asked, whatever their number; rows are the pieces of all ways in turn."""
    if not ways:
        return Things(0, False)
    asked = [world.concept_of_label[label] for label in (request.label, request.other) if label]
    shifted_PC = logits_PC - logits_PC.max(axis=1, keepdims=True)
    likeness_P = shifted_PC[:, asked].max(axis=1) - np.log(np.exp(shifted_PC).sum(axis=1))
    stops = np.cumsum([len(way) for way in ways])
    rows = [slice(int(stop) - len(way), int(stop)) for way, stop in zip(ways, stops, strict=True)]
    best = max(range(len(ways)), key=lambda place: float(likeness_P[rows[place]].mean()))
    return Things(len(ways[best]), passes(request, ways[best], logits_PC[rows[best]], world))


def passes(request: Request, found: Way, logits_PC: Logits, world: World) -> bool:
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


def compositions(sheet: Sheet, judge: str) -> list[Measured]:
    """`can_count`, `can_pair`, `can_position`, as far as the plan asks for them; what was not seen as pieces is wrong."""
    found = []
    for kind, name in MEASURES.items():
        asked = sheet.of_kind(kind)
        if len(asked):
            right = np.array([judge in seen.things and seen.things[judge].right for seen in asked.seen], bool)
            found.append(measured(name, mean_by_unit(asked.units, right), len(asked)))
    return found


def counted(sheet: Sheet, judge: str) -> dict[int, list[int]]:
    """Things asked for -> how many were seen, picture by picture."""
    found: dict[int, list[int]] = {}
    for one, seen in zip(sheet.asked, sheet.seen, strict=True):
        if one.request.kind == "count":
            found.setdefault(one.request.count, []).append(seen.things[judge].num if judge in seen.things else 0)
    return dict(sorted(found.items()))
