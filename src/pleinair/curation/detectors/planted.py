"""Flaws drawn onto real pictures, for labels that are true by construction.

    plant(picture, rng) -> the picture without and with the flaw, alike in all else

A detector learns whatever tells the two apart, so both go through the same codec afterwards (`alike`), and the flaw varies in
all that may vary: colours, widths, places, number.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pleinair.curation.pictures import Pixels

Pair = tuple[Pixels, Pixels]
Plant = Callable[[Pixels, np.random.Generator], Pair]
_LONGEST_SIDE = 512


def framed(picture: Pixels, rng: np.random.Generator) -> Pair:
    """A flat frame: one or two bands of a colour all around, at the edge or a little inside, 1.5 to 8% of the side wide."""
    flawed, side = picture.copy(), min(picture.shape[:2])
    at = round(side * rng.uniform(0.01, 0.06)) if rng.random() < 0.35 else 0
    for _ in range(1 if rng.random() < 0.7 else 2):
        width = max(1, round(side * rng.uniform(0.015, 0.08)))
        _band(flawed, at, width, _colour_apart_from(flawed, at, rng))
        at += width
    return picture, flawed


def _band(picture: Pixels, at: int, width: int, colour: Pixels) -> None:
    inner = picture[at : picture.shape[0] - at, at : picture.shape[1] - at]
    for edge in (inner[:width], inner[-width:], inner[:, :width], inner[:, -width:]):
        edge[:] = colour


def _colour_apart_from(picture: Pixels, at: int, rng: np.random.Generator) -> Pixels:
    """A colour that one can see beside what is there; grey and black as often as any other."""
    there = np.median(picture[at : at + 3].reshape(-1, 3), axis=0)
    while True:
        colour = rng.integers(0, 256, 3) if rng.random() < 0.5 else np.full(3, rng.integers(0, 256))
        if np.abs(colour - there).max() >= 40:
            return colour.astype(np.uint8)


def bordered(picture: Pixels, rng: np.random.Generator) -> Pair:
    """Bars of one colour at two opposite sides, or a wide margin all around, the picture scaled down between them."""
    height, width = picture.shape[:2]
    margin = rng.uniform(0.06, 0.18)
    inset_y, inset_x = [(1, 1), (1, 0), (0, 1)][rng.integers(3)]
    inner = (round(width * (1 - 2 * margin * inset_x)), round(height * (1 - 2 * margin * inset_y)))
    colour = tuple(
        int(level) for level in (rng.integers(0, 256, 3) if rng.random() < 0.3 else [rng.choice([0, 20, 235])] * 3)
    )
    canvas = Image.new("RGB", (width, height), colour)
    shrunk = Image.fromarray(picture).resize(inner, Image.Resampling.LANCZOS)
    canvas.paste(shrunk, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    # The clean one loses as much sharpness, or blur would be the label.
    clean = shrunk.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(clean), np.asarray(canvas)


def watermarked(picture: Pixels, rng: np.random.Generator) -> Pair:
    """Half-transparent letters across the picture, once or tiled."""
    base = Image.fromarray(picture).convert("RGBA")
    letters = Image.new("RGBA", base.size, (0, 0, 0, 0))
    pen, side = ImageDraw.Draw(letters), min(base.size)
    text = str(rng.choice(["SAMPLE", "PREVIEW", "(c) STOCK", "DRAFT", "www.example"]))
    level, opacity = int(rng.choice([30, 128, 250])), int(rng.integers(80, 170))
    tiled = rng.random() < 0.4
    font = ImageFont.load_default(side * (0.1 if tiled else rng.uniform(0.16, 0.24)))
    rows = np.arange(0.05, 1, 0.3) if tiled else [rng.uniform(0.3, 0.6)]
    for row in rows:
        pen.text(
            (side * 0.05, base.size[1] * row), f"{text}   {text}" if tiled else text, (level,) * 3 + (opacity,), font
        )
    return picture, np.asarray(Image.alpha_composite(base, letters).convert("RGB"))


def collaged(picture: Pixels, rng: np.random.Generator) -> Pair:
    """Two by two or three in a row of the picture's own parts, with gaps between them."""
    height, width = picture.shape[:2]
    rows, columns = [(2, 2), (1, 3), (3, 1), (2, 1), (1, 2)][rng.integers(5)]
    gap = max(1, round(min(height, width) * rng.uniform(0.01, 0.03)))
    canvas = np.full_like(picture, 255 if rng.random() < 0.7 else 0)
    ys, xs = (np.linspace(0, size, count + 1).astype(int) for size, count in ((height, rows), (width, columns)))
    for row in range(rows):
        for column in range(columns):
            tile = canvas[ys[row] : ys[row + 1] - gap, xs[column] : xs[column + 1] - gap]
            tile[:] = _some_part(picture, tile.shape[:2], rng)
    return picture, canvas


def _some_part(picture: Pixels, size: tuple[int, ...], rng: np.random.Generator) -> Pixels:
    """A random part of at least half the picture's sides, turned over half the time, at the given size."""
    height, width = picture.shape[:2]
    part_h, part_w = (max(1, round(side * rng.uniform(0.5, 1.0))) for side in (height, width))
    top, left = rng.integers(height - part_h + 1), rng.integers(width - part_w + 1)
    part = picture[top : top + part_h, left : left + part_w]
    turned = np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part)
    return np.asarray(Image.fromarray(turned).resize((size[1], size[0]), Image.Resampling.LANCZOS))


PLANTS: Mapping[str, Plant] = {
    "frame": framed,
    "border": bordered,
    "watermark": watermarked,
    "collage": collaged,
}
"""What can be drawn, by the name a user types."""


def planted_pair(plant: Plant, picture: Pixels, rng: np.random.Generator) -> Pair:
    """The picture without and with the flaw, at most 512 pixels long, through one codec."""
    small = Image.fromarray(picture)
    small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    return alike(plant(np.asarray(small), rng), rng)


def alike(pair: Pair, rng: np.random.Generator) -> Pair:
    """Both pictures as they are, or both as JPEG of one quality, half the time each."""
    if rng.random() < 0.5:
        return pair
    quality = int(rng.integers(60, 96))
    return recompressed(pair[0], quality), recompressed(pair[1], quality)


def recompressed(picture: Pixels, quality: int) -> Pixels:
    """The picture after JPEG of that quality."""
    written = io.BytesIO()
    Image.fromarray(picture).save(written, "JPEG", quality=quality)
    with Image.open(written) as image:
        return np.asarray(image.convert("RGB"))
