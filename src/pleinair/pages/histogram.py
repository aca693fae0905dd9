"""A histogram as inline SVG: how many values fall where, on which side of a limit.

Heights are logarithmic, because what a limit drops is a few among very many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pleinair.pages.html import Html, element
from pleinair.pages.plot import Axis, short, ticks

WIDTH, HEIGHT = 640, 150
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 26, 24
NUM_BINS = 80
TICKS_APART = 44
SMALLEST = 1e-3
"""Where a logarithmic axis begins at the latest; smaller values are counted there."""

Values = npt.NDArray[np.floating[Any]]


def histogram(
    values: Values,
    *,
    low: float,
    high: float,
    name: str,
    marks: Sequence[float] = (),
    dropped: Callable[[Values], npt.NDArray[np.bool_]] = lambda values: np.zeros(values.shape, dtype=bool),
    logarithmic: bool = False,
) -> Html:
    """The values between `low` and `high` as bars, those that are `dropped` in another colour, a line at each mark.

    `logarithmic` applies to the values. Raises ValueError when `high` is not above `low`.
    """
    if high <= low:
        raise ValueError(f"a histogram from {low} to {high} has no width: give a high above the low")
    low = max(low, SMALLEST) if logarithmic else low
    across = Axis(low=low, high=max(high, low * 1.001), start=LEFT, stop=WIDTH - RIGHT, logarithmic=logarithmic)
    edges = np.linspace(LEFT, WIDTH - RIGHT, NUM_BINS + 1)
    places = across.place(np.maximum(values, low).astype(np.float64))
    beyond = dropped(values)
    kept, gone = (np.histogram(places[side], edges)[0] for side in (~beyond, beyond))
    up = Axis(low=1, high=max(2.0, float((kept + gone).max())), start=HEIGHT - BOTTOM, stop=TOP, logarithmic=True)
    drawing = element(
        "svg",
        element(
            "text", f"{name}: {values.size:,}, beyond the limit {int(beyond.sum()):,}", x=LEFT, y=14, class_="name"
        ),
        *_frame(across, up),
        *_bars(edges, kept, gone, up),
        *(_mark(float(across.place(np.array([max(mark, low)]))[0]), mark) for mark in marks),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"histogram of {name}",
    )
    return element("figure", drawing, class_="plot")


def _bars(edges: Values, kept: Values, gone: Values, up: Axis) -> list[Html]:
    """One bar a bin; where a bin holds both sides, the dropped ones stand before the others."""
    drawn = []
    for colour, counts in ((0, kept + gone), (1, gone)):
        tops = up.place(np.maximum(counts, 1).astype(np.float64)) - 2  # one picture is seen as well
        drawn += [
            element(
                "rect",
                x=f"{left:.1f}",
                y=f"{top:.1f}",
                width=f"{edges[1] - edges[0] - 0.6:.1f}",
                height=f"{HEIGHT - BOTTOM - top:.1f}",
                class_=f"c{colour}",
                style="fill:var(--colour)",
            )
            for left, top, count in zip(edges, tops, counts, strict=False)
            if count
        ]
    return drawn


def _frame(across: Axis, up: Axis) -> list[Html]:
    base = HEIGHT - BOTTOM
    beside = [
        element("text", short(value), x=LEFT - 8, y=f"{y + 4:.1f}", class_="end")
        for value, y in ((1, base), (up.high, TOP + 4))
    ]
    below = [
        element("text", short(value), x=f"{x:.1f}", y=base + 17, class_="middle")
        for value, x in _apart(ticks(across), across)
    ]
    return [element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="rule"), *beside, *below]


def _apart(values: Values, across: Axis) -> Iterator[tuple[float, float]]:
    """Ticks and their places, those left out that would stand on the one before."""
    last = float(-TICKS_APART)
    for value, x in zip(values, across.place(values), strict=True):
        if x - last >= TICKS_APART and x <= WIDTH - RIGHT - 10:
            yield float(value), float(x)
            last = float(x)


def _mark(x: float, value: float) -> Html:
    line = element(
        "line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=TOP - 6, y2=HEIGHT - BOTTOM, style="stroke:var(--ink);stroke-width:1.5"
    )
    beside = "end" if x > WIDTH / 2 else None
    label = element("text", short(value), x=f"{x + (-4 if beside else 4):.1f}", y=TOP + 4, class_=beside)
    return element("g", line, label)
