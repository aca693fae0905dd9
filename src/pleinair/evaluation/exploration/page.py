"""The page of a result: the numbers with what they can show, whether they can be trusted, and every picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pleinair.evaluation.exploration.fitting import JudgeReport
from pleinair.evaluation.exploration.measured import Measured
from pleinair.evaluation.exploration.orders import Step, difference, outcome
from pleinair.evaluation.exploration.requests import KINDS
from pleinair.evaluation.exploration.sheet import JUDGES, Sheet
from pleinair.evaluation.exploration.suite import MEANINGS, NO_JUDGE, Result
from pleinair.evaluation.exploration.tail import recall_by_count
from pleinair.evaluation.exploration.world import Pictures, Rows
from pleinair.evaluation.people.report import people_section
from pleinair.pages import (
    GridCell,
    Html,
    Section,
    Series,
    element,
    encode_png,
    facts,
    folded,
    headline_figures,
    join,
    line_plot,
    page,
    picture,
    strip,
    table,
)
from pleinair.records.preferences import PreferenceEvent

NUM_SHOWN = 20
COLUMNS_OF_SHEET = 24


@dataclass(frozen=True, kw_only=True)
class Story:
    """All that the page shows."""

    result: Result
    real: Result
    sheet: Sheet
    judges: Sequence[JudgeReport]
    self_test: Sequence[Step]
    preferences: Sequence[PreferenceEvent]
    """Answers about this subject beside others, of the same prompts."""
    facts: Mapping[str, str]


def exploration_page(story: Story) -> str:
    """The whole page."""
    result = story.result
    return page(
        f"Exploration: {result.subject}",
        join([headline_figures(_headlines(story)), facts(story.facts)]),
        [
            Section(
                heading="Measures",
                lead="Each with its 95% interval over prompts, beside real pictures of the same requests. A difference "
                "between two runs smaller than `visible` would be missed more often than once in five.",
                body=_measures(story),
            ),
            Section(
                heading="Can the measures be trusted?",
                lead="Real pictures with one planted fault each: every measure must see it. Differences are paired.",
                body=join([_judges(story.judges), _steps(story.self_test)]),
            ),
            Section(
                heading="Common and rare",
                lead="Share of pictures whose thing is recognised, by how many training pictures the thing has.",
                body=_tail(story.sheet),
            ),
            Section(
                heading="Best and worst",
                lead="Of the prompts that name a style, by how sure both judges are of thing and style. The judges chose; "
                "nobody's taste did.",
                body=_best_and_worst(story.sheet),
            ),
            people_section(story.preferences),
            Section(
                heading="Every picture",
                lead="In the order they were asked for; rows of prompts.txt. Nothing is left out.",
                body=join(_sheets(story.sheet)),
            ),
        ],
        kicker=f"suite exploration, {result.size}, {result.num_pictures} pictures, seed {result.seed}",
        footer=f"prompts {result.prompts_sha256[:12]}; drawn and measured in {result.seconds / 60:.1f} minutes",
    )


def _headlines(story: Story) -> list[tuple[str, str, str]]:
    tiles = (
        ("can_both", "does what it is told"),
        ("diversity", "different pictures a prompt"),
        ("transfer", "teaches about real pictures"),
        ("near_copies", "copies of training pictures"),
    )
    shown = []
    for name, said in tiles:
        if name in story.result.measures:
            one, real = story.result.measure(name), story.real.measures.get(name)
            beside = f"; real {next(iter(real.values())).value:.2f}" if real else ""
            shown.append((f"{one.value:.2f}", said, f"{one.interval[0]:.2f} to {one.interval[1]:.2f}{beside}"))
    return shown


def _measures(story: Story) -> Html:
    rows = []
    for name, by_judge in story.result.measures.items():
        meaning, real = MEANINGS[name], story.real.measures.get(name, {})
        first = by_judge.get("first") or by_judge[NO_JUDGE]
        second = by_judge.get("second")
        reference = real.get("first") or real.get(NO_JUDGE)
        rows.append(
            [
                name,
                meaning.part,
                meaning.says,
                meaning.better,
                _with_interval(first),
                "" if second is None else _with_interval(second),
                "" if reference is None else f"{reference.value:.2f}",
                f"{first.detectable:.2f}",
                f"{first.num_pictures}",
                f"{len(first.units)}",
            ]
        )
    columns = [
        "measure",
        "part",
        "says",
        "better",
        "first judge",
        "second judge",
        "real",
        "visible",
        "pictures",
        "units",
    ]
    return table(columns, rows, number_columns=columns[4:])


def _with_interval(one: Measured) -> str:
    return f"{one.value:.2f} [{one.interval[0]:.2f}, {one.interval[1]:.2f}]"


def _judges(reports: Sequence[JudgeReport]) -> Html:
    rows = [
        [
            one.judge,
            one.made_of,
            *(
                f"{value:.2f}"
                for value in (one.style, one.concept_top1, one.concept_top5, one.style_gap, one.concept_gap)
            ),
            f"{one.num}",
        ]
        for one in reports
    ]
    columns = ["judge", "made of", "style", "thing", "thing in five", "style gap", "thing gap", "pictures"]
    return table(
        columns, rows, number_columns=columns[2:], caption="On held-out real pictures; gaps are AUROC, .5 is chance"
    )


def _steps(steps: Sequence[Step]) -> Html:
    rows = [
        [
            step.measure,
            f"{step.lower} {step.relation} {step.upper}",
            step.judge,
            difference(step.comparison),
            f"{step.comparison.num_units}",
            outcome(step),
        ]
        for step in sorted(steps, key=lambda one: one.holds)
    ]
    held = sum(step.holds for step in steps)
    columns = ["measure", "order", "judge", "difference", "units", "outcome"]
    return folded(f"{held} of {len(steps)} orders hold", table(columns, rows, number_columns=columns[3:5]))


def _tail(sheet: Sheet) -> Html:
    lines = []
    for judge in JUDGES:
        found = recall_by_count(sheet, judge)
        lines.append(
            Series(name=f"{judge} judge", x=[count for count, *_ in found], y=[share for _, share, _ in found])
        )
    return line_plot(lines, x_label="training pictures of the thing", y_label="recognised")


def sureness(sheet: Sheet) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(N,) the mean log probability both judges give to the style and thing asked for."""
    styles = [list(sheet.world.style_names).index(one.request.style) for one in sheet.asked]
    concepts = [sheet.world.concept_of_label[label] for label in sheet.labels]
    total = np.zeros(len(sheet))
    for judge in JUDGES:
        scores = sheet.scores[judge]
        for logits, wanted in ((scores.style_logits, styles), (scores.concept_logits, concepts)):
            shifted = logits - logits.max(axis=1, keepdims=True)
            total += shifted[np.arange(len(sheet)), wanted] - np.log(np.exp(shifted).sum(axis=1))
    return total / (2 * len(JUDGES))


