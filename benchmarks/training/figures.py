"""`python -m benchmarks.training.figures`: README.md's table of what training is to reach, from results.json.

Each benchmark's module names its own aims (`AIMS`); the rows are those of benchmarks/curation/figures.py.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

from benchmarks.curation.figures import Aim, table
from benchmarks.krablet.rounds import Result

FOLDER = Path(__file__).parent
README, RESULTS = FOLDER / "README.md", FOLDER / "results.json"
BEGIN, END = "<!-- figures: written by python -m benchmarks.training.figures -->", "<!-- end of figures -->"
NOT_BENCHMARKS = {"__init__", "__main__", "figures"}


def modules() -> list[str]:
    """Names of the benchmarks that are here."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in NOT_BENCHMARKS)


def aims() -> tuple[Aim, ...]:
    """What all of them are to reach, by module."""
    found: list[Aim] = []
    for name in modules():
        found += getattr(import_module(f"benchmarks.training.{name}"), "AIMS", ())
    return tuple(found)


def with_table(page: str, results: list[Result]) -> str:
    """The page with the table between its two marks. Raises ValueError where a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN if not begin else END}: put both marks where the table belongs")
    return f"{before}{BEGIN}\n{table(results, aims())}\n{END}{after}"


def main() -> None:
    README.write_text(with_table(README.read_text(), json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
