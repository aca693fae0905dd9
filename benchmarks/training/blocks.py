"""Parts of pages that are written from results.json, so that a page cannot say otherwise than the figures.

    results.json -> Block.text -> docs/checkpoints.md between two marks        Drawing.draw -> docs/images/*.svg

A benchmark's module names its own (`BLOCKS`, `DRAWINGS`); `figures` writes all of them, and a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.aims import between, number
from benchmarks.krablet.rounds import Result

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a page."""

    page: str
    """From the repository's root."""
    name: str
    text: Callable[[Sequence[Result]], str]

    @property
    def begin(self) -> str:
        """The mark before it."""
        return f"<!-- figures of {self.name}: written by python -m benchmarks.training.figures -->"

    def written(self, page: str, results: Sequence[Result]) -> str:
        """The page with this part anew. Raises ValueError where a mark is missing."""
        return between(page, self.begin, self.text(results))


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A whole SVG file."""

    file: str
    """From the repository's root."""
    draw: Callable[[Sequence[Result]], str]


def row_of(results: Sequence[Result], name: str) -> Result:
    """The figure of that name. Raises ValueError where nobody has measured it."""
    found = next((row for row in results if row["name"] == name), None)
    if found is None:
        raise ValueError(f"results.json has no {name}: run its benchmark, or take it out of the page")
    return found


def quoted(results: Sequence[Result], told: Sequence[tuple[str, str]]) -> str:
    """A small table of figures for a page: what, as (words, name), its value and what it is held against."""
    lines = ["| what | value | beside | ratio | commit |", "|---|---|---|---|---|"]
    for what, name in told:
        row = row_of(results, name)
        ratio = "" if row["ratio"] is None else f"{number(row['ratio'])} x"
        lines.append(f"| {what} | {number(row['value'])} {row['unit']} | {row['peer']} | {ratio} | {row['commit']} |")
    return "\n".join(lines)
