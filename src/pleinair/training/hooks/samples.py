"""Numbers about what a run draws, every so many steps: high-frequency energy, and a reward that nobody trains on.

Preference training that goes wrong shows in pictures before it shows in losses: fine noise and oversharpened edges first. So
the share of energy at high frequencies is measured, and a *gold* reward, which no pair and no update has seen. Drawing and
reward are callables, as training knows neither text encoders nor judges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pleinair.pages.picture import Pixels
from pleinair.records.errors import ConfigError
from pleinair.training.engine import Run
from pleinair.training.hooks.validation import evaluating
from pleinair.training.records import StepRecord

DrawMany = Callable[[], Pixels]
"""Pictures (N, H, W, 3), from the same noise each time, drawn with the model as it is now."""
Gold = Callable[[Pixels], Mapping[str, float]]
"""Named numbers about them, higher for better."""
LUMINANCE = np.array([0.299, 0.587, 0.114])
HIGH = 0.25
"""Cycles per pixel from which a frequency counts as high: half of the highest that a row of pixels can hold."""


class Samples:
    """The hook: adds `samples/high_frequency` and `samples/<name>` of every number that `gold` gives.

    Every rank draws, as the weights may be spread over all of them; the last step is always measured.
    """

    def __init__(self, draw: DrawMany, every: int, gold: Gold | None = None) -> None:
        if every < 1:
            raise ConfigError(f"every is {every}: give a number of steps")
        self.draw, self.every, self.gold = draw, every, gold

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Draw and measure when due."""
        if (record.step + 1) % self.every and record.step + 1 != run.total_steps:
            return {}
        with evaluating(run.stage.model):
            pixels_NHWC = self.draw()
        found = {} if self.gold is None else self.gold(pixels_NHWC)
        shares_N = high_frequency_shares(pixels_NHWC)
        return {
            "samples/high_frequency": float(shares_N.mean()),
            **{f"samples/{name}": value for name, value in found.items()},
        }


def high_frequency_shares(pixels_NHWC: Pixels) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(N,) share of the energy of each picture's brightness, its mean left out, at `HIGH` cycles per pixel or above.

    A flat picture has 0. A Hann window keeps the seam between opposite edges from counting as one.
    """
    brightness_NHW = pixels_NHWC.astype(np.float64) @ LUMINANCE
    height, width = brightness_NHW.shape[1:]
    window_HW = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    centred_NHW = (brightness_NHW - brightness_NHW.mean((1, 2), keepdims=True)) * window_HW
    energy_NHW = np.abs(np.fft.fft2(centred_NHW)) ** 2
    energy_NHW[:, 0, 0] = 0.0
    radius_HW = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    total_N = energy_NHW.sum((1, 2))
    high_N = (energy_NHW * (radius_HW >= HIGH)).sum((1, 2))
    shares: np.ndarray[Any, np.dtype[np.float64]] = np.divide(
        high_N, total_N, out=np.zeros_like(high_N), where=total_N > 1e-6
    )
    return shares
