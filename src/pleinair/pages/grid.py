"""A grid of pictures: one row per subject, one column per condition, marks that the legend explains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pleinair.pages.html import Html, Node, element, join
from pleinair.pages.picture import Pixels, picture


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One picture of a grid; None as picture leaves a gap. `marked` draws the outline that the legend explains."""

    picture: bytes | Pixels | None
    alt: str = ""
    marked: bool = False
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """One row of a grid with its heading."""

    name: str
    cells: Sequence[GridCell]


def grid(columns: Sequence[str], rows: Sequence[GridRow], *, legend: Node | None = None) -> Html:
    """The grid; its headings stay in view while it scrolls. Raises ValueError when a row does not fit the columns."""
    for row in rows:
        if len(row.cells) != len(columns):
            raise ValueError(
                f"the row '{row.name}' has {len(row.cells)} cells for {len(columns)} columns: give one each"
            )
    head = element("tr", element("td"), *(element("th", breakable(name), scope="col") for name in columns))
    body = join(
        element("tr", element("th", row.name, scope="row"), *(grid_cell(cell) for cell in row.cells)) for row in rows
    )
    drawn = element("table", element("thead", head), element("tbody", body), class_="grid")
    explained = element("p", legend, class_="legend") if legend is not None else Html("")
    return join([explained, element("div", drawn, class_="scroll", tabindex=0, role="group", aria_label="pictures")])


def strip(cells: Sequence[GridCell]) -> Html:
    """Pictures in a line that wraps, each with its note beneath."""
    return element("div", *(figure(cell) for cell in cells), class_="strip")


def mark_swatch() -> Html:
    """The outline of marked cells, small, for a legend."""
    return element("span", class_="swatch", aria_hidden="true")


def grid_cell(cell: GridCell) -> Html:
    """One cell; the note shows when the pointer rests on it."""
    if cell.picture is None:
        return element("td", element("span", class_="gap", title=cell.note))
    shown = picture(cell.picture, cell.alt, title=cell.note)
    return element("td", shown, class_="marked" if cell.marked else None)


def figure(cell: GridCell) -> Html:
    """One picture with its note as caption."""
    shown = Html("") if cell.picture is None else picture(cell.picture, cell.alt)
    caption = element("figcaption", cell.note) if cell.note else Html("")
    return element("figure", shown, caption, class_="marked" if cell.marked else None)


def breakable(name: str) -> Html:
    """A name that may wrap after each hyphen."""
    return join(name.replace("-", "-\0").split("\0"), "<wbr>")
