"""What a detector looks at: named sets of features, each with a version, several of which are put side by side.

    efficientnet-lite0-128-v1    the frozen encoder's vector (pleinair.model.image_encoder): what is in the picture
    rim-128-v1                   early maps of the same network, pooled over rim, ring within it, and middle
    edges-128-v1                 straight steps of colour along the four sides, by their distance from the edge
    residual-v1                  high-pass statistics and spectrum at the picture's own size: how it was made

A set is comparable only under its name: whoever changes how it is computed changes the name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pleinair.curation.pictures import Pixels
from pleinair.model.efficientnet import load_efficientnet
from pleinair.model.image_encoder import EfficientNetEncoder, batches, resized
from pleinair.records.errors import ConfigError

Array = npt.NDArray[np.float32]
GLOBAL, RIM, EDGES, RESIDUAL = "efficientnet-lite0-128-v1", "rim-128-v1", "edges-128-v1", "residual-v1"
_SIDE = 128
_DEPTH = 32
_RIM_BLOCKS = (0, 2, 4)
_LARGEST_CROP = 256


class FeatureSet(Protocol):
    """Features of pictures."""

    def __call__(self, pictures: Sequence[Pixels]) -> Array:
        """(N, D) float32 of RGB pictures of any sizes."""
        ...


@lru_cache(maxsize=8)
def feature_set(name: str, cache: Path) -> FeatureSet:
    """The set of that name; `cache` holds the encoder's weights. Raises ConfigError, SourceError."""
    made: dict[str, Callable[[], FeatureSet]] = {
        GLOBAL: lambda: EfficientNetEncoder(cache / "efficientnet-lite0").embed,
        RIM: lambda: RimFeatures(cache / "efficientnet-lite0"),
        EDGES: lambda: lambda pictures: np.stack([edge_features(picture) for picture in pictures]),
        RESIDUAL: lambda: lambda pictures: np.stack([residual_features(picture) for picture in pictures]),
    }
    if name not in made:
        raise ConfigError(f"no features {name!r}: give one or more of {', '.join(made)}")
    return made[name]()


def features_of(pictures: Sequence[Pixels], names: Sequence[str], cache: Path) -> Array:
    """(N, D): the named sets side by side."""
    return np.concatenate([feature_set(name, cache)(pictures) for name in names], axis=1)


class RimFeatures:
    """Channel means of three early maps over the outermost cells, the ring within, and the rest; deviation over the rim."""

    def __init__(self, directory: Path) -> None:
        self.network = load_efficientnet(directory)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Pixels]) -> Array:
        """(N, 320)."""
        parts = [self._pooled((resized(batch, _SIDE) - 127.0) / 128.0).numpy() for batch in batches(pictures, 32)]
        return np.concatenate(parts)

    def _pooled(self, pictures_BCHW: Tensor) -> Tensor:
        x_BCHW, found = F.relu6(self.network.stem(pictures_BCHW)), []
        for number, block in enumerate(list(self.network.blocks)[: max(_RIM_BLOCKS) + 1]):
            x_BCHW = block(x_BCHW)
            if number in _RIM_BLOCKS:
                found += rings(x_BCHW)
        return torch.cat(found, dim=1)


