"""Filters: a measure, a limit, and what one says when a picture is on the wrong side. Pure functions of columns.

    measure (a column of `images`)  +  limit (a field of ProbeLimits or PixelLimits)  ->  keep | drop, reason, value

Nothing here opens a picture. What is not known (NULL) speaks against no picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Measures = Mapping[str, Any]
"""Columns by name: of one picture numbers or None, of many pictures arrays of float64 with NaN for NULL."""


@dataclass(frozen=True)
class Verdict:
    """What a filter thinks of a picture. The reason is `kind: value and limit`, empty for a kept picture."""

    keep: bool
    reason: str = ""
    value: float | None = None


KEEP = Verdict(True)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One measure beside one limit."""

    kind: str
    """First word of the reason."""
    stage: str
    """`probe` or `pixels`: whose limits and verdict."""
    measure: str
    """A column, `{resolution}` standing for the resolution stage, or what `with_sizes` derives from columns."""
    limit: str
    """Field of the stage's limits."""
    under: bool = False
    """Drops what is under the limit, not what is over it."""
    off: float = float("inf")
    """The limit at which nothing is dropped."""
    say: Callable[[float, float, Measures], str] | None = None
    """Reason after the kind, from value, limit and the picture's other measures."""
    logarithmic: bool = False
    """The measure spans decades."""

    def column(self, resolution: int) -> str:
        """Name of the measure at a resolution stage."""
        return self.measure.format(resolution=resolution)

    def fails(self, values: Any, limits: Any) -> Any:
        """Whether values are beyond the limits; one or many."""
        # Columns are `real`: a share that equals its limit must not pass it by being rounded on its way to the table.
        return as_stored(values) < as_stored(limits) if self.under else as_stored(values) > as_stored(limits)

    def reason(self, value: float, limit: float, measures: Measures) -> str:
        """Why the picture goes."""
        words = f"{value:.3f}, {'under' if self.under else 'over'} {limit:g}"
        return f"{self.kind}: {self.say(value, limit, measures) if self.say else words}"


def as_stored(values: Any) -> Any:
    """Numbers as a `real` column gives them back; whole numbers to 2^24 and round millions stay what they are."""
    return np.asarray(values, dtype=np.float32)


def _say_bomb(pixels: float, limit: float, measures: Measures) -> str:
    size = f"{measures['width']:.0f} x {measures['height']:.0f}"
    return f"{size} is {pixels / 1e6:.0f} megapixels, over {limit / 1e6:.0f}; scale it down"


def _say_small(side: float, limit: float, measures: Measures) -> str:
    return f"{measures['width']:.0f} x {measures['height']:.0f}, under {limit:.0f} pixels"


PROBE_FILTERS = (
    Filter(kind="bomb", stage="probe", measure="num_pixels", limit="max_pixels", say=_say_bomb, logarithmic=True),
    Filter(
        kind="small",
        stage="probe",
        measure="short_side",
        limit="min_side",
        under=True,
        off=1,
        say=_say_small,
        logarithmic=True,
    ),
    Filter(
        kind="aspect",
        stage="probe",
        measure="aspect",
        limit="max_aspect",
        say=lambda value, limit, _: f"{value:.1f}, over {limit:g}",
        logarithmic=True,
    ),
)


def _whole(value: float, limit: float, _: Measures) -> str:
    return f"{value:.0f}, over {limit:g}"


PIXEL_FILTERS = (
    Filter(kind="entropy", stage="pixels", measure="entropy", limit="min_entropy", under=True, off=0.0),
    Filter(kind="white", stage="pixels", measure="white_ratio", limit="max_white_ratio", off=1.0),
    Filter(kind="black", stage="pixels", measure="black_ratio", limit="max_black_ratio", off=1.0),
    Filter(kind="flat border", stage="pixels", measure="border_flatness", limit="max_border_flatness", off=1.0),
    Filter(kind="bars", stage="pixels", measure="bar_flatness_v1", limit="max_bar_flatness", off=1.0),
    Filter(kind="flat background", stage="pixels", measure="flat_share_v1", limit="max_flat_share", off=1.0),
    Filter(kind="text", stage="pixels", measure="text_density_v1", limit="max_text_density", off=1.0),
    Filter(kind="read text", stage="pixels", measure="ocr_share", limit="max_ocr_share", off=1.0),
    Filter(
        kind="noise",
        stage="pixels",
        measure="laplacian_v1",
        limit="max_laplacian",
        off=1_040_400.0,
        say=_whole,
        logarithmic=True,
    ),
    Filter(
        kind="nothing sharp",
        stage="pixels",
        measure="laplacian_v1",
        limit="min_laplacian",
        under=True,
        off=0.0,
        logarithmic=True,
    ),
    Filter(kind="complex", stage="pixels", measure="complexity_{resolution}_v1", limit="max_complexity", off=1.0),
)
"""In the order in which they are asked; the first that fails gives the reason. Small print comes before the noise it also is."""

FILTERS = (*PROBE_FILTERS, *PIXEL_FILTERS)


def with_sizes(measures: Measures) -> dict[str, Any]:
    """The measures and, from `width` and `height`, `num_pixels` and `short_side`."""
    width, height = measures["width"], measures["height"]
    return {**measures, "num_pixels": width * height, "short_side": np.minimum(width, height)}


def judge(filters: Sequence[Filter], measures: Measures, limits: object, resolution: int) -> Verdict:
    """The verdict of the first filter that speaks against a picture. `limits` are those of the filters' stage."""
    for one in filters:
        value, limit = measures.get(one.column(resolution)), getattr(limits, one.limit)
        if value is not None and one.fails(value, limit):
            return Verdict(False, one.reason(value, limit, measures), value)
    return KEEP


def first_failing(
    filters: Sequence[Filter], measures: Measures, limits: Mapping[str, NDArray[np.float64]], resolution: int
) -> NDArray[np.int64]:
    """For each of many pictures the place of the first filter against it, -1 where there is none.

    `limits` has, by field, the limit of each picture.
    """
    failing = np.stack([one.fails(measures[one.column(resolution)], limits[one.limit]) for one in filters])
    return np.where(failing.any(axis=0), failing.argmax(axis=0), -1)
