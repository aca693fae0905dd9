"""Faults planted into real pictures: what the pixel filters are there to find.

Every fault is a function of a picture and a random generator; the picture keeps its size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pleinair.curation.pictures import Pixels

Random = np.random.Generator
Fault = Callable[[Pixels, Random], Pixels]
_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "small", "print", "that", "nobody", "reads", "here")


def blank(pixels: Pixels, rng: Random) -> Pixels:
    """One colour, with up to one level of noise as recompression leaves it."""
    colour = rng.integers(0, 256, 3)
    return (colour + rng.integers(-1, 1, pixels.shape, endpoint=True)).clip(0, 255).astype(np.uint8)


def blank_with_a_speck(pixels: Pixels, rng: Random) -> Pixels:
    """White paper with the picture on less than half a percent of it."""
    height, width = pixels.shape[:2]
    made = np.full_like(pixels, 255)
    small = np.asarray(Image.fromarray(pixels).resize((max(1, width // 16), max(1, height // 16))))
    top, left = rng.integers(height - small.shape[0]), rng.integers(width - small.shape[1])
    made[top : top + small.shape[0], left : left + small.shape[1]] = small
    return made


def frame(pixels: Pixels, rng: Random) -> Pixels:
    """A frame of one colour, 4 to 15% of the shorter side, painted over the picture."""
    band = round(rng.uniform(0.04, 0.15) * min(pixels.shape[:2]))
    made = np.full_like(pixels, rng.integers(0, 256, 3))
    made[band:-band, band:-band] = pixels[band:-band, band:-band]
    return made


def bars(pixels: Pixels, rng: Random) -> Pixels:
    """Black or white bars above and below, or left and right, 5 to 20% of that side each."""
    made, level = pixels.copy(), rng.choice([0, 255])
    sideways = made.swapaxes(0, 1) if rng.random() < 0.5 else made
    band = max(1, round(rng.uniform(0.05, 0.2) * sideways.shape[0]))
    sideways[:band], sideways[-band:] = level, level
    return made


def flat_background(pixels: Pixels, rng: Random) -> Pixels:
    """The picture at 40 to 60% of its side on one colour, as in a shop."""
    height, width = pixels.shape[:2]
    share = rng.uniform(0.4, 0.6)
    small = np.asarray(Image.fromarray(pixels).resize((round(width * share), round(height * share))))
    made = np.full_like(pixels, rng.integers(200, 256))
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    made[top : top + small.shape[0], left : left + small.shape[1]] = small
    return made


def noise(pixels: Pixels, rng: Random) -> Pixels:
    """Grain of 60 to 100 levels, or 20 to 50% of the pixels at random."""
    if rng.random() < 0.5:
        return (pixels + rng.normal(0, rng.uniform(60, 100), pixels.shape)).clip(0, 255).astype(np.uint8)
    hit = rng.random(pixels.shape[:2]) < rng.uniform(0.2, 0.5)
    return np.where(hit[..., None], rng.integers(0, 256, pixels.shape), pixels).astype(np.uint8)


def text_page(pixels: Pixels, rng: Random) -> Pixels:
    """Lines of small print on paper, over the whole picture."""
    height, width = pixels.shape[:2]
    return _print(Image.new("RGB", (width, height), "white"), (0, 0, width, height), rng)


def text_panel(pixels: Pixels, rng: Random) -> Pixels:
    """Lines of small print on a panel over 40 to 60% of the picture."""
    height, width = pixels.shape[:2]
    depth = round(height * rng.uniform(0.4, 0.6))
    image = Image.fromarray(pixels)
    image.paste((250, 248, 240), (0, height - depth, width, height))
    return _print(image, (0, height - depth, width, height), rng)


def _print(image: Image.Image, box: tuple[int, int, int, int], rng: Random) -> Pixels:
    """Lines of 40 to 70 characters each, so that a letter has few pixels at 256."""
    left, top, right, bottom = box
    size = max(5.0, (right - left) / rng.uniform(40, 70) * 2)
    font, draw = ImageFont.load_default(size), ImageDraw.Draw(image)
    for y in np.arange(top + size, bottom - 2 * size, size * 1.4):
        line = " ".join(rng.choice(_WORDS, 16))
        while draw.textlength(line, font) > right - left - 2 * size:
            line = line[:-1]
        draw.text((left + size, float(y)), line, (30, 30, 30), font)
    return np.asarray(image)


def melted(pixels: Pixels, rng: Random) -> Pixels:
    """Nothing sharp left: blurred over 4 to 8% of the shorter side."""
    radius = rng.uniform(0.04, 0.08) * min(pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def contact_sheet(pictures: Sequence[Pixels], rng: Random, *, side: int = 1024, across: int = 10) -> Pixels:
    """A hundred pictures in one, for which 256 pixels are too few."""
    cell, made = side // across, np.full((side, side, 3), 255, np.uint8)
    for place, chosen in enumerate(rng.choice(len(pictures), across * across)):
        row, column = divmod(place, across)
        tile = np.asarray(Image.fromarray(pictures[chosen]).resize((cell, cell)))
        made[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = tile
    return made


FAULTS: Mapping[str, Fault] = {
    "blank": blank,
    "blank with a speck": blank_with_a_speck,
    "frame": frame,
    "bars": bars,
    "flat background": flat_background,
    "noise": noise,
    "text page": text_page,
    "text panel": text_panel,
    "melted": melted,
}