def rings(x_BCHW: Tensor) -> list[Tensor]:
    """(B, C) each: mean and deviation over the outermost sixteenth, mean over the next, mean over the middle."""
    side = x_BCHW.shape[-1]
    width = max(1, side // 16)
    place = torch.arange(side)
    from_edge = torch.minimum(place, side - 1 - place)
    depth_HW = torch.minimum(from_edge[:, None], from_edge[None, :]) // width
    rim_BCP = x_BCHW[:, :, depth_HW == 0]
    ring, middle = (x_BCHW[:, :, mask].mean(dim=2) for mask in (depth_HW == 1, depth_HW > 1))
    return [rim_BCP.mean(dim=2), rim_BCP.std(dim=2), ring, middle]


def edge_features(picture: Pixels) -> Array:
    """Steps of colour parallel to a side, by distance from it: the weakest of the four sides, their mean, their flatness.

    A frame is a step at one distance from all four sides, of one colour outside; a drawing that touches its edges is not.
    """
    pixels = resized([picture], _SIDE)[0].permute(1, 2, 0).numpy() / 255.0
    sides_SDLC = np.stack(
        [np.rot90(pixels, turn)[:_DEPTH] for turn in range(4)]
    )  # depth from the edge, length along it
    step_SD = np.linalg.norm(np.diff(sides_SDLC, axis=1).mean(axis=2), axis=2)
    roughness_SD = sides_SDLC.std(axis=2).mean(axis=2)
    colour_SDC = sides_SDLC.mean(axis=2)
    apart_D = np.linalg.norm(colour_SDC - colour_SDC.mean(axis=0), axis=2).max(axis=0)
    straight_SD = step_SD / (np.linalg.norm(np.diff(sides_SDLC, axis=1), axis=3).mean(axis=2) + 0.02)
    jointly_D = step_SD.min(axis=0)
    outer_flat_D = np.maximum.accumulate(roughness_SD.max(axis=0))[:-1]
    framed_D = jointly_D * straight_SD.min(axis=0) / (0.02 + outer_flat_D)
    found = [
        jointly_D, step_SD.mean(axis=0), straight_SD.min(axis=0), roughness_SD.max(axis=0), roughness_SD.mean(axis=0),
        apart_D, np.sort(jointly_D)[-3:], np.sort(framed_D)[-3:], np.log(1e-3 + np.sort(framed_D)[-3:]),
    ]  # fmt: skip
    return np.concatenate(found).astype(np.float32)


def residual_features(picture: Pixels) -> Array:
    """Histograms, moments and periodicity of high-pass residuals, and the spectrum, of luma and chroma at full size.

    From the middle 256 x 256 pixels at most; nothing is resized, which would take away what is looked for.
    """
    height, width = picture.shape[:2]
    top, left = max(0, (height - _LARGEST_CROP) // 2), max(0, (width - _LARGEST_CROP) // 2)
    crop = picture[top : top + _LARGEST_CROP, left : left + _LARGEST_CROP].astype(np.float32)
    red, green, blue = (crop[:, :, channel] for channel in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    found = []
    for plane in (luma, red - green, blue - green):
        for residual in _residuals(plane):
            found += _residual_statistics(residual)
    return np.array([*found, *_spectrum(luma)], np.float32)


def _residuals(plane: Array) -> list[Array]:
    """First and second differences both ways, and what a 3 x 3 prediction leaves over."""
    padded = np.pad(plane, 2, mode="reflect") if min(plane.shape) > 2 else np.pad(plane, 2, mode="edge")
    core = padded[1:-1, 1:-1]
    across, down = padded[1:-1, 2:] - core, padded[2:, 1:-1] - core
    second_across = padded[1:-1, 2:] - 2 * core + padded[1:-1, :-2]
    second_down = padded[2:, 1:-1] - 2 * core + padded[:-2, 1:-1]
    corners = padded[2:, 2:] + padded[:-2, :-2] + padded[2:, :-2] + padded[:-2, 2:]
    return [
        across,
        down,
        second_across + second_down,
        4 * core + corners - 2 * (second_across + second_down + 4 * core),
    ]


def _residual_statistics(residual: Array) -> list[float]:
    size = np.abs(residual)
    spread = float(residual.std()) + 1e-3
    shares = [float((size <= limit).mean()) for limit in (0.5, 1.5, 3.5, 7.5, 15.5, 40.0)]
    kurtosis = float(np.log1p(((residual - residual.mean()) ** 4).mean() / spread**4))
    return [*shares, float(np.log(spread)), float(np.log(size.mean() + 1e-3)), kurtosis, *_periodicity(size)]


def _periodicity(size: Array) -> list[float]:
    """How unevenly the residual falls on pixels by their place in blocks of 2 and of 8: upsampling and JPEG show here."""
    found = []
    for period in (2, 8):
        height, width = (side // period * period for side in size.shape)
        if not height or not width:
            found.append(0.0)
            continue
        blocks = size[:height, :width].reshape(height // period, period, width // period, period).mean(axis=(0, 2))
        found.append(float(blocks.std() / (blocks.mean() + 1e-2)))
    return found


def _spectrum(luma: Array, num_bins: int = 16) -> list[float]:
    """Log power by radial frequency, its mean taken off: the shape, not the contrast."""
    height, width = luma.shape
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    power = np.abs(np.fft.fft2((luma - luma.mean()) * window)) ** 2
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    bins = np.minimum((radius / 0.5 * num_bins).astype(int), num_bins - 1)
    counts = np.maximum(np.bincount(bins.ravel(), minlength=num_bins), 1)
    log_power = np.log(np.bincount(bins.ravel(), power.ravel(), minlength=num_bins) / counts + 1.0)
    return [float(value) for value in log_power - log_power.mean()]
