"""The page of a sheet: numbered pictures without scores, and the command that takes the answers."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from pleinair.curation.detectors.checks import Sheet
from pleinair.curation.pictures import decode
from pleinair.curation.sheets import licence_of, read_pictured
from pleinair.curation.store import ObjectStore
from pleinair.krablet import Table
from pleinair.pages import GridCell, Html, Section, code, page, strip, write_page
from pleinair.records.errors import SourceError

_SIDE = 160


def write_check_page(path: Path, sheet: Sheet, images: Table, store: ObjectStore) -> None:
    """Write the page, which appears by rename. It runs no script: answers are a command."""
    pictured = read_pictured(images, list(sheet.names))
    cells = []
    for number, name in enumerate(sheet.names, start=1):
        if name not in pictured:
            raise SourceError(f"{name} is no longer in the warehouse: draw the sheet again")
        note = f"{number}. {licence_of(pictured[name])}"
        cells.append(GridCell(picture=_shown(store.get(pictured[name].image_path)), alt=f"picture {number}", note=note))
    section = Section(
        heading=f"Which of these show it: {sheet.prompt}?",
        lead="Answer with the numbers that show it; the rest do not. Scores are hidden on purpose.",
        body=strip(cells),
    )
    command = Section(
        heading="Your answer",
        lead="Put the numbers in and run it. A picture you cannot judge: name the others with --yes and --no.",
        body=code(f"pleinair detector check {sheet.detector} --yes 3 17 --rest no"),
    )
    footer = "Pictures under the licences named."
    write_page(path, page(f"Check of {sheet.detector}", Html(""), [section, command], kicker="curation", footer=footer))


def _shown(data: bytes) -> bytes:
    """The picture as WebP, large enough to see a thin frame."""
    picture = Image.fromarray(decode(data))
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    picture.save(written, "WEBP", quality=90)
    return written.getvalue()
