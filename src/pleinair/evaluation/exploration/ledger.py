"""E9: what every stage of a lineage gained and lost, on four axes: can it, left alone, transfer, near copies.

metrics.json of each stage, in order -> one row per stage, each beside its change from the first stage
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pleinair.evaluation.exploration.measured import Comparison, Measured, compare
from pleinair.evaluation.exploration.sheet import JUDGES
from pleinair.evaluation.exploration.suite import MEANINGS, NO_JUDGE, Result
from pleinair.pages import Html, Section, Series, element, join, line_plot, page, table
from pleinair.records.errors import ConfigError

AXES = ("can_both", "diversity", "default_styles", "transfer", "near_copies", "can_unseen")


@dataclass(frozen=True)
class Entry:
    """One axis of one stage."""

    measure: str
    measured: Measured
    since_first: Comparison | None
    """The change since the first stage, by the first judge; None for the first stage."""
    doubts: Sequence[str]
    """Why the change is not claimed: the second judge sees an opposite one, or a self test rejects the measure."""


def ledger(stages: Sequence[Result]) -> list[tuple[str, list[Entry]]]:
    """Rows of the ledger. Raises ConfigError for stages that were not asked the same."""
    if not stages:
        raise ConfigError("a ledger of no stages: give the metrics.json of one or more")
    first = stages[0]
    for stage in stages[1:]:
        asked = [(one.prompts_sha256, one.size, one.seed) for one in (first, stage)]
        if asked[0] != asked[1]:
            raise ConfigError(
                f"{first.subject} and {stage.subject} were asked different things ({asked[0]} and {asked[1]}): "
                "evaluate both with the same size, seed and prompts"
            )
    return [
        (stage.subject, [_entry(first, stage, axis) for axis in AXES if axis in stage.measures]) for stage in stages
    ]


def _entry(first: Result, stage: Result, axis: str) -> Entry:
    doubts = ["rejected by its self test"] if stage.rejected.get(axis) else []
    if stage is first:
        return Entry(axis, stage.measure(axis), None, doubts)
    changes = [
        compare(first.measure(axis, judge), stage.measure(axis, judge))
        for judge in (JUDGES if NO_JUDGE not in stage.measures[axis] else JUDGES[:1])
    ]
    if changes[0].sign * changes[-1].sign < 0:
        doubts.append("the judges disagree")
    return Entry(axis, stage.measure(axis), changes[0], doubts)


def ledger_page(rows: Sequence[tuple[str, list[Entry]]]) -> str:
    """The ledger as a page: a row per stage, a column per axis."""
    return page(
        "Ledger",
        element("p", "What each stage gained and lost; in brackets the change since the first, with its interval."),
        [Section(heading="Stages", body=ledger_table(rows)), Section(heading="What they say", body=ledger_words(rows))],
    )


def ledger_table(rows: Sequence[tuple[str, list[Entry]]]) -> Html:
    """A row per stage, a column per axis, and their curves."""
    axes = [entry.measure for entry in rows[0][1]]
    cells = [[subject, *(_cell(entry) for entry in entries)] for subject, entries in rows]
    return join([table(["stage", *axes], cells, number_columns=axes), *_curve(rows)])


def ledger_words(rows: Sequence[tuple[str, list[Entry]]]) -> Html:
    """What each axis says."""
    told = [(entry.measure, MEANINGS[entry.measure]) for entry in rows[0][1]]
    return join(element("p", f"{axis}: {one.says} ({one.better} is better).") for axis, one in told)


def _curve(rows: Sequence[tuple[str, list[Entry]]]) -> list[Html]:
    """Every axis over the stages, as shares of its value at the first one; nothing for one stage."""
    if len(rows) < 2:
        return []
    lines = []
    for place, entry in enumerate(rows[0][1]):
        if entry.measured.value > 0:
            shares = [entries[place].measured.value / entry.measured.value for _, entries in rows]
            lines.append(Series(name=entry.measure, x=list(range(1, len(rows) + 1)), y=shares))
    return [line_plot(lines, x_label="stage", y_label="of the first stage")] if lines else []


def _cell(entry: Entry) -> str:
    told = [f"{entry.measured.value:.2f}"]
    if entry.since_first is not None:
        low, high = entry.since_first.interval
        told.append(f"({entry.since_first.difference:+.2f}, {low:+.2f} to {high:+.2f})")
    return " ".join([*told, f"n={entry.measured.num_pictures}", *entry.doubts])
