"""Statistics of pixels that give away blank pictures, frames and flat backgrounds.

What they are worth depends on the pictures: a product photo with a flat white border teaches a photo model bad habits,
a drawing on white is simply a drawing. So the limits belong to a recipe and everything measured is kept as a column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pleinair.curation.pictures import Pixels
from pleinair.records.errors import ConfigError, require

_WHITE_FROM, _BLACK_TO = 250, 5
_BORDER_SHARE = 0.04
_FLAT_RANGE = 8


@dataclass(frozen=True, kw_only=True)
class PixelLimits:
    """What is dropped for its pixels. The defaults suit drawings on white: only nearly blank pictures go."""

    min_entropy: float = 0.05
    """Mean over R, G, B of the entropy of the 256-bin histogram, in bits (0 to 8)."""
    max_white_ratio: float = 0.99
    """Share of pixels whose three channels are all at least 250."""
    max_black_ratio: float = 0.99
    """Share of pixels whose three channels are all at most 5."""
    max_border_flatness: float = 1.0
    """Share of border pixels within 8 levels of the border's median colour; 1.0 keeps every background."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_entropy <= 8:
            raise ConfigError(f"pixels.min_entropy is {self.min_entropy}: give 0 to 8 bits")
        for field in ("max_white_ratio", "max_black_ratio", "max_border_flatness"):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"pixels.{field} is {getattr(self, field)}: give a share from 0 to 1")


@dataclass(frozen=True)
class PixelStatistics:
    """What was measured; see PixelLimits for the units."""

    entropy: float
    white_ratio: float
    black_ratio: float
    border_flatness: float


def pixel_statistics(pixels: Pixels) -> PixelStatistics:
    """Statistics of a decoded picture."""
    cv2 = require("cv2", "curate")
    count = pixels.shape[0] * pixels.shape[1]
    white = cv2.inRange(pixels, (_WHITE_FROM,) * 3, (255,) * 3)
    black = cv2.inRange(pixels, (0,) * 3, (_BLACK_TO,) * 3)
    return PixelStatistics(
        entropy=float(np.mean([_entropy(pixels, channel) for channel in range(3)])),
        white_ratio=int(cv2.countNonZero(white)) / count,
        black_ratio=int(cv2.countNonZero(black)) / count,
        border_flatness=_border_flatness(pixels),
    )


def _entropy(pixels: Pixels, channel: int) -> float:
    # 3x faster than np.bincount: no copy of the channel.
    counts = require("cv2", "curate").calcHist([pixels], [channel], None, [256], [0, 256]).ravel()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _border_flatness(pixels: Pixels) -> float:
    height, width = pixels.shape[:2]
    band = max(1, round(_BORDER_SHARE * min(height, width)))
    bands = (pixels[:band], pixels[-band:], pixels[:, :band], pixels[:, -band:])
    border = np.concatenate([part.reshape(-1, 3) for part in bands]).astype(np.int16)
    near = np.abs(border - np.median(border, axis=0)).max(axis=1) <= _FLAT_RANGE
    return float(near.mean())


def pixel_drop(statistics: PixelStatistics, limits: PixelLimits) -> str:
    """Why a picture goes, with the value and the limit; empty when it stays."""
    checks = (
        ("entropy", statistics.entropy, limits.min_entropy, statistics.entropy < limits.min_entropy),
        ("white", statistics.white_ratio, limits.max_white_ratio, statistics.white_ratio > limits.max_white_ratio),
        ("black", statistics.black_ratio, limits.max_black_ratio, statistics.black_ratio > limits.max_black_ratio),
        (
            "flat border",
            statistics.border_flatness,
            limits.max_border_flatness,
            statistics.border_flatness > limits.max_border_flatness,
        ),
    )
    for kind, value, limit, failed in checks:
        if failed:
            return f"{kind}: {value:.3f}, {'under' if kind == 'entropy' else 'over'} {limit:g}"
    return ""
