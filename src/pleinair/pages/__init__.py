"""Self-contained HTML pages: shell, tables, picture grids, plots. One file per page, no script, no outside request."""

from pleinair.pages.grid import GridCell, GridRow, grid, mark_swatch, strip
from pleinair.pages.histogram import histogram
from pleinair.pages.html import Html, Node, element, escape, join
from pleinair.pages.page import Section, beside, code, folded, headline_figures, page, style_sheet, write_page
from pleinair.pages.picture import Pixels, data_uri, encode_png, encode_webp, picture
from pleinair.pages.plot import Series, interval_bar, line_plot
from pleinair.pages.table import facts, table

__all__ = [
    "GridCell",
    "GridRow",
    "Html",
    "Node",
    "Pixels",
    "Section",
    "Series",
    "beside",
    "code",
    "data_uri",
    "element",
    "encode_png",
    "encode_webp",
    "escape",
    "facts",
    "folded",
    "grid",
    "headline_figures",
    "histogram",
    "interval_bar",
    "join",
    "line_plot",
    "mark_swatch",
    "page",
    "picture",
    "strip",
    "style_sheet",
    "table",
    "write_page",
]
