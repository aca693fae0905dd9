"""Fingerprints of a picture, for finding its copies.

    bytes --decode, JPEG at 1/1 .. 1/8--> pixels --area average--> 48 x 48 RGB --+--> phash12_v2  144 bits of structure
                                                                                  +--> colour_v2   28 shares of colours
                                                                                  `--> thumb16_v2  16 x 16 RGB

    phash12   survives recompression and resizing
    colour    tells recoloured drawings apart, which the first cannot
    thumb16   confirms or refutes what the other two suggest

A fingerprint is comparable only with one of the same definition, so names carry a version and a definition never
changes under its name. The first version (`hashes_v1`) read every pixel of the full picture three times; of the second
the decoding is nearly the whole cost, and a JPEG is decoded no larger than it must be. A md5 of the bytes names files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pleinair.curation.pictures import Pixels, decode
from pleinair.records.errors import require

HUE_BINS = 12
COLOUR_LEVELS = 15
CELLS = 48
"""Side of the grid of area averages that everything is computed from."""
DECODED_SIDE = 2 * CELLS
"""Shorter side that a reduced decoding keeps at least, so that a cell is still an average of several pixels."""
THUMB_SIDE = 16
_HASH_SIDE = 12
_MARGIN = 0.125  # grey levels of amplitude
_COSINE_ONE = 4096.0  # cosines as whole numbers: sums in float64 are exact, so no machine's rounding decides a bit
_COLOUR_BITS = 5  # of each channel
_WHOLE = 255.0  # likewise for shares of colours, in float32


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of one picture, as its row stores them."""

    phash12_v2: str
    """36 hex digits: 144 bits, row by row of the 12 x 12 block."""
    colour_v2: str
    """28 hex digits: levels 0..15 of black, dark, mid and light grey, 12 faint hues, 12 strong hues."""
    thumb16_v2: bytes
    """768 bytes: 16 x 16 x RGB."""


def fingerprints_of(data: bytes) -> Fingerprints:
    """All fingerprints of an encoded picture, decoded no larger than needed. Raises ImageError. Read the header first."""
    return fingerprints(decode(data, at_least=DECODED_SIDE))


def fingerprints(pixels: Pixels) -> Fingerprints:
    """All fingerprints of pixels that `decode(data, at_least=DECODED_SIDE)` gave, or that never were a file."""
    cv2: Any = require("cv2", "curate")
    cells = cv2.resize(pixels, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    thumb = cv2.resize(cells, (THUMB_SIDE, THUMB_SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(cells, cv2.COLOR_RGB2GRAY)
    return Fingerprints(phash12(grey), colour_hash(cells), thumb.tobytes())


def md5(data: bytes) -> str:
    """MD5 of encoded bytes, hex. It names copies; nothing here trusts it against forgery."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def phash12(grey: NDArray[np.uint8]) -> str:
    """Perceptual hash of 48 x 48 grey cells.

    The 12 x 12 lowest frequencies of their type-II DCT, a bit each: is its amplitude over the median by more than an eighth
    of a grey level? Without that margin the bits of what is not in a picture (half of them, in a symmetric one) are noise.
    """
    basis = _dct_basis()
    low = basis @ grey.astype(np.float64) @ basis.T
    level = (_COSINE_ONE * CELLS / 2) ** 2  # an amplitude of one
    return np.packbits(low > np.median(low) + _MARGIN * level).tobytes().hex()


@lru_cache(maxsize=1)
def _dct_basis() -> NDArray[np.float64]:
    frequency, position = np.arange(_HASH_SIDE)[:, None], np.arange(CELLS)[None, :]
    return np.rint(_COSINE_ONE * np.cos(np.pi * frequency * (2 * position + 1) / (2 * CELLS)))


def colour_hash(cells: Pixels) -> str:
    """How much of the picture has which colour: 28 shares, each stored as 15 sqrt(share).

    No colour is on one side of a border: a cell counts towards its two nearest hues, and in part as black, grey, faint or
    strong. So a slight change of hue, light or saturation moves a little weight, not a whole bin.
    """
    red, green, blue = np.moveaxis(cells.reshape(-1, 3) >> (8 - _COLOUR_BITS), -1, 0).astype(np.int64)
    codes = (red << 2 * _COLOUR_BITS) | (green << _COLOUR_BITS) | blue
    # A product with ones: sums whole numbers exactly, in a third of the time of a mean.
    weights = np.ones(len(codes), np.float32) @ np.take(_bins_of_colours(), codes, axis=0)
    shares = weights / (_WHOLE * len(codes))
    return "".join(f"{level:x}" for level in np.rint(COLOUR_LEVELS * np.sqrt(shares)).astype(int).tolist())


@lru_cache(maxsize=1)
def _bins_of_colours() -> NDArray[np.float32]:
    """Weight in each bin, 0 to 255, of all 2^15 colours of five bits a channel, by the middle of what each stands for."""
    levels = (np.arange(2**_COLOUR_BITS) + 0.5) / 2**_COLOUR_BITS
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    hue, saturation, value = _hsv(rgb)
    black = _ramp(value, 0.25, 0.05)
    coloured = (1 - black) * _ramp(saturation, 0.08, 0.22)
    strong = _ramp(saturation, 0.35, 0.65)
    grey = (1 - black - coloured)[:, None] * _soft(value, np.array([0.3, 0.7, 0.98]))
    hues = _soft_hues(hue) * coloured[:, None]
    bins = np.concatenate([black[:, None], grey, hues * (1 - strong)[:, None], hues * strong[:, None]], axis=1)
    return np.rint(_WHOLE * bins).astype(np.float32)


def _hsv(rgb: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Hue in [0, 1), saturation, value."""
    value, least = rgb.max(axis=1), rgb.min(axis=1)
    chroma = np.maximum(value - least, 1e-9)
    red, green, blue = rgb.T
    sextant = np.select(
        [value == red, value == green], [(green - blue) / chroma, 2 + (blue - red) / chroma], 4 + (red - green) / chroma
    )
    hue: NDArray[np.float64] = sextant / 6 % 1.0
    return hue, (value - least) / value, value


def _ramp(values: NDArray[np.float64], zero: float, one: float) -> NDArray[np.float64]:
    """0 at `zero`, 1 at `one`, linear between."""
    return np.clip((values - zero) / (one - zero), 0.0, 1.0)


def _soft(values: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value's weight at its two nearest centres; sums to one."""
    return np.stack([np.interp(values, centres, one) for one in np.eye(len(centres))], axis=1)


def _soft_hues(hue: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same around the circle of hues; bin 0 lies between red and orange."""
    apart = np.abs((hue * HUE_BINS - 0.5)[:, None] - np.arange(HUE_BINS))
    weights: NDArray[np.float64] = np.clip(1 - np.minimum(apart, HUE_BINS - apart), 0.0, 1.0)
    return weights
