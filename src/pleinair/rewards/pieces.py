"""The things on a plain ground, one by one: what is counted, and how they lie to each other.

    picture --unlike the colour of its border--> ink --regions that touch--> pieces, crumbs left out

The ground is whatever colour most of the border has, so a picture does not pass by changing it. Exploration's checker
(`evaluation.exploration.composition`) finds pieces another way, and is kept for measuring.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
UNLIKE = 40
"""Largest difference of a channel from the ground that is still ground: soft shadows, noise."""
SMALLEST_SHARE = 0.012
"""Of the picture; smaller regions are crumbs."""
_GAP = 1
"""Pixels that a thing's parts may lie apart."""


@dataclass(frozen=True)
class Piece:
    """One thing."""

    picture: Pixels
    """As large as a whole picture shows it, on the picture's ground."""
    right: float
    """Its middle, in 0..1 of the picture."""
    down: float
    share: float
    """Of the picture's area."""


def ground_of(picture_HWC: Pixels) -> Pixels:
    """(3,): the middle colour of the border."""
    edges = (picture_HWC[0], picture_HWC[-1], picture_HWC[:, 0], picture_HWC[:, -1])
    return np.asarray(np.median(np.concatenate(edges), axis=0), np.uint8)


def ink_of(picture_HWC: Pixels) -> Mask:
    """(H, W): where there is something."""
    away = np.abs(picture_HWC.astype(np.int16) - ground_of(picture_HWC).astype(np.int16))
    return np.asarray(away.max(axis=2) > UNLIKE)


def pieces_of(picture_HWC: Pixels) -> list[Piece]:
    """The things of a picture, largest first."""
    ink_HW = ink_of(picture_HWC)
    labels_HW, count = regions(_grown(ink_HW, _GAP))
    found = []
    for label in range(1, count + 1):
        own_HW = ink_HW & (labels_HW == label)
        share = float(own_HW.mean())
        if share >= SMALLEST_SHARE:
            found.append(_piece(picture_HWC, own_HW, share))
    return sorted(found, key=lambda piece: -piece.share)


def _piece(picture_HWC: Pixels, own_HW: Mask, share: float) -> Piece:
    rows, columns = np.nonzero(own_HW)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    side = max(bottom - top, right - left)
    margin = side // 8 + 1
    square = np.empty((side + 2 * margin, side + 2 * margin, 3), np.uint8)
    square[:] = ground_of(picture_HWC)
    y, x = margin + (side - (bottom - top)) // 2, margin + (side - (right - left)) // 2
    # Its own pixels only: a neighbour's corner inside the box is no part of it.
    inside = own_HW[top:bottom, left:right]
    square[y : y + bottom - top, x : x + right - left][inside] = picture_HWC[top:bottom, left:right][inside]
    size = (picture_HWC.shape[1], picture_HWC.shape[0])
    large = np.asarray(Image.fromarray(square).resize(size, Image.Resampling.BICUBIC))
    return Piece(large, float(columns.mean()) / own_HW.shape[1], float(rows.mean()) / own_HW.shape[0], share)


def _grown(mask_HW: Mask, by: int) -> Mask:
    """The mask and all within `by` pixels of it, corners included."""
    padded = np.pad(mask_HW, by)
    height, width = mask_HW.shape
    shifted = [padded[y : y + height, x : x + width] for y in range(2 * by + 1) for x in range(2 * by + 1)]
    return np.asarray(np.logical_or.reduce(shifted))


def regions(mask_HW: Mask) -> tuple[npt.NDArray[np.int64], int]:
    """(H, W) numbers of regions that touch by an edge or a corner, 0 outside; and how many regions there are.

    Runs of each line are joined with those they touch in the line above (union-find). OpenCV would do it too, but is not
    there on every training machine.
    """
    edges = np.diff(np.pad(mask_HW, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = (one.tolist() for one in np.nonzero(edges == 1))
    ends = np.nonzero(edges == -1)[1].tolist()
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = run = parent[parent[run]]
        return run

    first = np.searchsorted(rows, np.arange(len(mask_HW) + 1)).tolist()
    for row in range(1, len(mask_HW)):
        for above in range(first[row - 1], first[row]):
            for run in range(first[row], first[row + 1]):
                if starts[run] <= ends[above] and starts[above] <= ends[run]:
                    parent[root(run)] = root(above)
    labels_HW = np.zeros(mask_HW.shape, np.int64)
    numbers: dict[int, int] = {}
    for run, (row, start, end) in enumerate(zip(rows, starts, ends, strict=True)):
        labels_HW[row, start:end] = numbers.setdefault(root(run), len(numbers) + 1)
    return labels_HW, len(numbers)
