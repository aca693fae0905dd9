"""Histograms: every value is drawn once, on its side of the limit."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from pleinair.pages import histogram


def bars(text: str) -> dict[str, list[ElementTree.Element]]:
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", text, re.DOTALL).group(0))  # type: ignore[union-attr]
    return {colour: [rect for rect in svg.iter("rect") if rect.get("class") == colour] for colour in ("c0", "c1")}


def test_values_beyond_the_limit_have_another_colour_and_are_counted() -> None:
    values = np.array([0.1, 0.1, 0.5, 0.9, 0.95])
    text = histogram(values, low=0, high=1, name="noto", marks=[0.8], dropped=lambda some: some > 0.8)
    drawn = bars(text)
    assert "noto: 5, beyond the limit 2" in text
    assert (len(drawn["c0"]), len(drawn["c1"])) == (4, 2)
    heights = [float(rect.get("height", 0)) for rect in drawn["c0"]]
    assert max(heights) == heights[0]
    (line,) = re.findall(r'<line x1="([\d.]+)"[^>]*stroke:var\(--ink\)', text)
    assert all(float(rect.get("x", 0)) > float(line) for rect in drawn["c1"])


def test_small_values_of_a_logarithmic_axis_are_drawn_at_its_begin() -> None:
    drawn = bars(histogram(np.array([0.0, 10.0, 1000.0]), low=0, high=1000, name="x", logarithmic=True))
    assert drawn["c0"][0].get("x") == "56.0"
    assert len(drawn["c0"]) == 3


def test_a_histogram_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a histogram from 1 to 1 has no width: give a high above the low"):
        histogram(np.array([1.0]), low=1, high=1, name="x")
