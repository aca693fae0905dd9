"""The page around everything: one HTML file that asks no other address for anything.

    page(title, lead, sections) -> text        write_page(path, text): appears by rename, whole or not at all

Its content policy forbids requests and scripts, so that a page made from strangers' pictures and captions stays inert.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pleinair.pages.html import Html, Node, element, join

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
FOLDER_POLICY = "default-src 'none'; img-src 'self' data:; style-src 'self'"
"""Of a page in a folder of pages, which share their style sheet and show pictures beside them."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A headed part of a page. Its anchor is made from the heading; `lead` says in a sentence what one sees."""

    heading: str
    body: Html
    lead: Node | None = None

    @property
    def anchor(self) -> str:
        """The heading as an identifier: `Is it memory?` -> `is-it-memory`."""
        return re.sub(r"[^a-z0-9]+", "-", self.heading.lower()).strip("-")


def page(
    title: str,
    opening: Html,
    sections: Sequence[Section],
    *,
    kicker: Node = "",
    footer: Node = "",
    sheet: str | None = None,
) -> str:
    """A whole HTML document. `opening` comes first, under the title and before the contents.

    `sheet` is the address of a style sheet in the page's folder, in place of one inside; pictures may then be files there.
    """
    head = join(
        [
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("meta", http_equiv="Content-Security-Policy", content=POLICY if sheet is None else FOLDER_POLICY),
            element("title", title),
            element("style", Html(style_sheet())) if sheet is None else element("link", rel="stylesheet", href=sheet),
        ]
    )
    top = element("header", element("p", kicker, class_="kicker") if kicker else "", element("h1", title))
    main = element("main", opening, *(draw_section(one) for one in sections))
    body = element("body", top, contents(sections), main, element("footer", footer))
    return f'<!doctype html>\n<html lang="en">{element("head", head)}{body}</html>\n'


def write_page(path: Path, text: str) -> None:
    """Write a page so that it is there whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def style_sheet() -> str:
    """The CSS of every page."""
    return files("pleinair.pages").joinpath("page.css").read_text(encoding="utf-8")


def contents(sections: Sequence[Section]) -> Html:
    """Links to the sections."""
    links = (element("a", one.heading, href=f"#{one.anchor}") for one in sections)
    return element("nav", *links, aria_label="contents") if sections else Html("")


def draw_section(section: Section) -> Html:
    """A section with its heading linked to itself."""
    heading = element("h2", element("a", section.heading, href=f"#{section.anchor}"))
    lead = element("p", section.lead, class_="lead") if section.lead is not None else Html("")
    return element("section", heading, lead, section.body, id=section.anchor)


def headline_figures(figures: Sequence[tuple[str, str, Node]]) -> Html:
    """A few large numbers: each is (value, what it is, note)."""
    tiles = (
        element("div", element("b", value), element("span", name), element("small", note))
        for value, name, note in figures
    )
    return element("div", *tiles, class_="figures")


def beside(aside: Html, main: Html) -> Html:
    """A narrow part that stays in view beside a long one; above it where the screen is narrow."""
    return element("div", element("aside", aside), element("div", main), class_="beside")


def folded(summary: Node, body: Html) -> Html:
    """A part that opens when asked."""
    return element("details", element("summary", summary), body)


def code(text: str) -> Html:
    """Text as it stands, in a fixed-width face."""
    return element("pre", element("code", text))
