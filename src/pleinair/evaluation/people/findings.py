"""What the answers say: per origin, strengths per attribute, and whether those who answered can be trusted.

    events --holding--> answers --> controls missed -> careless persons are left out
                                `-> repeats         -> agreement with oneself
                                `-> strengths, agreement of people with each judge and with each other

Answers of people and of judges are never added together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pleinair.evaluation.people.strength import Share, Strengths, share, strengths
from pleinair.records.errors import ConfigError
from pleinair.records.preferences import ATTRIBUTES, Attribute, Origin, PreferenceEvent, ShownSide, holding

MOST_MISSED = 0.25
"""Share of controls that a person may miss; more, of two or more, and their answers are not counted."""
SAME, CANNOT_TELL = "same", "cannot tell"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One attribute's strengths, with the plain counts they come from."""

    attribute: Attribute
    strengths: Strengths
    wins: Sequence[int]
    losses: Sequence[int]
    same: Sequence[int]
    """By subject."""
    num: int
    """Answers fitted."""
    cannot_tell: int
    """Answers left out for it."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that the events of one origin say."""

    origin: Origin
    subjects: Sequence[str]
    persons: Sequence[str]
    """Whose answers count."""
    careless: Sequence[str]
    """Whose answers do not: they missed controls."""
    standings: Sequence[Standing]
    """Of the attributes that were answered."""
    controls: Share | None
    """Controls answered right, careless persons included."""
    itself: Share | None
    """Repeats answered as before."""
    left: Share | None
    """Of answers for one side, those for the left one: one half is fair."""
    median_seconds: float


def findings(events: Sequence[PreferenceEvent], origin: Origin) -> Findings | None:
    """What one origin's events say; None where it answered nothing. Raises ConfigError for events of several prompts."""
    held = [one for one in holding(events) if one.origin == origin]
    if not held:
        return None
    if len({one.prompts_sha256 for one in held}) > 1:
        raise ConfigError("the events are about results of different prompts: give each its own file with --log")
    careless = careless_persons(held)
    kept = [one for one in held if one.person not in careless]
    asked = [one for one in kept if not one.control and not one.repeat]
    # Of those who are left out too: a subject does not vanish with a person.
    subjects = sorted({name_of(side) for one in held if not one.control for side in (one.left, one.right)})
    checked = [one for one in held if one.control]
    decided = [one for one in asked if one.answer in ("left", "right")]
    return Findings(
        origin=origin,
        subjects=_plain(subjects),
        persons=sorted({one.person for one in kept}),
        careless=sorted(careless),
        standings=[found for attribute in ATTRIBUTES if (found := standing(asked, attribute, subjects))],
        controls=_share(checked, lambda one: one.answer == one.control),
        itself=self_agreement(kept),
        left=_share(decided, lambda one: one.answer == "left"),
        median_seconds=float(np.median([one.seconds for one in held])),
    )


def name_of(side: ShownSide) -> tuple[str, str]:
    """What tells subjects apart."""
    return side.subject, side.identity


def _plain(subjects: Sequence[tuple[str, str]]) -> list[str]:
    """Names, with the beginning of the identity where two have one name."""
    names = [name for name, _ in subjects]
    return [f"{name} ({identity[:8]})" if names.count(name) > 1 else name for name, identity in subjects]


def careless_persons(held: Sequence[PreferenceEvent]) -> set[str]:
    """Who missed more controls than looking at the pictures explains."""
    missed: dict[str, list[bool]] = {}
    for one in held:
        if one.control:
            missed.setdefault(one.person, []).append(one.answer != one.control)
    return {person for person, of in missed.items() if len(of) > 1 and sum(of) / len(of) > MOST_MISSED}


def said(event: PreferenceEvent) -> tuple[str, str] | str:
    """The subject preferred, or `same`, or `cannot tell`: whichever side it stood on."""
    if event.answer == "left":
        return name_of(event.left)
    if event.answer == "right":
        return name_of(event.right)
    return SAME if event.answer == "same" else CANNOT_TELL


