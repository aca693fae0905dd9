"""Plots as inline SVG: lines over a shared x axis, and intervals beside their floor and ceiling.

Colours come from the page's CSS variables, so that a plot follows the light and the dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pleinair.pages.html import Html, element, join

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 14, 42
NUM_COLOURS = 6
MAX_POINTS = 600

Values = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a plot: x must not decrease; values that are not finite break the line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear or logarithmic map from values to pixels, with its ticks."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def place(self, values: Values) -> Values:
        """The pixel of each value."""
        low, high = self.scaled(np.array([self.low, self.high]))
        along: Values = (self.scaled(values) - low) / (high - low)
        return self.start + along * (self.stop - self.start)

    def scaled(self, values: Values) -> Values:
        """The values, or their logarithms."""
        return np.log10(values) if self.logarithmic else values


def line_plot(series: Sequence[Series], *, x_label: str, y_label: str, logarithmic: bool = False) -> Html:
    """The series as lines, each with its name at the legend. `logarithmic` applies to y.

    Raises ValueError when there is nothing finite to draw, or a value <= 0 on a logarithmic axis.
    """
    points = [finite_points(one) for one in series]
    x = np.concatenate([x for x, _ in points] or [np.zeros(0)])
    y = np.concatenate([y for _, y in points] or [np.zeros(0)])
    if not np.isfinite(y).any():
        raise ValueError(f"the plot of '{y_label}' has no finite value: leave the plot out")
    if logarithmic and np.nanmin(y) <= 0:
        raise ValueError(f"'{y_label}' reaches {np.nanmin(y)}: a logarithmic axis takes values above 0")
    across = Axis(low=float(x.min()), high=float(x.max()) + (x.min() == x.max()), start=LEFT, stop=WIDTH - RIGHT)
    up = value_axis(float(np.nanmin(y)), float(np.nanmax(y)), logarithmic)
    lines = (
        draw_line(x, y, across, up, index, one.name)
        for index, (one, (x, y)) in enumerate(zip(series, points, strict=True))
    )
    drawing = element(
        "svg",
        draw_frame(across, up, x_label, y_label),
        *lines,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{y_label} over {x_label}",
    )
    return element("figure", drawing, plot_legend([one.name for one in series]), class_="plot")


def finite_points(series: Series) -> tuple[Values, Values]:
    """The series as arrays, thinned to MAX_POINTS by averaging runs of neighbours; infinities become NaN."""
    x, y = np.asarray(series.x, dtype=np.float64), np.asarray(series.y, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"the series '{series.name}' has {x.size} x and {y.size} y values: give one y for each x")
    y = np.where(np.isfinite(y), y, np.nan)
    if x.size <= MAX_POINTS:
        return x, y
    edges = np.linspace(0, x.size, MAX_POINTS + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, x.size))
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def value_axis(low: float, high: float, logarithmic: bool) -> Axis:
    """The vertical axis: rounded outwards to ticks, with some air when all values are equal."""
    if logarithmic:
        return Axis(
            low=low * 0.95, high=max(high, low * 1.01) * 1.05, start=HEIGHT - BOTTOM, stop=TOP, logarithmic=True
        )
    step = tick_step((high - low) or abs(high) or 1.0)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return Axis(low=low, high=high if high > low else low + step, start=HEIGHT - BOTTOM, stop=TOP)


def tick_step(span: float) -> float:
    """The round step (1, 2 or 5 times a power of ten) that cuts a span in about five."""
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor * 5.5 >= span)


def ticks(axis: Axis) -> Values:
    """The values at which an axis is labelled: round steps, or on a logarithmic axis 1, 2 and 5 in each decade."""
    if not axis.logarithmic:
        step = tick_step(axis.high - axis.low)
        first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
        return np.arange(first, last + 1) * step
    decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    marks = np.array([10.0**power * factor for power in decades for factor in (1, 2, 5)])
    inside = marks[(marks >= axis.low) & (marks <= axis.high)]
    return inside if inside.size >= 2 else np.array([axis.low, math.sqrt(axis.low * axis.high), axis.high])


def draw_frame(across: Axis, up: Axis, x_label: str, y_label: str) -> Html:
    """Rules, tick labels and axis names."""
    rules = [
        part
        for value, y in zip(ticks(up), up.place(ticks(up)), strict=True)
        for part in (
            element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="rule"),
            element("text", short(value), x=LEFT - 8, y=f"{y + 4:.1f}", class_="end"),
        )
    ]
    below = [
        element("text", short(value), x=f"{x:.1f}", y=HEIGHT - BOTTOM + 18, class_="middle")
        for value, x in zip(ticks(across), across.place(ticks(across)), strict=True)
    ]
    names = [
        element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, class_="middle name"),
        element("text", y_label, x=-(TOP + HEIGHT - BOTTOM) / 2, y=14, class_="middle name", transform="rotate(-90)"),
    ]
    return join([*rules, *below, *names])


def draw_line(x: Values, y: Values, across: Axis, up: Axis, index: int, name: str) -> Html:
    """One series as a path that lifts the pen at missing values."""
    pen_down = False
    strokes: list[str] = []
    for at_x, at_y in zip(across.place(x), up.place(y), strict=True):
        if math.isfinite(at_y):
            strokes.append(f"{'L' if pen_down else 'M'}{at_x:.1f} {at_y:.1f}")
        pen_down = math.isfinite(at_y)
    return element("path", d="".join(strokes), class_=f"line c{index % NUM_COLOURS}", aria_label=name)


def plot_legend(names: Sequence[str]) -> Html:
    """The names beside their colours; nothing for a single series."""
    if len(names) < 2:
        return Html("")
    keys = (
        element("span", element("i", class_=f"key c{index % NUM_COLOURS}"), name) for index, name in enumerate(names)
    )
    return element("figcaption", *keys)


def interval_bar(value: float, interval: tuple[float, float], floor: float | None, ceiling: float | None) -> Html:
    """A value in [0, 1] as a bar with its interval, and ticks for floor and ceiling."""
    marks = [element("rect", x=0, y=5, width=f"{100 * value:.2f}%", height=6, rx=1, class_="bar")]
    marks += [
        element("line", x1=f"{100 * at:.2f}%", x2=f"{100 * at:.2f}%", y1=1, y2=15, class_=kind)
        for at, kind in ((floor, "floor"), (ceiling, "ceiling"))
        if at is not None
    ]
    low, high = (f"{100 * end:.2f}%" for end in interval)
    whisker = element("line", x1=low, x2=high, y1=8, y2=8, class_="whisker")
    track = element("rect", x=0, y=5, width="100%", height=6, rx=1, class_="track")
    label = f"{value:.2f}, interval {interval[0]:.2f} to {interval[1]:.2f}"
    return element("svg", track, *marks, whisker, class_="interval", role="img", aria_label=label)


def short(value: float) -> str:
    """A tick label: 1200 -> 1.2k, 0.050 -> 0.05."""
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.4g}"
