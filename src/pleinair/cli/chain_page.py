"""The page of a curation: what went in, what stayed, what each step said and cost, and the pages to read next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pleinair.cli.costs import read_costs
from pleinair.pages import Html, Section, code, element, folded, headline_figures, join, page, table, write_page

if TYPE_CHECKING:
    from pleinair.cli.chain import Done
    from pleinair.krablet import Database
    from pleinair.recipes.chain import Chain


def write_chain_page(place: Path, chain: Chain, text: str, done: Sequence[Done], db: Database, home: Path) -> Path:
    """Write `index.html` into the chain's folder; its path."""
    sources = _sources(db)
    num_listed, num_kept = sum(row[1] for row in sources), sum(row[2] for row in sources)
    opening = headline_figures(
        [
            (f"{num_listed:,}", "pictures listed", f"of {len(sources)} sources"),
            (f"{num_kept:,}", "kept", f"{num_kept / max(1, num_listed):.1%}"),
            (f"{sum(step.cpu_seconds for step in done) / 3600:.2f}", "core-hours", "all steps, without Postgres"),
        ]
    )
    sections = [
        Section(
            heading="Pages",
            lead="What every step found; each drop can be followed to its picture.",
            body=_links(place),
        ),
        Section(
            heading="Sources",
            body=table(
                ["source", "listed", "kept", "share"],
                [[name, f"{listed:,}", f"{kept:,}", f"{kept / listed:.1%}"] for name, listed, kept in sources],
            ),
        ),
        Section(heading="Steps", lead="Each is a command of its own and can be repeated alone.", body=_steps(done)),
        Section(
            heading="Cost",
            lead="Processor time of the workers for a million pictures, without Postgres; a killed run is not counted.",
            body=_costs(home),
        ),
        Section(heading="Recipe", body=code(text)),
    ]
    path = place / "index.html"
    write_page(path, page(chain.title, opening, sections, kicker="curation"))
    return path


def _sources(db: Database) -> list[tuple[str, int, int]]:
    """(name, listed, kept), most first."""
    from pleinair.cli.chain import count_by_source
    from pleinair.curation import images_table, kept_where

    kept = count_by_source(db, kept_where(images_table(db)))
    rows = [(name, listed, kept.get(name, 0)) for name, listed in count_by_source(db).items()]
    return sorted(rows, key=lambda row: -row[1])


def _links(place: Path) -> Html:
    pages = sorted(
        path for path in place.rglob("*.html") if path.parent == place or path.name in ("index.html", "datasheet.html")
    )
    items = (
        element("li", element("a", str(path.relative_to(place)), href=str(path.relative_to(place))))
        for path in pages
        if path != place / "index.html"
    )
    return element("ul", *items)


def _steps(done: Sequence[Done]) -> Html:
    rows = (
        folded(f"{step.run}  ({step.seconds:.0f} s, {step.cpu_seconds:.0f} CPU-s)", code("\n".join(step.output)))
        for step in done
    )
    return join(rows)


def _costs(home: Path) -> Html:
    rows = [
        [
            cost.stage.removeprefix("images."),
            f"{cost.num_results:,}",
            f"{cost.cpu_seconds:,.0f}",
            f"{1000 * cost.cpu_seconds / cost.num_results:.2f}",
            f"{cost.core_hours_per_million:.2f}",
        ]
        for cost in read_costs(home)
    ]
    return table(["stage", "results", "CPU-seconds", "ms a picture", "core-hours per million"], rows)
