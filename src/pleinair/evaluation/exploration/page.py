"""The page of a result: the numbers with what they can show, whether they can be trusted, and every picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pleinair.evaluation.copies import Calibration
from pleinair.evaluation.exploration.composition import counted
from pleinair.evaluation.exploration.fitting import JudgeReport
from pleinair.evaluation.exploration.orders import Agreement, Step, difference, outcome, with_interval
from pleinair.evaluation.exploration.requests import KINDS, are_frozen
from pleinair.evaluation.exploration.self_test import SelfTest
from pleinair.evaluation.exploration.sheet import JUDGES, Sheet
from pleinair.evaluation.exploration.suite import MEANINGS, NO_JUDGE, Result, ToldBy
from pleinair.evaluation.exploration.tail import recall_by_count
from pleinair.evaluation.exploration.world import Pictures, Rows
from pleinair.evaluation.people.report import people_section
from pleinair.evaluation.report import StyleLicence, licence_section
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
    sheet: Sheet
    judges: Sequence[JudgeReport]
    copies: Calibration
    tested: SelfTest
    preferences: Sequence[PreferenceEvent]
    """Answers about this subject beside others, of the same prompts."""
    facts: Mapping[str, str]
    licences: Sequence[StyleLicence]
    """Of the drawings that are shown or were learned from."""


def exploration_page(story: Story) -> str:
    """The whole page."""
    result = story.result
    published = ", as published" if are_frozen(result.size, result.prompts_sha256) else ""
    return page(
        f"Exploration: {result.subject}",
        join([headline_figures(_headlines(story)), facts(story.facts)]),
        [
            Section(
                heading="Measures",
                lead="Each with its 95% interval over prompts, beside real pictures of the same requests, which are the most "
                "that it can be expected to say. A difference between two runs smaller than 'visible' would be missed more "
                "often than once in five. 'judges' is what they name right on real pictures that they never saw, and how "
                "well they tell same from different (.5 is chance); first and second.",
                body=_measures(story),
            ),
            Section(
                heading="Can the measures be trusted?",
                lead="Real pictures with one planted fault each: every measure must see it, and nothing else. Differences "
                "are paired. A measure that fails is rejected above.",
                body=join(
                    [_judges(story.judges), _copies(story.copies), _steps(story.tested.steps), _moved(story.tested)]
                ),
            ),
            Section(
                heading="Common and rare",
                lead="Share of pictures whose thing is recognised, by how many training pictures the thing has.",
                body=_tail(story.sheet),
            ),
            Section(
                heading="Counting",
                lead="How many things each judge sees where a number of them is asked for, picture by picture.",
                body=_counts(story.sheet),
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
                lead="In the order they were asked for; requests.jsonl says of each what was asked, its seed and what "
                "every judge and checker made of it. Nothing is left out.",
                body=join(_sheets(story.sheet)),
            ),
            *filter(None, [licence_section(story.licences)]),
        ],
        kicker=f"suite exploration, {result.size}, {result.num_pictures} pictures, seed {result.seed}",
        footer=f"prompts {result.prompts_sha256[:12]}{published}, drawn by {result.identity[:12]}; "
        f"drawn and measured in {result.seconds / 60:.1f} minutes",
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
        if name in story.result.measures and not story.result.rejected.get(name):
            one, real = story.result.measure(name), story.tested.real.measures.get(name)
            beside = f"; real {next(iter(real.values())).value:.2f}" if real else ""
            shown.append((f"{one.value:.2f}", said, f"{one.interval[0]:.2f} to {one.interval[1]:.2f}{beside}"))
    return shown


def _measures(story: Story) -> Html:
    rows = []
    for name, by_judge in story.result.measures.items():
        meaning, real = MEANINGS[name], story.tested.real.measures.get(name, {})
        first = by_judge.get("first") or by_judge[NO_JUDGE]
        second = by_judge.get("second")
        rows.append(
            [
                name,
                meaning.part,
                meaning.says + _rejected(story.result, name),
                meaning.better,
                with_interval(first),
                "" if second is None else with_interval(second),
                " / ".join(f"{one.value:.2f}" for one in real.values()),
                f"{first.detectable:.2f}",
                f"{first.num_pictures}",
                f"{len(first.units)}",
                _trust(meaning.told_by, story.judges),
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
        "judges",
    ]
    return table(columns, rows, number_columns=columns[4:-1])


def _rejected(result: Result, name: str) -> str:
    judges = result.rejected.get(name, ())
    by = "" if NO_JUDGE in judges else f" by the {' and the '.join(judges)} judge"
    return f"; REJECTED by its self test{by}" if judges else ""


def _trust(told_by: Sequence[ToldBy], judges: Sequence[JudgeReport]) -> str:
    """`style 0.76 / 0.78 (gap 0.89 / 0.91)`."""
    told = []
    for what in told_by:
        right = [one.style if what == "style" else one.concept_top5 for one in judges]
        gaps = [one.style_gap if what == "style" else one.concept_gap for one in judges]
        shown, gap = (" / ".join(f"{value:.2f}" for value in values) for values in (right, gaps))
        told.append(f"{what} {shown} (gap {gap})")
    return "; ".join(told)


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


def _copies(found: Calibration) -> Html:
    return element(
        "p",
        f"Copies: planted ones (moved, scaled, turned, softened, recoloured) are told from the most alike other picture with "
        f"an AUROC of {found.auroc:.3f} on {found.num} pictures that the embedding was not fitted to; {found.found_share:.0%} "
        f"of them pass the threshold of {found.threshold:.3f}, which one real picture in a hundred passes.",
    )


def _moved(tested: SelfTest) -> Html:
    """What changed where nothing should."""
    rows = [[change, *_change(one)] for change, seen in tested.moved.items() for one in seen]
    if not rows:
        return element("p", f"No measure moved by {' or '.join(tested.moved)}.")
    columns = ["change", "measure", "judge", "before", "after"]
    said = f"{len(rows)} measures moved where nothing should move them"
    return folded(said, table(columns, rows, number_columns=columns[3:]))


def _change(one: Agreement) -> list[str]:
    return [one.measure, one.judge, with_interval(one.first), with_interval(one.second)]


def _counts(sheet: Sheet) -> Html:
    rows = []
    for judge in JUDGES:
        for asked, seen in counted(sheet, judge).items():
            rows.append([judge, f"{asked}", *(f"{seen.count(num)}" for num in range(7)), f"{len(seen)}"])
    if not rows:
        return element("p", "No prompt asked for a number of things.")
    columns = ["judge", "asked for", *(f"{num} seen" for num in range(7)), "pictures"]
    return table(columns, rows, number_columns=columns[1:])


def _tail(sheet: Sheet) -> Html:
    if not len(sheet.of_kind("specified", "unseen", "default")):
        return element("p", "No prompt asked for one thing alone.")
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
