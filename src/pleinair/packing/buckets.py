"""Aspect buckets: a few shapes of about one area, the nearest one for each picture, and the crop that fits it in.

Batches are of one shape, so a picture is resized to cover the bucket of the nearest aspect and its overhang is cut off
evenly on both sides. What a crop may lose is bounded; a picture that would lose more is left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from pleinair.records.errors import ConfigError

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BucketConfig:
    """The shapes of one resolution stage."""

    resolution: int
    """Side of a square of the stage's area, in pixels."""
    step: int = 16
    """Divisor of all sides: pixels per latent times the transformer's patch."""
    max_aspect: float = 2.0
    """Longest side over shortest."""
    max_area_error: float = 0.1
    """Largest relative difference of a shape's area from resolution ** 2."""
    max_lost_share: float = 0.15
    """Largest share of a picture that is cut off."""
    max_upscale: float = 1.0
    """Largest factor by which a picture is enlarged."""
    min_rows: int = 1
    """A bucket with fewer pictures is given up and its pictures go to the next one: it would fill no batch."""

    def __post_init__(self) -> None:
        if self.resolution <= 0 or self.resolution % self.step:
            raise ConfigError(f"resolution is {self.resolution}: give a multiple of step, {self.step}")
        if self.max_aspect < 1:
            raise ConfigError(f"max_aspect is {self.max_aspect}: give 1 for squares only, or more")
        if not 0 <= self.max_lost_share < 1:
            raise ConfigError(
                f"max_lost_share is {self.max_lost_share}: it is a share, give a number from 0 to below 1"
            )


@dataclass(frozen=True, order=True)
class Bucket:
    """One shape in pixels."""

    resolution: int
    height: int
    width: int


def aspect_buckets(config: BucketConfig) -> list[Bucket]:
    """The shapes of a stage, tall to wide: for each height the width whose area is nearest, within the limits.

    The set is closed under turning by 90 degrees, and always holds the square.
    """
    side, step = config.resolution, config.step
    shapes = set()
    for height in range(step, side + 1, step):
        width = max(1, round(side * side / height / step)) * step
        aspect, error = width / height, abs(width * height / side**2 - 1)
        if aspect <= config.max_aspect + 1e-9 and error <= config.max_area_error:
            shapes |= {(height, width), (width, height)}
    return [Bucket(side, height, width) for height, width in sorted(shapes, reverse=True)]


@dataclass(frozen=True)
class Assigned:
    """A bucket for each picture."""

    bucket_N: Ints
    """Index of the bucket, -1 for a picture that is left out."""
    left_out: dict[str, int]
    """How many, by reason."""


def assign(widths_N: Ints, heights_N: Ints, buckets: list[Bucket], config: BucketConfig) -> Assigned:
    """The bucket whose aspect is nearest on a log scale, the wider one of two equally near."""
    aspects_K = np.log([bucket.width / bucket.height for bucket in buckets])
    kept = np.ones(len(buckets), bool)
    while True:
        bucket_N = np.flatnonzero(kept)[_nearest(np.log(widths_N / heights_N), aspects_K[kept])]
        lost_N, scale_N = _cost(widths_N, heights_N, bucket_N, buckets)
        too_long_N = lost_N > config.max_lost_share
        too_small_N = ~too_long_N & (scale_N > config.max_upscale)
        counts = np.bincount(bucket_N[~too_long_N & ~too_small_N], minlength=len(buckets))
        smallest = min(np.flatnonzero(kept), key=lambda bucket: int(counts[bucket]))
        if counts[smallest] >= config.min_rows or kept.sum() == 1:
            break
        kept[smallest] = False
    left_out = {
        f"more than {config.max_lost_share:.0%} would be cut off": int(too_long_N.sum()),
        f"would be enlarged more than {config.max_upscale:g} times": int(too_small_N.sum()),
    }
    return Assigned(np.where(too_long_N | too_small_N, -1, bucket_N), left_out)


def _nearest(aspects_N: Floats, aspects_K: Floats) -> Ints:
    """Index of the nearest of ascending `aspects_K`, without a table of N x K distances."""
    edges = (aspects_K[1:] + aspects_K[:-1]) / 2
    return np.searchsorted(edges, aspects_N, side="right")


def _cost(widths_N: Ints, heights_N: Ints, bucket_N: Ints, buckets: list[Bucket]) -> tuple[Floats, Floats]:
    """Lost share and enlargement of each picture in its bucket."""
    width_K, height_K = (np.array([getattr(bucket, side) for bucket in buckets]) for side in ("width", "height"))
    scales = width_K[bucket_N] / widths_N, height_K[bucket_N] / heights_N
    scale_N = np.maximum(*scales)
    return 1 - np.minimum(*scales) / scale_N, scale_N


@dataclass(frozen=True)
class Crop:
    """The part of a picture that is kept, in its own pixels, and what that loses."""

    left: float
    top: float
    right: float
    bottom: float
    lost_share: float


def centre_crop(width: int, height: int, bucket: Bucket) -> Crop:
    """The largest part with the bucket's aspect, in the middle."""
    scale = max(bucket.width / width, bucket.height / height)
    kept_width, kept_height = min(width, bucket.width / scale), min(height, bucket.height / scale)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    lost = 1 - kept_width * kept_height / (width * height)
    return Crop(left, top, left + kept_width, top + kept_height, max(0.0, lost))


def resize_to(picture: Image.Image, bucket: Bucket) -> tuple[npt.NDArray[np.uint8], Crop]:
    """The picture cropped and resampled in one step (Lanczos), as (height, width, 3)."""
    crop = centre_crop(*picture.size, bucket)
    box = (crop.left, crop.top, crop.right, crop.bottom)
    size = (bucket.width, bucket.height)
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS, box=box)), crop