def standing(
    asked: Sequence[PreferenceEvent], attribute: Attribute, subjects: Sequence[tuple[str, str]]
) -> Standing | None:
    """The strengths of one attribute; None where nobody could tell."""
    of = [one for one in asked if one.attribute == attribute]
    told = [one for one in of if one.answer != "cannot_tell"]
    if not told:
        return None
    number = {subject: place for place, subject in enumerate(subjects)}
    sides = np.array([[number[name_of(one.left)], number[name_of(one.right)]] for one in told])
    outcome = np.array([("left", "right", "same").index(one.answer) for one in told])
    winner = np.where(outcome == 0, sides[:, 0], sides[:, 1])[outcome < 2]
    loser = np.where(outcome == 0, sides[:, 1], sides[:, 0])[outcome < 2]
    codes = [np.unique(values, return_inverse=True)[1].astype(np.int64) for values in (
        [one.person for one in told], [one.comparison for one in told])]  # fmt: skip
    num = len(subjects)
    return Standing(
        attribute=attribute,
        strengths=strengths(sides[:, 0], sides[:, 1], outcome, codes[0], codes[1], num),
        wins=np.bincount(winner, minlength=num).tolist(),
        losses=np.bincount(loser, minlength=num).tolist(),
        same=np.bincount(sides[outcome == 2].ravel(), minlength=num).tolist(),
        num=len(told),
        cannot_tell=len(of) - len(told),
    )


def _share(of: Sequence[PreferenceEvent], hit: Callable[[PreferenceEvent], bool]) -> Share | None:
    return share([hit(one) for one in of], [one.person for one in of], [one.comparison for one in of])


def self_agreement(kept: Sequence[PreferenceEvent]) -> Share | None:
    """Share of repeats that got the answer of the first time."""
    before = {(one.person, one.comparison): said(one) for one in kept if not one.repeat}
    again = [one for one in kept if one.repeat and (one.person, one.comparison) in before]
    return _share(again, lambda one: said(one) == before[one.person, one.comparison])


def agreement(events: Sequence[PreferenceEvent], judge: str, attribute: Attribute) -> Share | None:
    """How often people prefer what a judge prefers, where both prefer one; one half is chance."""
    held = holding(events)
    by_judge = {one.comparison: said(one) for one in held if (one.origin, one.person) == ("synthetic", judge)}
    both = [one for one in decided_by_people(held, attribute) if isinstance(by_judge.get(one.comparison), tuple)]
    return _share(both, lambda one: said(one) == by_judge[one.comparison])


def agreement_of_people(events: Sequence[PreferenceEvent], attribute: Attribute) -> Share | None:
    """How often two people prefer the same, where both prefer one: what a judge can reach at most."""
    by_comparison: dict[str, dict[str, PreferenceEvent]] = {}
    for one in decided_by_people(holding(events), attribute):
        by_comparison.setdefault(one.comparison, {})[one.person] = one
    pairs = [pair for of in by_comparison.values() for pair in combinations(of.values(), 2)]
    return share(
        [said(one) == said(other) for one, other in pairs],
        [f"{one.person} and {other.person}" for one, other in pairs],
        [one.comparison for one, _ in pairs],
    )


def decided_by_people(held: Sequence[PreferenceEvent], attribute: Attribute) -> list[PreferenceEvent]:
    """Answers of persons who look, for one side, to what was neither a control nor a repeat."""
    human = [one for one in held if one.origin == "human"]
    careless = careless_persons(human)
    return [
        one
        for one in human
        if one.attribute == attribute and one.answer in ("left", "right") and one.person not in careless
        if not one.control and not one.repeat
    ]


def judges_of(events: Sequence[PreferenceEvent]) -> Mapping[str, Sequence[Attribute]]:
    """Who answered as `synthetic`, and to which questions."""
    found: dict[str, set[Attribute]] = {}
    for one in holding(events):
        if one.origin == "synthetic":
            found.setdefault(one.person, set()).add(one.attribute)
    return {judge: [name for name in ATTRIBUTES if name in found[judge]] for judge in sorted(found)}
