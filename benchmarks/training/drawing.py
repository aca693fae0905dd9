"""Figures as SVG files that stand alone, for pages that show pictures but no styles of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pleinair.pages.html import Html, element, join
from pleinair.pages.plot import Axis, Series, draw_line

WIDTH, LEFT, RIGHT = 720, 66, 34
COLOURS = ("#2c5d8f", "#c8451b", "#3f7d54", "#75569b", "#a9790e")
STYLE = (
    "text{fill:#6c675e;font:13px system-ui,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}.end{text-anchor:end}"
    ".middle{text-anchor:middle}.rule{stroke:#e4dfd5}.line{fill:none;stroke-width:2}.faint{stroke:#a19a8d;"
    "stroke-dasharray:3 4;fill:none}"
    + "".join(f".c{index}{{stroke:{colour}}}.dot{index}{{fill:{colour}}}" for index, colour in enumerate(COLOURS))
)
Ticks = Mapping[float, str]
"""Words at values."""


def svg(height: int, label: str, *parts: Html) -> str:
    """A whole file on white paper."""
    drawing = element(
        "svg",
        element("style", Html(STYLE)),
        element("rect", width=WIDTH, height=height, fill="#ffffff"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        aria_label=label,
    )
    return drawing.replace("><", ">\n<") + "\n"


def across(low: float, high: float, *, logarithmic: bool = False) -> Axis:
    """The axis from left to right."""
    return Axis(low=low, high=high, start=LEFT, stop=WIDTH - RIGHT, logarithmic=logarithmic)


def frame(x: Axis, y: Axis, x_ticks: Ticks, y_ticks: Ticks, x_label: str, y_label: str) -> Html:
    """Rules with their values, and the axes' names."""
    parts = []
    for place, word in zip(y.place(np.array([*y_ticks])), y_ticks.values(), strict=True):
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{place:.1f}", y2=f"{place:.1f}", class_="rule"))
        parts.append(element("text", word, x=LEFT - 8, y=f"{place + 4:.1f}", class_="end"))
    for place, word in zip(x.place(np.array([*x_ticks])), x_ticks.values(), strict=True):
        parts.append(element("text", word, x=f"{place:.1f}", y=f"{y.start + 20:.0f}", class_="middle"))
    middle = (y.start + y.stop) / 2
    parts.append(element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=f"{y.start + 42:.0f}", class_="middle"))
    parts.append(element("text", y_label, transform=f"translate(16 {middle:.0f}) rotate(-90)", class_="middle"))
    return join(parts)


def legend(names: Sequence[str], top: float) -> Html:
    """Names beside their colours, two in a row."""
    parts = []
    for index, name in enumerate(names):
        x, y = LEFT + (index % 2) * (WIDTH - LEFT) / 2, top + 22 * (index // 2)
        parts.append(element("circle", cx=f"{x + 5:.0f}", cy=f"{y - 4:.0f}", r=5, class_=f"dot{index}"))
        parts.append(element("text", name, x=f"{x + 17:.0f}", y=f"{y:.0f}"))
    return join(parts)


def line(series: Series, index: int, x: Axis, y: Axis) -> Html:
    """One series with a dot at each of its values."""
    drawn = draw_line(np.asarray(series.x, float), np.asarray(series.y, float), x, y, index, series.name)
    points = list(zip(series.x, series.y, strict=True))
    return join([drawn, *(dot(at_x, at_y, index, x, y) for at_x, at_y in points)])


def dot(at_x: float, at_y: float, index: int, x: Axis, y: Axis) -> Html:
    """One value."""
    place_x, place_y = x.place(np.array([at_x]))[0], y.place(np.array([at_y]))[0]
    return element("circle", cx=f"{place_x:.1f}", cy=f"{place_y:.1f}", r=5, class_=f"dot{index}")


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of the points that no other is at least as small as in both, from left to right."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(set(points)):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best


def steps(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> Html:
    """A faint staircase through a frontier: what is to its upper right is beaten by a corner of it."""
    places = list(
        zip(x.place(np.array([p for p, _ in points])), y.place(np.array([p for _, p in points])), strict=True)
    )
    strokes = [f"M{places[0][0]:.1f} {y.stop}", f"V{places[0][1]:.1f}"]
    strokes += [f"H{at_x:.1f}V{at_y:.1f}" for at_x, at_y in places[1:]]
    return element("path", d="".join(strokes) + f"H{x.stop}", class_="faint")
