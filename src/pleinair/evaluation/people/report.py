"""What people said, as a page, and as the section `People` of a result's page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from pleinair.evaluation.people.findings import (
    Findings,
    Standing,
    agreement,
    agreement_of_people,
    findings,
    judges_of,
)
from pleinair.evaluation.people.strength import Share
from pleinair.pages import Html, Node, Section, element, facts, folded, join, page, table
from pleinair.records.preferences import ATTRIBUTES, Attribute, PreferenceEvent

NO_PERSON = "No person has judged these pictures. `pleinair sides` opens the blind page on which one can."
ASKED = {
    "styles": "shows more different styles",
    "follows_style": "follows the style asked for better",
    "shows_thing": "shows the thing asked for better",
    "prefer": "would rather go on with",
}


def people_page(events: Sequence[PreferenceEvent]) -> str:
    """The whole page. Raises ConfigError for events of several prompts."""
    human = findings(events, "human")
    sections = [people_section(events)]
    digests = {one.prompts_sha256[:12] for one in events}
    return page(
        "Two sides, one question",
        element("p", NO_PERSON) if human is None else Html(""),
        sections,
        kicker=f"{len(events)} events",
        footer=f"prompts {', '.join(sorted(digests))}" if digests else "",
    )


def people_section(events: Sequence[PreferenceEvent]) -> Section:
    """What people preferred, how far they can be trusted, and whether the judges agree; judges' answers apart."""
    human, synthetic = findings(events, "human"), findings(events, "synthetic")
    parts: list[Html] = []
    if human is not None:
        parts += [_findings(human), _agreement(events)]
    if synthetic is not None:
        said = "The judges before the same questions: synthetic, no person's opinion"
        parts.append(folded(said, _findings(synthetic)))
    lead = NO_PERSON
    if human is not None:
        num = len(human.persons)
        lead = (
            f"{num} {'person' if num == 1 else 'people'} before two sides of unnamed subjects, up to eight pictures each, one "
            "attribute a question. Strengths are log-odds against the average subject (Bradley-Terry with ties), with 95% "
            "intervals over persons and questions"
            + ("; with one person they hold for that person alone." if num == 1 else ".")
        )
    return Section(heading="People", lead=lead, body=join(parts))


def _findings(found: Findings) -> Html:
    return join([_trust(found), *(_standing(found.subjects, one) for one in found.standings)])


def _trust(found: Findings) -> Html:
    told = {
        "who": ", ".join(found.persons) or "nobody whose answers count",
        "left out for missing controls": ", ".join(found.careless) or "nobody",
        "controls answered right": as_text(found.controls),
        "repeats answered as before": as_text(found.itself),
        "answers for the left side": as_text(found.left),
        "seconds an answer, median": f"{found.median_seconds:.1f}",
    }
    if found.origin == "synthetic":
        told.pop("seconds an answer, median")
    return facts(told)


def _standing(subjects: Sequence[str], one: Standing) -> Html:
    fit = one.strengths
    order = sorted(range(len(subjects)), key=lambda place: -fit.theta_K[place])
    rows: list[list[Node]] = [
        [
            subjects[place],
            f"{fit.theta_K[place]:+.2f} [{fit.interval_K2[place, 0]:+.2f}, {fit.interval_K2[place, 1]:+.2f}]",
            one.wins[place],
            one.same[place],
            one.losses[place],
        ]
        for place in order
    ]
    columns = ["subject", "strength", "preferred", "same", "not preferred"]
    note = f"{ASKED[one.attribute]}: {one.num} answers, {one.cannot_tell} could not tell"
    pairs = [
        f"{subjects[first]} over {subjects[second]} {_chance(one, first, second)}"
        for first, second in combinations(order, 2)
    ]
    return join(
        [
            table(columns, rows, number_columns=columns[1:], caption=note),
            element("p", "Where one is preferred: " + "; ".join(pairs) + "."),
        ]
    )


def _chance(one: Standing, first: int, second: int) -> str:
    low, high = one.strengths.beats_interval_KK2[first, second]
    return f"{one.strengths.beats_KK[first, second]:.0%} [{low:.0%}, {high:.0%}]"


def _agreement(events: Sequence[PreferenceEvent]) -> Html:
    judges = judges_of(events)
    asked: list[Attribute] = [
        name for name in ATTRIBUTES if any(one.attribute == name and one.origin == "human" for one in events)
    ]
    rows: list[list[Node]] = [
        [ASKED[name], *(_agrees(events, judge, name, judges[judge]) for judge in judges),
         as_text(agreement_of_people(events, name))]
        for name in asked
    ]  # fmt: skip
    columns = ["question", *judges, "another person"]
    caption = "How often people prefer what a judge, or another person, prefers, where both prefer one; 50% is chance"
    note = "" if judges else "`pleinair sides --synthetic` lets the judges answer the same questions."
    return join([table(columns, rows, number_columns=columns[1:], caption=caption), element("p", note) if note else ""])


def _agrees(events: Sequence[PreferenceEvent], judge: str, name: Attribute, judged: Sequence[Attribute]) -> str:
    return as_text(agreement(events, judge, name)) if name in judged else "not asked"


def as_text(one: Share | None) -> str:
    """A share with its interval and number; a dash in tables where there is none."""
    return f"{one.value:.0%} [{one.interval[0]:.0%}, {one.interval[1]:.0%}] of {one.num}" if one else ""
