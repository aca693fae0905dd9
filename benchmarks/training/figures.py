"""`python -m benchmarks.training.figures`: README.md's table of what training is to reach, and the figures of docs/.

All of it comes from results.json: each benchmark's module names its own aims (`AIMS`), the parts of pages that quote its
figures (`BLOCKS`) and the files that draw them (`DRAWINGS`). `python -m benchmarks.training` writes all anew after every
benchmark, and a test compares.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.aims import between, table
from benchmarks.krablet.rounds import Result
from benchmarks.training.blocks import ROOT, Block, Drawing
from benchmarks.training.clocks import clocks_of

FOLDER = Path(__file__).parent
README, RESULTS = FOLDER / "README.md", FOLDER / "results.json"
BEGIN = "<!-- figures: written by python -m benchmarks.training.figures -->"
COLUMNS = {"wall / CPU": clocks_of, "commit": lambda row: str(row["commit"])}
NOT_BENCHMARKS = {"__init__", "__main__", "blocks", "clocks", "drawing", "figures"}


def modules() -> list[str]:
    """Names of the benchmarks that are here."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NOT_BENCHMARKS)


def named(attribute: str) -> Iterator[Any]:
    """What all benchmarks have under this name, by module."""
    for name in modules():
        yield from getattr(import_module(f"benchmarks.training.{name}"), attribute, ())


def pages(results: Sequence[Result]) -> dict[Path, str]:
    """What every page and drawing that shows figures is to be. Raises ValueError for a page without its marks."""
    blocks: dict[str, list[Block]] = defaultdict(list)
    for block in named("BLOCKS"):
        blocks[block.page].append(block)
    found = {README: between(README.read_text(), BEGIN, table(results, [*named("AIMS")], COLUMNS))}
    for page, of_page in blocks.items():
        text = (ROOT / page).read_text()
        for block in of_page:
            text = block.written(text, results)
        found[ROOT / page] = text
    drawings: Iterator[Drawing] = named("DRAWINGS")
    return found | {ROOT / drawing.file: drawing.draw(results) for drawing in drawings}


def main() -> None:
    for path, text in pages(json.loads(RESULTS.read_text())).items():
        path.write_text(text)


if __name__ == "__main__":
    main()
