"""Yes-or-no questions that build on each other, as DPG-Bench and OneIG ask them (after DSG, arXiv 2310.18235)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pleinair.evaluation.published.files import Record

Parents = Mapping[int, tuple[int, ...]]
"""For each question, those that must be answered yes for it to count; 0 stands for none."""


@dataclass(frozen=True)
class Proposition:
    """One question in its graph."""

    number: int
    question: str
    parents: tuple[int, ...]
    """Numbers of the questions it builds on; none for a root."""


def checked(record: Record, propositions: Sequence[Proposition]) -> tuple[Proposition, ...]:
    """The propositions of one prompt. Raises ConfigError when one builds on a question that is not there."""
    numbers = {one.number for one in propositions}
    if len(numbers) < len(propositions):
        raise record.refused("two of its questions have one number")
    for one in propositions:
        if missing := [parent for parent in one.parents if parent not in numbers]:
            raise record.refused(f"question {one.number} builds on question {missing[0]}, which it lacks")
    return tuple(propositions)


def holding(yes: Mapping[int, bool], propositions: Iterable[Proposition], *, cascade: bool) -> dict[int, bool]:
    """Which questions count as yes: those answered so, all of whose parents count.

    With `cascade` (DPG-Bench) a parent that lost its own parent no longer counts; the official scorer goes through the
    questions once, in the order of its file. Without (OneIG) only the parents' own answers matter.
    """
    counted = dict(yes)
    for one in propositions:
        parents = counted if cascade else yes
        if not all(parents[parent] for parent in one.parents):
            counted[one.number] = False
    return counted


def said_yes(text: str) -> bool:
    """Whether an answer is yes and nothing more, whatever its case and stop."""
    return text.strip().strip(".!\"'").lower() == "yes"
