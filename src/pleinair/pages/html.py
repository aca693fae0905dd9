"""HTML from Python values, escaped by type: a plain `str` is text and is escaped, an `Html` is markup and is not.

Elements are built by one function, `element("td", "a < b", class_="number")`. Attribute names follow
Python: `class_` becomes `class`, `aria_label` becomes `aria-label`; None and False leave the attribute out, True
writes it bare.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID_TAGS = frozenset({"br", "col", "circle", "hr", "img", "line", "link", "meta", "path", "polyline", "rect"})


class Html(str):
    """Markup that is already escaped."""

    __slots__ = ()


Node = str | Html | int | float
Attribute = str | int | float | bool | None


def escape(node: Node) -> Html:
    """The markup of one node: `Html` as it is, anything else as escaped text."""
    return node if isinstance(node, Html) else Html(html.escape(str(node)))


def join(nodes: Iterable[Node], separator: str = "") -> Html:
    """The nodes one after another; `separator` is written as it stands."""
    return Html(separator.join(escape(node) for node in nodes))


def element(tag: str, *children: Node, **attributes: Attribute) -> Html:
    """One element with its children and attributes."""
    written = "".join(write_attribute(name, value) for name, value in attributes.items())
    if tag in VOID_TAGS:
        return Html(f"<{tag}{written}>" if tag in {"br", "col", "hr", "img", "link", "meta"} else f"<{tag}{written}/>")
    return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def write_attribute(name: str, value: Attribute) -> str:
    """` name="value"`, ` name` for True, nothing for None or False."""
    if value is None or value is False:
        return ""
    spelled = name.rstrip("_").replace("_", "-")
    return f" {spelled}" if value is True else f' {spelled}="{html.escape(str(value))}"'
