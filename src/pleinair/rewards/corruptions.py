"""What goes wrong with pictures, planted: the faults that generators show, each with a strength in 0..1.

    blur, noise, ringing, posterise, patches, saturate, jpeg      picture, strength, random generator --> picture

They teach the artefact classifier together with a model's own failures; a fault it never saw it need not find.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Pixels = npt.NDArray[np.uint8]
Corrupt = Callable[[Pixels, float, np.random.Generator], Pixels]


def blur(picture_HWC: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Gaussian, of a radius from 0.8 to 3 pixels per 64 of the side."""
    radius = (0.8 + 2.2 * strength) * picture_HWC.shape[0] / 64
    return np.asarray(Image.fromarray(picture_HWC).filter(ImageFilter.GaussianBlur(radius)))


def noise(picture_HWC: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Grain of 8 to 48 levels, the same in all channels half the time."""
    deviation = 8 + 40 * strength
    channels = 1 if rng.random() < 0.5 else 3
    return _bytes(picture_HWC + rng.normal(0, deviation, (*picture_HWC.shape[:2], channels)))


def ringing(picture_HWC: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """High frequencies raised by 1 to 4 times, or a grid of period 2 or 4 laid over: what steep guidance and odd strides do."""
    if rng.random() < 0.5:
        soft = np.asarray(Image.fromarray(picture_HWC).filter(ImageFilter.GaussianBlur(1.0)), np.float64)
        return _bytes(picture_HWC + (1 + 3 * strength) * (picture_HWC - soft))
    down, across = np.indices(picture_HWC.shape[:2])
    period = int(rng.choice([2, 4]))
    grid_HW = np.where((down // (period // 2) + across // (period // 2)) % 2, 1.0, -1.0)
    return _bytes(picture_HWC + (8 + 32 * strength) * grid_HW[:, :, None])


def posterise(picture_HWC: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Each channel in 6 down to 2 levels, shifted, so that flat grounds change too."""
    levels = 6 - round(4 * strength)
    step = 255 / (levels - 1)
    shift = rng.uniform(-step / 3, step / 3, 3)
    return _bytes(np.round((picture_HWC + shift) / step) * step)


def patches(picture_HWC: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Squares of an eighth of the side change places: a tenth to a half of them."""
    side = max(picture_HWC.shape[0] // 8, 1)
    rows, columns = picture_HWC.shape[0] // side, picture_HWC.shape[1] // side
    places = rng.permutation(rows * columns)[: max(2, round((0.1 + 0.4 * strength) * rows * columns))]
    out = picture_HWC.copy()
    for place, source in zip(places, np.roll(places, 1), strict=True):
        (y, x), (v, u) = ((side * int(one // columns), side * int(one % columns)) for one in (place, source))
        out[y : y + side, x : x + side] = picture_HWC[v : v + side, u : u + side]
    return out


def saturate(picture_HWC: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Colours 1.8 to 4 times as strong, and contrast with them: what steep guidance does."""
    wide = picture_HWC.astype(np.float64)
    grey = wide.mean(axis=2, keepdims=True)
    contrast = 1 + 0.6 * strength
    return _bytes(128 + contrast * (grey - 128) + (1.8 + 2.2 * strength) * (wide - grey))


def jpeg(picture_HWC: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Compressed at quality 30 down to 3."""
    buffer = io.BytesIO()
    Image.fromarray(picture_HWC).save(buffer, "JPEG", quality=round(30 - 27 * strength))
    return np.asarray(Image.open(buffer).convert("RGB"))


CORRUPTIONS: Mapping[str, Corrupt] = {
    "blur": blur,
    "noise": noise,
    "ringing": ringing,
    "posterise": posterise,
    "patches": patches,
    "saturate": saturate,
    "jpeg": jpeg,
}


def corrupted(pictures_NHWC: Pixels, kinds: Sequence[str], seed: int) -> Pixels:
    """Each picture with the fault named beside it, at a random strength; a function of its arguments."""
    made = []
    for row, (picture, kind) in enumerate(zip(pictures_NHWC, kinds, strict=True)):
        rng = np.random.default_rng([seed, row])
        made.append(CORRUPTIONS[kind](picture, float(rng.random()), rng))
    return np.stack(made)


def _bytes(picture_HWC: npt.NDArray[np.floating]) -> Pixels:
    return picture_HWC.clip(0, 255).round().astype(np.uint8)
