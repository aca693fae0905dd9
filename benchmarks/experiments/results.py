"""What an experiment measures: kept piece by piece as it is made, published in the end as NAME.json and report.html."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.krablet.rounds import commit, machine
from pleinair.pages import Html, element, write_page


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, kept as JSON, so that an experiment goes on where it was stopped."""
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f"{path.name}.partial")
        staging.write_text(json.dumps(made))
        staging.replace(path)
    return json.loads(path.read_text())


def named(checkpoint: Path) -> str:
    """Run and step of a checkpoint, for a page: not where this machine keeps it."""
    return f"{checkpoint.parents[1].name}, {checkpoint.name}"


def publish(out: Path, name: str, document: Mapping[str, Any], page: str) -> Path:
    """Write both into `out`, with the commit and the machine; returns the page's place."""
    out.mkdir(parents=True, exist_ok=True)
    told = {**document, "commit": commit(), "machine": machine()}
    (out / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")
    write_page(out / "report.html", page)
    return out / "report.html"


def without_pixels(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows as they are published: pictures are on the page."""
    return [{key: value for key, value in row.items() if key != "pixels"} for row in rows]


def opening(about: str | None, verdicts: Sequence[str]) -> Html:
    """The page's first words: the last paragraph of a module's docstring, and what came out."""
    words = (about or "").split("\n\n")[-1].replace("\n", " ")
    return element("div", element("p", words), element("ul", *(element("li", one) for one in verdicts)))
