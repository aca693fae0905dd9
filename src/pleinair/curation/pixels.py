"""What is measured of a picture's pixels, and the limits that judge it: blank pictures, frames, flat backgrounds, noise.

What a measure is worth depends on the pictures: a product photo with a flat white border teaches a photo model bad habits,
a drawing on white is simply a drawing. So everything measured is kept as a column, and limits (`filters.py`) judge the
columns, again and again if need be, without another look at the picture. Nothing here says whether a picture is beautiful.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from pleinair.curation.pictures import Pixels
from pleinair.records.errors import ConfigError, require

RESOLUTIONS = (256, 512, 1024)
"""The resolution stages of training; a picture's complexity is measured at each."""

_WHITE_FROM, _BLACK_TO = 250, 5
_BORDER_SHARE = 0.04
_FLAT_RANGE = 8
_EDGE_FROM = 48
"""Levels of grey that the two neighbours across and the two up and down differ by, together, on an edge."""

_LINE_HEIGHT = (4, 32)
"""Pixels, at 512."""
_LINE_LENGTH = 3
"""In heights."""
_LINE_FILLED = 0.6
"""Share of its box."""

Grey = NDArray[np.uint8]
Planes = Sequence[Grey]
"""Red, green and blue, each in one piece."""
Colour = NDArray[np.float64]
Counts = NDArray[np.float32]


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
    max_bar_flatness: float = 1.0
    """The same of two opposite borders, the flatter pair: bars above and below, or left and right."""
    max_flat_share: float = 1.0
    """Share of all pixels within 8 levels of the border's median colour."""
    max_laplacian: float = 1_040_400.0
    """Variance of the Laplacian of grey (0 to 1020^2): extreme texture and noise lie above."""
    min_laplacian: float = 0.0
    """The quality floor, only from 512 on: below lie pictures in which nothing at all is sharp."""
    max_complexity: float = 1.0
    """Share of pixels on an edge, at the training resolution: above lies what it cannot carry."""
    max_text_density: float = 1.0
    """Share of the picture under what looks like lines of small writing, from pixels alone."""
    max_ocr_share: float = 1.0
    """Share under lines of text that were read; judged where captioning has run, unknown and kept elsewhere."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_entropy <= 8:
            raise ConfigError(f"pixels.min_entropy is {self.min_entropy}: give 0 to 8 bits")
        for field in ("max_laplacian", "min_laplacian"):
            if getattr(self, field) < 0:
                raise ConfigError(f"pixels.{field} is {getattr(self, field)}: give a variance of at least 0")
        for field in _SHARES:
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"pixels.{field} is {getattr(self, field)}: give a share from 0 to 1")


_SHARES = (
    "max_white_ratio",
    "max_black_ratio",
    "max_border_flatness",
    "max_bar_flatness",
    "max_flat_share",
    "max_complexity",
    "max_text_density",
    "max_ocr_share",
)


@dataclass(frozen=True)
class PixelStatistics:
    """What was measured; see PixelLimits for the units. The names are columns: a changed definition is a new one."""

    entropy: float
    white_ratio: float
    black_ratio: float
    border_flatness: float
    bar_flatness_v1: float
    flat_share_v1: float
    laplacian_v1: float
    complexity_256_v1: float
    complexity_512_v1: float
    complexity_1024_v1: float
    text_density_v1: float


def pixel_statistics(pixels: Pixels) -> PixelStatistics:
    """Everything measured of a decoded picture."""
    grey, planes = _cv2().cvtColor(pixels, _cv2().COLOR_RGB2GRAY), _cv2().split(pixels)
    white, black = white_and_black(planes)
    border, bars, colour = border_flatness(pixels)
    scaled = pyramid(grey)
    return PixelStatistics(
        entropy=entropy(planes),
        white_ratio=white,
        black_ratio=black,
        border_flatness=border,
        bar_flatness_v1=bars,
        flat_share_v1=share_near(planes, colour),
        laplacian_v1=laplacian_variance(grey),
        complexity_256_v1=complexity(scaled[256]),
        complexity_512_v1=complexity(scaled[512]),
        complexity_1024_v1=complexity(scaled[1024]),
        text_density_v1=text_density(scaled[512]),
    )


@cache
def _cv2() -> ModuleType:
    return require("cv2", "curate")


def entropy(planes: Planes) -> float:
    """Mean entropy of the three channels, in bits."""
    shares = histograms(planes).astype(np.float64) / planes[0].size
    return max(0.0, float(-(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum() / 3))


def histograms(planes: Planes) -> Counts:
    """How often each of the 256 levels occurs in each channel, shape (3, 256)."""
    # calcHist: several times faster than np.bincount and np.histogram (benchmarks.curation filters).
    return np.stack([_cv2().calcHist([plane], [0], None, [256], [0, 256]).ravel() for plane in planes])


def white_and_black(planes: Planes) -> tuple[float, float]:
    """Shares of white and of black pixels."""
    # The darkest and the brightest channel, compared once: 0.17 ms at 512 against 0.55 of inRange on three channels.
    cv2, (red, green, blue) = _cv2(), planes
    white = cv2.compare(cv2.min(cv2.min(red, green), blue), _WHITE_FROM, cv2.CMP_GE)
    black = cv2.compare(cv2.max(cv2.max(red, green), blue), _BLACK_TO, cv2.CMP_LE)
    return _share_set(white), _share_set(black)


def _share_set(mask: Grey) -> float:
    return int(_cv2().countNonZero(mask)) / mask.size


def border_flatness(pixels: Pixels) -> tuple[float, float, Colour]:
    """Flatness of the whole border, of the flatter pair of opposite borders, and the border's median colour."""
    height, width = pixels.shape[:2]
    band = max(1, round(_BORDER_SHARE * min(height, width)))
    pairs = [
        _cv2().split(np.concatenate([first.reshape(-1, 3), last.reshape(-1, 3)])[None])
        for first, last in ((pixels[:band], pixels[-band:]), (pixels[:, :band], pixels[:, -band:]))
    ]
    counts = [histograms(pair) for pair in pairs]
    colour = median_colour(counts[0] + counts[1])
    sizes = [pair[0].size for pair in pairs]
    near = sum(share_near(pair, colour) * size for pair, size in zip(pairs, sizes, strict=True))
    bars = max(share_near(pair, median_colour(count)) for pair, count in zip(pairs, counts, strict=True))
    return near / sum(sizes), bars, colour


