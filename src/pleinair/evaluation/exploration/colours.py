"""The colour a small picture on white shows, by its pixels alone."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pleinair.evaluation.exploration.requests import COLOURS

HUES: Mapping[str, float] = {"red": 355, "orange": 30, "yellow": 50, "green": 110, "blue": 215, "purple": 280}
"""Middle of each colour in degrees, as the drawing sets draw it."""
WHITE, GREY_SATURATION, BLACK_VALUE, BROWN_VALUE, BROWN_STRENGTH = 245, 0.2, 0.35, 0.66, 1.45


def colour_name(picture_HWC: npt.NDArray[np.uint8]) -> str:
    """The colour most of the pixels that are not white have; black where there are none."""
    ink_NC = picture_HWC.reshape(-1, 3)
    ink_NC = ink_NC[(ink_NC < WHITE).any(axis=1)]
    if not len(ink_NC):
        return "black"
    # A few hundred pixels tell as much as thousands.
    votes = [pixel_colour(*(pixel / 255.0)) for pixel in ink_NC[:: max(1, len(ink_NC) // 300)]]
    return max(COLOURS, key=votes.count)


def pixel_colour(red: float, green: float, blue: float) -> str:
    """One of the colours, of components in 0..1."""
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    if value < BLACK_VALUE or saturation < GREY_SATURATION:
        return "black"
    degrees = 360 * hue
    name = min(HUES, key=lambda colour: abs((degrees - HUES[colour] + 180) % 360 - 180))
    dull = value < BROWN_VALUE or saturation + value < BROWN_STRENGTH
    return "brown" if name in ("red", "orange") and 8 < degrees < 45 and dull else name
