"""What an experiment measures: kept piece by piece as it is made, published in the end as NAME.json and report.html."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.krablet.rounds import commit, machine
from pleinair.pages import Html, element, write_page

COSTS = "costs.jsonl"
"""In the folder of the runs."""


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, kept as JSON, so that an experiment goes on where it was stopped."""
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = path.with_name(f"{path.name}.partial")
        staging.write_text(json.dumps(made))
        staging.replace(path)
    return json.loads(path.read_text())


def processor_seconds() -> float:
    """Of this process and its children so far."""
    return sum(os.times()[:4])


@contextmanager
def sitting(runs: Path, name: str) -> Iterator[None]:
    """Adds what the process costs to what earlier sittings at an experiment did, however it ends short of a SIGKILL."""
    try:
        yield
    finally:
        runs.mkdir(parents=True, exist_ok=True)
        with (runs / COSTS).open("a") as file:
            file.write(json.dumps({"name": name, "seconds": processor_seconds()}) + "\n")


def cost(runs: Path, name: str) -> str:
    """Time of one core so far, this sitting and all before it, with what was done twice."""
    told = [json.loads(line) for line in (runs / COSTS).read_text().splitlines()] if (runs / COSTS).exists() else []
    earlier = [one["seconds"] for one in told if one["name"] == name]
    minutes = (sum(earlier) + processor_seconds()) / 60
    return f"{minutes:.0f} minutes of one core" + (f" in {len(earlier) + 1} sittings" if earlier else "")


def footer(runs: Path, name: str, how: str) -> str:
    """The page's last line: command, commit, machine, cost, and how it was run."""
    return f"make experiment-{name}, commit {commit()}, {machine()}, {cost(runs, name)}. {how}."


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
