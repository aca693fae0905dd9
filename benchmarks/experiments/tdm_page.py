"""What students and teacher say: set against each other within the noise of each seed, and the page.

    values of a student, limits that the teacher sets --difference within each seed, t interval--> reached | undecided | not

A limit is passed by doing nothing where the teacher at few steps passes it too, so its word stands beside the student's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.experiments.drawn import shown, spread
from benchmarks.experiments.paired import word
from benchmarks.experiments.results import opening
from pleinair.pages import GridCell, GridRow, Html, Section, Series, grid, line_plot, page, table

REFERENCE_STEPS = 28
"""Of the guided teacher that students are to come near."""
WITHIN, COVERAGE_WITHIN = 0.10, 0.02
"""How near: a share of its value, and of the real pictures."""
GAP = "tdm/gap"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Student:
    """One kind of student."""

    num_steps: int
    num_seeds: int
    fake_updates: int = 1
    """Updates of the fake model for one of the student; the steps of training stay as many."""

    @property
    def name(self) -> str:
        """As tables call it."""
        more = f", {self.fake_updates} fake updates" if self.fake_updates > 1 else ""
        return f"student, {self.num_steps} steps{more}"


def teacher_name(num_steps: int, guided: bool) -> str:
    """As tables call it."""
    return f"teacher, {num_steps} steps, {'guided' if guided else 'unguided'}"


@dataclass(frozen=True)
class Measure:
    """One number by which models are set against each other."""

    key: str
    words: str
    sign: int
    """1 where more is better, -1 where less is."""
    within: Callable[[float], float]
    """The limit that a reference's value sets."""
    limit: str
    """It, in words."""

    def reserve(self, own: float, limit: float) -> float:
        """How far a value is on the better side of a limit."""
        return self.sign * (own - limit)


MEASURES = (
    Measure("concept", "concepts named", 1, lambda value: (1 - WITHIN) * value, f"within {WITHIN:.0%}"),
    Measure("style", "styles named", 1, lambda value: (1 - WITHIN) * value, f"within {WITHIN:.0%}"),
    Measure("frechet", "Frechet distance", -1, lambda value: (1 + WITHIN) * value, f"within {WITHIN:.0%}"),
    Measure(
        "coverage", "coverage", 1, lambda value: value - COVERAGE_WITHIN, f"not lower by more than {COVERAGE_WITHIN:g}"
    ),
)


def by_seed(rows: Sequence[Row], name: str, key: str) -> dict[int, float]:
    """A measure of a model in the noise of each seed."""
    return {row["seed"]: row[key] for row in rows if row["name"] == name}


def reserves(rows: Sequence[Row], name: str, other: str, measure: Measure, within: bool) -> list[float]:
    """How far a model is on the better side of another, or of the limit that it sets, seed by seed."""
    own, theirs = by_seed(rows, name, measure.key), by_seed(rows, other, measure.key)
    return [
        measure.reserve(own[seed], measure.within(theirs[seed]) if within else theirs[seed])
        for seed in sorted(own.keys() & theirs.keys())
    ]


def verdicts(rows: Sequence[Row], students: Sequence[Student]) -> list[str]:
    """What was to be reached, and whether it was; then what else is asked of students."""
    plain = [one for one in students if one.fake_updates == 1]
    found = [line for one in plain for line in (*against_reference(rows, one), *against_few_steps(rows, one))]
    for one in students:
        if one.fake_updates > 1:
            found.append(between(rows, one.name, replace(one, fake_updates=1).name))
    return found


def against_reference(rows: Sequence[Row], student: Student) -> list[str]:
    """The headline, a line a measure: the student near the guided teacher of many steps."""
    reference, untrained = teacher_name(REFERENCE_STEPS, True), teacher_name(student.num_steps, False)
    lines = []
    for measure in MEASURES:
        own, theirs = (list(by_seed(rows, name, measure.key).values()) for name in (student.name, reference))
        mean, half = spread(reserves(rows, student.name, reference, measure, within=True))
        before = word(*spread(reserves(rows, untrained, reference, measure, within=True)))
        lines.append(
            f"{student.name}, {measure.words}: {shown(own)} against {shown(theirs)} of the {reference}; {measure.limit}: "
            f"on the better side by {mean:+.3f} \u00b1 {half:.3f}; to reach: above 0, {word(mean, half)} (untrained: {before})."
        )
    return lines


def against_few_steps(rows: Sequence[Row], student: Student) -> list[str]:
    """The student better than the teacher at as few steps, guided and not."""
    return [between(rows, student.name, teacher_name(student.num_steps, guided)) for guided in (True, False)]


def between(rows: Sequence[Row], name: str, other: str) -> str:
    """Two models in one sentence: how much the first is better by each measure, and whether that is sure."""
    parts = []
    for measure in MEASURES:
        better = reserves(rows, name, other, measure, within=False)
        parts.append(f"{measure.words} {shown(better, '+.3f')} ({word(*spread(better))})")
    return f"{name}, better than the {other} by: {', '.join(parts)}."


def report(
    about: str, rows: Sequence[Row], students: Sequence[Student], prompts: Sequence[str], num_updates: int, foot: str
) -> str:
    """The page; `prompts` are those of the pictures in `rows`."""
    first = [row for row in rows if row["seed"] == 0]
    pictures = [
        GridRow(name=text, cells=[GridCell(picture=np.array(row["pixels"][i], np.uint8), alt=text) for row in first])
        for i, text in enumerate(prompts)
    ]
    sections = [
        Section(heading="Numbers", body=numbers_table(rows)),
        Section(heading="How far teacher and fake model are apart", body=gap_plot(rows, num_updates)),
        Section(heading="The same prompts and seeds", body=grid([row["name"] for row in first], pictures)),
    ]
    return page("Students of few steps", opening(about, verdicts(rows, students)), sections, footer=foot)


COLUMNS: Mapping[str, str] = {
    "concept": "concept named",
    "style": "style named",
    "frechet": "Frechet",
    "coverage": "coverage",
    "fine_detail": "fine detail",
    "saturation": "saturation",
}


def numbers_table(rows: Sequence[Row]) -> Html:
    """All models, means over their seeds or draws with intervals."""
    cells = []
    for name in dict.fromkeys(row["name"] for row in rows):
        of = [row for row in rows if row["name"] == name]
        measured = [shown([row[key] for row in of]) if key in of[0] else "\u2013" for key in COLUMNS]
        minutes = f"{np.mean([row['seconds'] for row in of]) / 60:.1f}" if "seconds" in of[0] else "\u2013"
        cells.append([name, str(of[0].get("calls", "\u2013")), *measured, minutes])
    return table(["model", "calls a picture", *COLUMNS.values(), "minutes of training"], cells)


def gap_plot(rows: Sequence[Row], num_updates: int) -> Html:
    """The gap over the updates, of one run of each kind and, where the stage tells, of each segment."""
    series = []
    for row in rows:
        if row["seed"] == 0 and "log" in row:
            for key, values in row["log"].items():
                if key.startswith(GAP):
                    x = (np.arange(1, len(values) + 1) * num_updates / len(values)).tolist()
                    series.append(Series(name=f"{row['name']}{key.removeprefix(GAP)}", x=x, y=values))
    return line_plot(series, x_label="updates", y_label="mean distance")