def median_colour(counts: Counts) -> Colour:
    """The median of each channel, as np.median has it, from the counts of levels."""
    total = np.cumsum(counts, axis=1, dtype=np.float64)
    number = total[0, -1]
    lower, upper = ((total > place).argmax(axis=1) for place in ((number - 1) // 2, number // 2))
    middle: Colour = (lower + upper) / 2
    return middle


def share_near(planes: Planes, colour: Colour) -> float:
    """Share of pixels within 8 levels of a colour in every channel."""
    # The median of an even number may lie between two levels, and inRange would round it.
    low, high = np.ceil(colour - _FLAT_RANGE).clip(0), np.floor(colour + _FLAT_RANGE).clip(None, 255)
    near = [_cv2().inRange(plane, *span) for plane, *span in zip(planes, low.tolist(), high.tolist(), strict=True)]
    return _share_set(_cv2().bitwise_and(_cv2().bitwise_and(near[0], near[1]), near[2]))


def laplacian_variance(grey: Grey) -> float:
    """Variance of the four-neighbour Laplacian, the outermost pixels left out."""
    # 16 bits hold every value (-1020 to 1020); 64 as usual cost a third more.
    inner = _cv2().Laplacian(grey, _cv2().CV_16S, ksize=1)[1:-1, 1:-1]
    return float(_cv2().meanStdDev(inner)[1].ravel()[0] ** 2) if inner.size else 0.0


def pyramid(grey: Grey) -> dict[int, Grey]:
    """The picture at every resolution stage, each made from the larger one."""
    made = {}
    for resolution in reversed(RESOLUTIONS):
        grey = made[resolution] = at_resolution(grey, resolution)
    return made


def at_resolution(grey: Grey, resolution: int) -> Grey:
    """The picture scaled down to as many pixels as the square of a training resolution; never up."""
    height, width = grey.shape
    scale = resolution / (height * width) ** 0.5
    if scale >= 1:
        return grey
    size = max(1, round(width * scale)), max(1, round(height * scale))
    scaled: Grey = _cv2().resize(grey, size, interpolation=_cv2().INTER_AREA)
    return scaled


def complexity(grey: Grey) -> float:
    """Share of pixels on an edge."""
    if min(grey.shape) < 3:
        return 0.0
    across = _cv2().absdiff(grey[1:-1, 2:], grey[1:-1, :-2])
    down = _cv2().absdiff(grey[2:, 1:-1], grey[:-2, 1:-1])
    return _share_set(_cv2().compare(_cv2().add(across, down), _EDGE_FROM, _cv2().CMP_GE))


def text_density(grey: Grey) -> float:
    """Share of the picture, given at 512, under boxes that look like lines of small writing.

    Strokes lie close beside each other, so their outlines grow together into flat, well filled boxes.
    """
    cv2 = _cv2()
    outlines = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    strokes = cv2.compare(outlines, _EDGE_FROM, cv2.CMP_GE)
    lines = cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, np.ones((1, 9), np.uint8))
    lines = cv2.morphologyEx(lines, cv2.MORPH_OPEN, np.ones((2, 9), np.uint8))
    # Contours, their holes left out: cheaper than connected components with statistics, 0.6 against 1.9 ms at 512.
    contours, nesting = cv2.findContours(lines, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    inside = np.reshape(nesting, (-1, 4))[:, 3] >= 0 if len(contours) else ()
    found = (_line_area(contour) for contour, hole in zip(contours, inside, strict=True) if not hole)
    return min(1.0, sum(found) / grey.size)


def _line_area(contour: NDArray[np.int32]) -> int:
    """Area of the box around a contour that looks like a line of writing, else 0."""
    _, _, width, height = _cv2().boundingRect(contour)
    if not (_LINE_HEIGHT[0] <= height <= _LINE_HEIGHT[1] and width >= _LINE_LENGTH * height):
        return 0
    filled = _cv2().contourArea(contour) >= _LINE_FILLED * (width - 1) * (height - 1)
    return width * height if filled else 0
