"""Tables: columns of text, numbers or pictures; a column of numbers is set flush right in tabular figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pleinair.pages.html import Html, Node, element, join

MISSING = "\u2013"


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Node]],
    *,
    caption: Node | None = None,
    number_columns: Sequence[str] | None = None,
) -> Html:
    """A table in its own scrolling frame, so that a phone scrolls the table and not the page.

    `number_columns` names the columns set flush right; by default those whose cells all are numbers.
    Raises ValueError when a row is longer or shorter than the columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"the row {list(row)!r} has {len(row)} cells for {len(columns)} columns: give one each")
    if number_columns is None:
        numeric = [bool(rows) and all(is_number(row[index]) for row in rows) for index in range(len(columns))]
    else:
        numeric = [name in number_columns for name in columns]
    head = element(
        "tr", *(cell("th", name, number, scope="col") for name, number in zip(columns, numeric, strict=True))
    )
    body = join(table_row(row, numeric) for row in rows)
    titled = element("caption", caption) if caption is not None else ""
    return element(
        "div",
        element("table", titled, element("thead", head), element("tbody", body)),
        class_="scroll",
        tabindex=0,
        role="group",
        aria_label="table",
    )


def facts(entries: Mapping[str, Node]) -> Html:
    """A definition list: short names with one value each."""
    pairs = (element("div", element("dt", name), element("dd", value)) for name, value in entries.items())
    return element("dl", *pairs, class_="facts")


def table_row(row: Sequence[Node], numeric: Sequence[bool]) -> Html:
    """One body row; the first cell heads it."""
    first = cell("th", row[0], numeric[0], scope="row")
    return element("tr", first, *(cell("td", node, number) for node, number in zip(row[1:], numeric[1:], strict=True)))


def cell(tag: str, node: Node, number: bool, scope: str | None = None) -> Html:
    """One cell; an empty one shows a dash."""
    return element(tag, MISSING if node == "" else node, class_="number" if number else None, scope=scope)


def is_number(node: Node) -> bool:
    """Whether a cell is a number or the text of one: `0.41`, `12,345`, `3.2x`, `87 %`, or a missing value."""
    if isinstance(node, int | float):
        return True
    text = str(node).strip().rstrip("x%s ").replace(",", "").removeprefix("-")
    return node in ("", MISSING) or text.replace(".", "", 1).isdigit()
