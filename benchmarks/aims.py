"""What benchmarks are to reach, and their figures beside it in a README: the table is written from results.json.

    results.json, Aims --table--> rows --between two marks--> README.md

A row names a figure, or all whose names look alike (`mix_keys_per_s*`); whether it meets its aim is computed, so a page cannot
say otherwise than the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from benchmarks.krablet.rounds import Result

END = "<!-- end of figures -->"
Columns = Mapping[str, Callable[[Result], str]]
"""More of them, by their heads."""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A figure and what it is to reach."""

    what: str
    name: str
    """As in results.json; `*` stands for any text."""
    of: Literal["value", "ratio"] = "value"
    """Which of the two the bound is for."""
    least: float | None = None
    most: float | None = None
    note: str = ""
    """Why it is missed, or what to know; figures are not repeated here, they would drift."""

    def __post_init__(self) -> None:
        if "*" in self.name and (self.least is not None or self.most is not None):
            raise ValueError(f"{self.name} stands for several figures: a bound needs one name")

    def met(self, row: Mapping[str, Any]) -> bool | None:
        """Whether a figure reaches it; None where nothing is to be reached."""
        if self.least is None and self.most is None:
            return None
        found = row[self.of]
        if found is None:
            return False
        return (self.least is None or found >= self.least) and (self.most is None or found <= self.most)

    @property
    def bound(self) -> str:
        """`at least 6 x`, and so on."""
        times = " x" if self.of == "ratio" else ""
        words = [("at least", self.least), ("at most", self.most)]
        return ", ".join(f"{word} {number(bound)}{times}" for word, bound in words if bound is not None)


def number(value: float) -> str:
    """Three digits, whole numbers with thousands."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def table(results: Sequence[Result], aims: Sequence[Aim], more: Columns | None = None) -> str:
    """The Markdown table; a figure nobody has measured yet says so."""
    heads = ["what", "name", "value", "beside", "ratio", "aim", "met", *(more or {})]
    lines = [cells for aim in aims for cells in _rows(aim, results, more or {})]
    return "\n".join([_line(heads), "|" + "---|" * len(heads), *map(_line, lines)])


def _rows(aim: Aim, results: Sequence[Result], more: Columns) -> list[list[str]]:
    rows = [row for row in results if fnmatchcase(row["name"], aim.name)]
    if not rows:
        return [[aim.what, f"`{aim.name}`", "not measured", "", "", aim.bound, aim.note, *("" for _ in more)]]
    return [[*_cells(aim, row), *(tell(row) for tell in more.values())] for row in rows]


def _cells(aim: Aim, row: Result) -> list[str]:
    ratio = "" if row["ratio"] is None else f"{number(row['ratio'])} x"
    verdict = {True: "yes", False: "**no**", None: ""}[aim.met(row)]
    said = ": ".join(filter(None, [verdict, aim.note]))
    shown = f"{number(row['value'])} {row['unit']}".strip()
    return [aim.what, f"`{row['name']}`", shown, row["peer"], ratio, aim.bound, said]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def between(page: str, begin: str, text: str) -> str:
    """The page with this text between a mark and `END`. Raises ValueError where one is missing."""
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"the page lacks {END if found else begin}: put both marks where the figures belong")
    return f"{before}{begin}\n{text}\n{END}{after}"
