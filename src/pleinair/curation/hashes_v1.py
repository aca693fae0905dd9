"""The first definition of the fingerprints: for takedowns whose pictures are gone, and to measure the second against.

    phash12_v1   144 bits, those of the `imagehash` package
    colour_v1    28 bins of hue, saturation and grey, soft in hue only
    thumb16_v1   16 x 16 RGB

Nothing new is stored under these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pleinair.curation.pictures import Pixels

HUE_BINS = 12
COLOUR_LEVELS = 15
THUMB_SIDE = 16
_HASH_SIDE, _DCT_SIDE = 12, 48
_GREY_BELOW, _BLACK_BELOW, _STRONG_ABOVE = 0.15, 0.15, 0.5  # saturation, value, saturation


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of one picture, as its row stores them."""

    phash12_v1: str
    """36 hex digits: 144 bits, row by row of the 12 x 12 block."""
    colour_v1: str
    """28 hex digits: levels 0..15 of black, dark, mid and light grey, 12 faint hues, 12 strong hues."""
    thumb16_v1: bytes
    """768 bytes: 16 x 16 x RGB."""


def fingerprints(pixels: Pixels) -> Fingerprints:
    """All fingerprints of a decoded picture."""
    image = Image.fromarray(pixels)
    return Fingerprints(phash12(image), colour_hash(image), thumb16(image))


def phash12(image: Image.Image) -> str:
    """Perceptual hash, bit for bit that of the `imagehash` package at hash size 12.

    48 x 48 grey by Lanczos, type-II DCT of rows and columns, the 12 x 12 lowest frequencies, each against their median.
    """
    grey = np.asarray(image.convert("L").resize((_DCT_SIDE, _DCT_SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    basis = _dct_basis()
    low = basis @ grey @ basis.T
    return np.packbits(low > np.median(low)).tobytes().hex()


@lru_cache(maxsize=1)
def _dct_basis() -> NDArray[np.float64]:
    frequency, position = np.arange(_HASH_SIDE)[:, None], np.arange(_DCT_SIDE)[None, :]
    return 2.0 * np.cos(np.pi * frequency * (2 * position + 1) / (2 * _DCT_SIDE))


def colour_hash(image: Image.Image) -> str:
    """How much of the picture has which colour: 28 shares, each stored as 15 sqrt(share).

    A pixel's hue counts towards its two nearest bins, so a slight shift of hue moves a little weight, not a whole bin.
    """
    small = image.resize((64, 64), Image.Resampling.BOX)
    hue, saturation, value = np.moveaxis(np.asarray(small.convert("HSV"), dtype=np.float64) / 255.0, -1, 0)
    black = value < _BLACK_BELOW
    grey = ~black & (saturation < _GREY_BELOW)
    greys = np.histogram(value[grey], bins=(0.0, 0.55, 0.92, 1.01))[0]
    coloured = ~black & ~grey
    hues = _soft_hues(hue[coloured], saturation[coloured] >= _STRONG_ABOVE)
    shares = np.concatenate([[black.sum()], greys, hues]) / black.size
    return "".join(f"{round(level):x}" for level in COLOUR_LEVELS * np.sqrt(shares))


def _soft_hues(hue: NDArray[np.float64], strong: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weight per bin, faint hues first; bins are centred, hue is in [0, 1]."""
    place = hue * HUE_BINS - 0.5
    below = np.floor(place).astype(np.int64)
    part = place - below
    offset = HUE_BINS * strong
    weights = np.zeros(2 * HUE_BINS)
    np.add.at(weights, below % HUE_BINS + offset, 1.0 - part)
    np.add.at(weights, (below + 1) % HUE_BINS + offset, part)
    return weights


def thumb16(image: Image.Image) -> bytes:
    """16 x 16 RGB by area averaging; the aspect ratio is not kept."""
    return np.asarray(image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)).tobytes()
