"""The page of an ablation and its numbers: made of whatever is trained, and open about what is not.

Bench (settings, findings, what is missing) --> index.html (one file) and numbers.json
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pleinair.ablation.findings import AXES, EFFICIENCY_MARGIN, STABILITY_MARGIN, Findings
from pleinair.ablation.verdicts import Cell, Interval, name_of, percent
from pleinair.config import write_config
from pleinair.pages import Html, Section, element, facts, headline_figures, join, page, table, write_page

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 640, 26, 120, 150, 8, 40
SHOWN = {
    "first": "{0}",
    "second": "{1}",
    "equal": "no difference",
    "unclear": "not settled",
    "mixed": "trend does not hold",
    "missing": "no verdict",
}


@dataclass(frozen=True, kw_only=True)
class SweptRates:
    """How a side's learning rate was chosen."""

    switch: str
    side: str
    losses: Mapping[str, float | None]
    """Rate -> error on unseen pairs; None while it is not trained."""
    chosen: str | None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the page says."""

    title: str
    command: str
    """What makes it again."""
    findings: Sequence[Findings]
    rates: Sequence[SweptRates]
    num_done: int
    """Trainings that are there."""
    num_planned: int
    num_seeds: int
    margin: float
    """Relative difference of the error that counts as none."""
    settings: Mapping[str, str]
    """How it was done: name -> sentence."""


def write_bench(directory: Path, bench: Bench) -> Path:
    """Write `index.html` and `numbers.json`; returns the page."""
    directory.mkdir(parents=True, exist_ok=True)
    write_config(numbers(bench), directory / "numbers.json")
    sections = [
        Section(heading="Verdicts", body=verdict_table(bench), lead=_how_to_read(bench)),
        *(switch_section(one) for one in bench.findings),
        *([Section(heading="Learning rates", body=rate_table(bench.rates), lead=_RATES_LEAD)] if bench.rates else []),
        Section(heading="How it was done", body=facts(dict(bench.settings))),
    ]
    path = directory / "index.html"
    write_page(path, page(bench.title, opening(bench), sections, kicker="ablation bench", footer=bench.command))
    return path


def opening(bench: Bench) -> Html:
    """What is there in three numbers."""
    counted = [one.reproduced[axis] for one in bench.findings for axis in AXES]
    claims = len(counted) - counted.count("no claim")
    told = f"{counted.count('not reproduced')} not, {counted.count('undecided')} undecided"
    rest = bench.num_planned - bench.num_done
    return headline_figures(
        [
            (f"{counted.count('reproduced')} of {claims}", "of the report's outcomes reproduced", told),
            (str(len(bench.findings)), "switches", f"{bench.num_seeds} seeds, 2 horizons at each resolution"),
            (
                f"{bench.num_done} of {bench.num_planned}",
                "trainings",
                f"{rest} are missing" if rest else "all are there",
            ),
        ]
    )


def verdict_table(bench: Bench) -> Html:
    """One row a switch, one column an axis."""
    rows = [
        [f"{one.name}: {one.names[0]} / {one.names[1]}", *(verdict_cell(one, axis) for axis in AXES)]
        for one in bench.findings
    ]
    return table(["switch", *AXES], rows, number_columns=[])


def verdict_cell(findings: Findings, axis: str) -> Html:
    """The better side, and whether the report found the same."""
    overall = SHOWN[findings.verdicts[axis].overall].format(*findings.names)
    return join([element("b", overall), element("br"), element("small", findings.reproduced[axis])])


def switch_section(findings: Findings) -> Section:
    """A switch in full."""
    body = [verdict_list(findings), forest(findings), cell_table(findings), trend_words(findings)]
    if findings.cpu:
        body.append(cost_table(findings))
    if findings.figures:
        body.append(facts(dict(findings.figures)))
    settings = " against ".join(one or "the recipe as it is" for one in findings.settings)
    lead = f"{findings.names[0]} or {findings.names[1]} ({settings})."
    if findings.words:
        lead += f" The report: {findings.words}."
    return Section(heading=findings.name, body=join(body), lead=lead)


def verdict_list(findings: Findings) -> Html:
    """The four verdicts in words."""
    rows = [[axis, findings.verdicts[axis].words, findings.reproduced[axis]] for axis in AXES]
    return table(["respect", "what was found", "the report's outcome"], rows, number_columns=[])


def cell_table(findings: Findings) -> Html:
    """Every cell with both errors, the difference, and what could have been seen."""
    rows = []
    for cell, interval in findings.cells.items():
        values = findings.values[cell]
        means = [f"{sum(row[side] for row in values) / len(values):.4f}" if values else "" for side in (1, 2)]
        difference = percent(interval) if interval else "not trained"
        seen = f"{100 * interval.detectable:.1f}%" if interval else ""
        rows.append([name_of(cell), *means, difference, seen, str(len(values))])
    columns = ["cell", *findings.names, "difference, 95% interval", "smallest that would be seen", "pairs"]
    return table(columns, rows)


def cost_table(findings: Findings) -> Html:
    """What a step of both sides costs at each resolution: CPU time in pairs of rounds, and memory."""
    rows = []
    for resolution, interval in findings.cpu.items():
        sides = findings.costs[resolution]
        times = [f"{1000 * sum(one.cpu_seconds) / len(one.cpu_seconds):.1f}" for one in sides]
        memory = [f"{one.peak_bytes / 1e6:.1f}" for one in sides]
        seen = f"{100 * interval.detectable:.1f}%"
        rows.append([f"{resolution} px", *times, percent(interval), seen, str(interval.num), *memory])
    times, memory = ([f"{name}, {unit}" for name in findings.names] for unit in ("CPU ms", "MB"))
    columns = ["step at", *times, "difference, 95% interval", "smallest that would be seen", "rounds", *memory]
    return table(columns, rows)


def trend_words(findings: Findings) -> Html:
    """Whether the difference moves with horizon and resolution."""
    told = []
    for what, interval in findings.trends.items():
        if interval is not None:
            moves = "moves" if interval.low > 0 or interval.high < 0 else "does not surely move"
            told.append(f"with the {what} the difference {moves}: {percent(interval)}")
    return element("p", ("; ".join(told) + ".").capitalize()) if told else Html("")


def forest(findings: Findings) -> Html:
    """The intervals of all cells on one axis; left of 0 the second side is better."""
    known = [(cell, interval) for cell, interval in findings.cells.items() if interval is not None]
    if not known:
        return element("p", "Nothing to draw yet: fewer than two pairs are trained.")
    reach = max(max(abs(interval.low), abs(interval.high)) for _, interval in known) * 1.05 or 0.01
    height = TOP + ROW * len(known) + BOTTOM
    rows = join(_forest_row(cell, interval, number, reach) for number, (cell, interval) in enumerate(known))
    bottom = TOP + ROW * len(known)
    axis = [
        element("line", x1=_across(at, reach), x2=_across(at, reach), y1=TOP, y2=bottom, class_="rule")
        for at in (-reach, 0.0, reach)
    ]
    labels = [
        element("text", f"{100 * at:+.1f}%", x=_across(at, reach), y=bottom + 16, class_="middle")
        for at in (-reach, 0.0, reach)
    ]
    name = f"{findings.names[1]} better | {findings.names[0]} better"
    labels.append(element("text", name, x=_across(0.0, reach), y=bottom + 34, class_="middle name"))
    drawing = element(
        "svg", *axis, *labels, rows, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=f"intervals: {name}"
    )
    return element("figure", drawing, class_="plot")


def _across(value: float, reach: float) -> str:
    return f"{LEFT + (value + reach) / (2 * reach) * (WIDTH - LEFT - RIGHT):.1f}"


def _forest_row(cell: Cell, interval: Interval, number: int, reach: float) -> Html:
    y = TOP + ROW * number + ROW / 2
    colour = f"line c{0 if cell[1] == 'short' else 1}"
    ends = (_across(interval.low, reach), _across(interval.high, reach))
    return join(
        [
            element("text", name_of(cell), x=LEFT - 10, y=y + 4, class_="end"),
            element("path", d=f"M{ends[0]} {y}L{ends[1]} {y}", class_=colour),
            element("circle", cx=_across(interval.mean, reach), cy=y, r=4, class_=colour),
            element("text", percent(interval), x=WIDTH - RIGHT + 8, y=y + 4),
        ]
    )


_RATES_LEAD = (
    "Each side gets the best of its own rates, chosen at the lowest resolution and the short horizon, with a seed that is "
    "not judged."
)


def rate_table(rates: Sequence[SweptRates]) -> Html:
    """The sweeps."""
    rows = [
        [
            f"{one.switch}: {one.side}",
            rate,
            "" if loss is None or not math.isfinite(loss) else f"{loss:.4f}",
            _mark(one, rate),
        ]
        for one in rates
        for rate, loss in one.losses.items()
    ]
    return table(
        ["side", "learning rate", "error on unseen pairs", "chosen"], rows, number_columns=["error on unseen pairs"]
    )


def _mark(swept: SweptRates, rate: str) -> str:
    return "yes" if rate == swept.chosen else "no"


def _how_to_read(bench: Bench) -> str:
    return (
        "The better side in each respect, and whether the report found the same. Performance: the error on unseen pairs differs in "
        f"one direction, or surely by less than {100 * bench.margin:g}%, at both resolutions and both horizons; anything else is "
        f"not settled, or a trend that does not hold. Stability: spread of the gradient norm, beyond {100 * STABILITY_MARGIN:g}%. "
        f"Efficiency: CPU time of a step in pairs of rounds, or memory where that is equal, beyond {100 * EFFICIENCY_MARGIN:g}% at "
        "every resolution. Simplicity: stated beforehand. One interval "
        "in twenty misses the truth by chance."
    )


def numbers(bench: Bench) -> dict[str, Any]:
    """Everything for machines."""
    return {
        "command": bench.command,
        "trainings": {"done": bench.num_done, "planned": bench.num_planned},
        "settings": dict(bench.settings),
        "rates": [vars(one) for one in bench.rates],
        "switches": [_switch_numbers(one) for one in bench.findings],
    }


def _switch_numbers(findings: Findings) -> dict[str, Any]:
    return {
        "switch": findings.name,
        "sides": list(findings.names),
        "settings": list(findings.settings),
        "report": findings.words,
        "verdicts": {
            axis: {**vars(verdict), "report": findings.reproduced[axis]} for axis, verdict in findings.verdicts.items()
        },
        "cells": [
            {
                "resolution": cell[0],
                "horizon": cell[1],
                "difference": None if interval is None else vars(interval),
                "errors": [{"seed": seed, "first": a, "second": b} for seed, a, b in findings.values[cell]],
            }
            for cell, interval in findings.cells.items()
        ],
        "costs": [
            {
                "resolution": resolution,
                "cpu_difference": vars(interval),
                "cpu_seconds": [list(one.cpu_seconds) for one in findings.costs[resolution]],
                "peak_bytes": [one.peak_bytes for one in findings.costs[resolution]],
            }
            for resolution, interval in findings.cpu.items()
        ],
        "trends": {what: None if one is None else vars(one) for what, one in findings.trends.items()},
        "figures": dict(findings.figures),
    }