def _best_and_worst(sheet: Sheet) -> Html:
    told = sheet.of_kind("specified", "unseen")
    if not len(told):
        return element("p", "No prompt named a style.")
    order: Rows = np.argsort(-sureness(told), kind="stable")
    return join(
        element("div", element("h3", said), strip([_cell(told, int(row)) for row in rows]))
        for said, rows in ((f"Best {NUM_SHOWN}", order[:NUM_SHOWN]), (f"Worst {NUM_SHOWN}", order[::-1][:NUM_SHOWN]))
    )


def _cell(sheet: Sheet, row: int) -> GridCell:
    one = sheet.asked[row]
    return GridCell(
        picture=encode_png(sheet.pictures[row]), alt=one.request.prompt, note=f"{one.request.prompt} (seed {one.seed})"
    )


def _sheets(sheet: Sheet) -> list[Html]:
    parts = []
    for kind in KINDS:
        of = sheet.of_kind(kind)
        if len(of):
            said = f"{kind}: {len(of)} pictures of {len(set(of.units))} prompts"
            parts.append(folded(said, picture(contact_sheet(of.pictures), said)))
    return parts


def contact_sheet(pictures_NHWC: Pictures, columns: int = COLUMNS_OF_SHEET) -> bytes:
    """All pictures row by row as one WebP file."""
    num, height, width, _ = pictures_NHWC.shape
    rows = -(-num // columns)
    sheet = np.full((rows * columns, height, width, 3), 255, np.uint8)
    sheet[:num] = pictures_NHWC
    whole = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "WEBP", quality=90)
    return buffer.getvalue()
