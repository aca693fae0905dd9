"""Which colours a picture has, by the words people use."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""RGB, shape (height, width, 3)."""

_HUES: Mapping[str, tuple[tuple[float, float], ...]] = {
    "red": ((345, 360), (0, 18)),
    "orange": ((14, 45),),
    "yellow": ((40, 70),),
    "green": ((68, 175),),
    "blue": ((170, 262),),
    "purple": ((250, 325),),
    "pink": ((290, 360), (0, 25)),
}
"""Degrees. Neighbours overlap: where red ends, people disagree, and a check must not."""
_GREY_CHROMA, _GREY_SHARE = 24, 0.01


def is_grey(pixels: Pixels) -> bool:
    """Whether a picture has no colour to speak of: it says nothing of the colour of what it shows."""
    return bool((_chroma(pixels) > _GREY_CHROMA).mean() < _GREY_SHARE)


def share_of(pixels: Pixels, colour: str) -> float:
    """Share of pixels that somebody may call `colour`; a word that is none of the twelve raises KeyError."""
    return float(_mask(pixels, colour).mean())


def _mask(pixels: Pixels, colour: str) -> NDArray[np.bool_]:
    light, chroma = pixels.max(axis=2).astype(np.int16), _chroma(pixels)
    if colour in ("grey", "gray"):
        return np.asarray((chroma <= _GREY_CHROMA) & (light > 50) & (light < 235))
    if colour == "black":
        return np.asarray(light < 80)
    if colour == "white":
        return np.asarray((chroma <= _GREY_CHROMA) & (light >= 225))
    hue = _hue(pixels)
    if colour == "brown":
        return np.asarray(_within(hue, ((0, 48),)) & (light < 200) & (chroma > 15))
    limits = _within(hue, _HUES[colour]) & (chroma > _GREY_CHROMA)
    return np.asarray(limits & (light > 150) if colour == "pink" else limits)


def _chroma(pixels: Pixels) -> NDArray[np.int16]:
    return np.asarray(pixels.max(axis=2).astype(np.int16) - pixels.min(axis=2), dtype=np.int16)


def _hue(pixels: Pixels) -> NDArray[np.float32]:
    """Degrees of the HSV hexagon; 0 for greys."""
    red, green, blue = (pixels[:, :, channel].astype(np.float32) for channel in range(3))
    top, chroma = pixels.max(axis=2), np.maximum(_chroma(pixels), 1).astype(np.float32)
    sixth = np.select(
        [top == pixels[:, :, 0], top == pixels[:, :, 1]],
        [(green - blue) / chroma % 6, (blue - red) / chroma + 2],
        (red - green) / chroma + 4,
    )
    return np.asarray(sixth * 60, dtype=np.float32)


def _within(hue: NDArray[np.float32], ranges: tuple[tuple[float, float], ...]) -> NDArray[np.bool_]:
    return np.asarray(np.logical_or.reduce([(hue >= low) & (hue <= high) for low, high in ranges]))
