"""Is one picture a crop of the other? Asked of the few pairs whose vectors are near, answered by their pixels.

    two pictures at 96 x 96 --templates at 7 sizes--> which lies in which, about where
                            --enhanced correlation--> the affine map between them, to a fraction of a pixel
                            --overlap, light taken out--> what still differs

An encoder finds drawings alike that differ in a hand or a mouth; once one lies exactly on the other, the hand is all that
is left. Copies that were cropped and recompressed differ by less than 24 levels nearly everywhere, nine in ten other
candidates by more than 80.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pleinair.curation.pictures import Pixels
from pleinair.records.errors import require

SIDE = 96
"""Both pictures are brought to this square; what that does to their shapes is part of the affine map."""
VERSION = "align96-v1"
_COARSE = SIDE // 2
_TEMPLATES = (48, 46, 44, 42, 40, 38, 36)  # sides of the inner picture in the outer one's 48 pixels
_ITERATIONS = 40
_LIGHT = (0.6, 1.6)
_PERCENTILE = 99.0


@dataclass(frozen=True, kw_only=True)
class AlignmentLimits:
    """What counts as the same picture once one lies on the other."""

    max_difference: float = 24.0
    """Levels, of 255, by which 99% of the overlap must agree in all channels."""
    min_overlap: float = 0.6
    """Share of the inner picture that lies in the outer one."""
    max_shear: float = 0.05
    """How far the map may turn or shear: a crop does neither."""


@dataclass(frozen=True)
class Alignment:
    """How well one picture lies on the other."""

    difference: float
    """Levels by which the worst hundredth of the overlap differs, at least."""
    overlap: float
    shear: float

    def same(self, limits: AlignmentLimits) -> bool:
        """Whether they are one picture."""
        return (
            self.difference <= limits.max_difference
            and self.overlap >= limits.min_overlap
            and self.shear <= limits.max_shear
        )


NOWHERE = Alignment(255.0, 0.0, 1.0)
"""Of pictures that no map brings together."""


def align(first: Pixels, second: Pixels) -> Alignment:
    """Lay the one that looks like a part onto the other. The order of the two does not matter."""
    cv2: Any = require("cv2", "curate")
    one, other = (cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for pixels in (first, second))
    inside, outside = _placed(one, other), _placed(other, one)
    if inside[0] > outside[0]:
        return _laid(other, one, inside[1])
    return _laid(one, other, outside[1])


def _placed(inner: Pixels, outer: Pixels) -> tuple[float, NDArray[np.float32]]:
    """The best correlation of `inner`, at some size, with a part of `outer`; and the map from inner to outer."""
    cv2: Any = require("cv2", "curate")
    field = cv2.resize(outer, (_COARSE, _COARSE), interpolation=cv2.INTER_AREA)
    best = (-2.0, np.eye(2, 3, dtype=np.float32))
    for side in _TEMPLATES:
        template = cv2.resize(inner, (side, side), interpolation=cv2.INTER_AREA)
        _, value, _, (x, y) = cv2.minMaxLoc(cv2.matchTemplate(field, template, cv2.TM_CCOEFF_NORMED))
        if value > best[0]:
            scale, step = side / _COARSE, SIDE / _COARSE
            best = (value, np.array([[scale, 0, x * step], [0, scale, y * step]], dtype=np.float32))
    return best


def _laid(outer: Pixels, inner: Pixels, start: NDArray[np.float32]) -> Alignment:
    cv2: Any = require("cv2", "curate")
    stop = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, _ITERATIONS, 1e-4)
    greys = [cv2.GaussianBlur(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY), (0, 0), 1.0) for one in (inner, outer)]
    try:
        _, found = cv2.findTransformECC(*greys, start, cv2.MOTION_AFFINE, stop, None, 1)
    except cv2.error:  # it does not converge: the pictures have nothing in common, or one is flat
        return NOWHERE
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    laid = cv2.warpAffine(outer, found, (SIDE, SIDE), flags=how)
    inside = cv2.warpAffine(np.full((SIDE, SIDE), 255, np.uint8), found, (SIDE, SIDE), flags=how)
    overlap = cv2.erode(inside, np.ones((5, 5), np.uint8)) == 255
    if not overlap.any():
        return NOWHERE
    shear = float(max(abs(found[0, 1]), abs(found[1, 0])))
    return Alignment(_difference(laid, inner, overlap), float(overlap.mean()), shear)


def _difference(laid: Pixels, inner: Pixels, overlap: NDArray[np.bool_]) -> float:
    """Level under which 99% of the overlap differs, slightly blurred and with a common change of light taken out."""
    cv2: Any = require("cv2", "curate")
    first, second = (cv2.GaussianBlur(one, (0, 0), 1.5)[overlap].astype(np.float32) for one in (laid, inner))
    light = np.clip((first * second).sum() / max(float((first * first).sum()), 1.0), *_LIGHT)
    return float(np.percentile(np.abs(np.minimum(first * light, 255) - second).max(axis=1), _PERCENTILE))
