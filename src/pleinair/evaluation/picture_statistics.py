"""Numbers of single pictures, without a network: how much of a picture is fine detail, how colourful it is.

What post-training does to the look of pictures shows here first: few-step students blur or ring, preference training
sharpens, guidance saturates. None of it is better when larger; all of it is to be near the value of real pictures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Pictures = npt.NDArray[np.uint8]
"""(N, H, W, 3)."""
Floats = npt.NDArray[np.floating[Any]]
HIGH_FREQUENCY = 0.25
"""Cycles per pixel, from where detail counts as fine: half of what a grid can hold."""
LUMA = np.array([0.2126, 0.7152, 0.0722])


def high_frequency_share(pictures_NHWC: Pictures, cutoff: float = HIGH_FREQUENCY) -> Floats:
    """(N,) share of the brightness's energy, mean left out, at `cutoff` cycles per pixel or more; 0 for a flat picture.

    The frequency is radial, so corners of the spectrum count up to 0.71.
    """
    luma_NHW = pictures_NHWC.astype(np.float64) @ LUMA
    energy_NHW = np.abs(np.fft.fft2(luma_NHW - luma_NHW.mean((1, 2), keepdims=True))) ** 2
    rows, columns = (np.fft.fftfreq(size) for size in luma_NHW.shape[1:])
    fine_HW = np.hypot(rows[:, None], columns[None]) >= cutoff
    total_N = energy_NHW.sum((1, 2))
    shares: Floats = np.divide(energy_NHW[:, fine_HW].sum(1), total_N, out=np.zeros_like(total_N), where=total_N > 1e-6)
    return shares


def saturation(pictures_NHWC: Pictures) -> Floats:
    """(N,) mean of HSV's S over a picture, 0..1: (max - min) / max of a pixel's channels, 0 for black."""
    brightest_NHW = pictures_NHWC.max(-1).astype(np.float64)
    spread_NHW = brightest_NHW - pictures_NHWC.min(-1)
    pixels_NHW = np.divide(spread_NHW, brightest_NHW, out=np.zeros_like(spread_NHW), where=brightest_NHW > 0)
    means: Floats = pixels_NHW.mean((1, 2))
    return means
