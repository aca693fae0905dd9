"""The page of a run: `write_report(run_dir, data)` makes `report.html`, one file with every picture inside.

    ReportData  ->  opening (three numbers, the grid)  ->  sections, in the order a doubtful reader asks:
    how good, how weak, memory or invention, the losses, what was dropped, how it was made, whose drawings these are

The page says only what `ReportData` holds; a part without data is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pleinair.pages import (
    GridCell,
    GridRow,
    Html,
    Node,
    Pixels,
    Section,
    Series,
    beside,
    code,
    element,
    encode_png,
    encode_webp,
    facts,
    folded,
    grid,
    headline_figures,
    interval_bar,
    join,
    line_plot,
    mark_swatch,
    page,
    strip,
    table,
    write_page,
)

# Lossless 64-pixel drawings take 3 to 6 kB; beyond this many the page would pass 6 MB, so they become lossy WebP.
MAX_LOSSLESS_PICTURES = 700

ACCURACY_NAMES = {
    "style_accuracy": "style recognised",
    "concept_top1": "concept recognised",
    "concept_top5": "concept among five guesses",
}
SET_TITLES = {
    "heldout": "held-out pairs",
    "train": "training pairs",
    "reconstruction": "real, through the autoencoder",
    "ceiling": "real, held out (ceiling)",
    "floor": "untrained model (floor)",
}
Number = float | int | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One cell of the grid: what the model drew for a prompt, and whether that pair was kept from training."""

    picture: Pixels | bytes | None
    prompt: str
    held_out: bool = False


@dataclass(frozen=True, kw_only=True)
class DrawingRow:
    """One concept in every style, in the order of `ReportData.styles`."""

    concept: str
    drawings: Sequence[Drawing]


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Pictures that one queue stage took out for one reason, with a few of them to look at."""

    stage: str
    reason: str
    num: int
    examples: Sequence[tuple[Pixels | bytes, str]] = ()


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The loss of one training stage over its steps."""

    name: str
    steps: Sequence[float]
    losses: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A training picture near a sample: cosine similarity in judge features, 1 = the same."""

    picture: Pixels | bytes
    caption: str
    similarity: float


@dataclass(frozen=True, kw_only=True)
class NearestExample:
    """A sample beside the training pictures nearest to it."""

    drawing: Drawing
    neighbours: Sequence[Neighbour]


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Wall time of one step of the recipe, with its budget where it had one."""

    name: str
    seconds: float
    budget_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class StyleLicence:
    """Whose drawings a style is made of, and under which terms; CC licences require that the page says so."""

    style: str
    author: str
    licence: str
    licence_url: str
    source: str
    changes: str = "rasterised and reduced"


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything the page shows. `metrics` is the content of metrics.json."""

    title: str
    description: str
    styles: Sequence[str]
    rows: Sequence[DrawingRow]
    metrics: Mapping[str, Number]
    licences: Sequence[StyleLicence]
    num_pictures_in: int = 0
    dropped: Sequence[Dropped] = ()
    loss_curves: Sequence[LossCurve] = ()
    nearest: Sequence[NearestExample] = ()
    weaknesses: Sequence[str] = ()
    configuration: Mapping[str, object] = field(default_factory=dict)
    commit: str = "unknown"
    machine: str = "unknown"
    step_times: Sequence[StepTime] = ()


Encode = Callable[[Pixels | bytes], bytes]


def write_report(run_dir: Path, data: ReportData) -> Path:
    """Write `report.html` into the run's directory, whole or not at all, and return its path."""
    path = run_dir / "report.html"
    write_page(path, render_report(data))
    return path


def render_report(data: ReportData) -> str:
    """The page as text."""
    encode = encoder_for(data)
    sections = [
        measured_section(data.metrics),
        weakness_section(data),
        nearest_section(data.nearest, encode),
        loss_section(data.loss_curves),
        dropped_section(data, encode),
        run_section(data),
        licence_section(data.licences),
    ]
    told = join([element("p", data.description), headline(data.metrics)])
    return page(
        data.title,
        beside(told, drawing_grid(data, encode)),
        [one for one in sections if one is not None],
        kicker=f"pleinair, commit {data.commit}",
        footer="Drawn by a small model trained with pleinair. This file makes no request to any other address.",
    )


def encoder_for(data: ReportData) -> Encode:
    """Lossless PNG where the page stays small, lossy WebP where it would not; encoded bytes pass through."""
    num = sum(len(row.drawings) for row in data.rows) + sum(len(one.examples) for one in data.dropped)
    num += sum(1 + len(one.neighbours) for one in data.nearest)
    write = encode_png if num <= MAX_LOSSLESS_PICTURES else encode_webp
    return lambda source: source if isinstance(source, bytes) else write(source)


def headline(metrics: Mapping[str, Number]) -> Html:
    """The three accuracies on pairs never trained on, each beside what real drawings reach."""
    figures = []
    for key, name in ACCURACY_NAMES.items():
        value, ceiling = metrics.get(f"{key}_heldout"), metrics.get(f"{key}_ceiling")
        if isinstance(value, float | int):
            figures.append((percent(value), name, against_ceiling(value, ceiling)))
    return headline_figures(figures) if figures else Html("")


def against_ceiling(value: float, ceiling: Number | None) -> str:
    """What the number means beside the ceiling."""
    if not isinstance(ceiling, float | int) or ceiling <= 0:
        return "of pairs it was never trained on"
    return f"of pairs it was never trained on; real drawings reach {percent(ceiling)} (ratio {value / ceiling:.2f})"


def drawing_grid(data: ReportData, encode: Encode) -> Html:
    """Concepts by styles, with the pairs the model never saw outlined."""
    rows = [
        GridRow(name=row.concept, cells=[grid_cell(drawing, encode) for drawing in row.drawings]) for row in data.rows
    ]
    return grid(data.styles, rows, legend=legend(data))


def legend(data: ReportData) -> Html:
    """What the grid shows and what its outlines mean."""
    num_held_out = sum(drawing.held_out for row in data.rows for drawing in row.drawings)
    num_gaps = sum(drawing.picture is None for row in data.rows for drawing in row.drawings)
    said = [
        "Every picture is drawn by the model from its prompt. ",
        mark_swatch(),
        f" marks the {num_held_out} pairs it was never trained on: the concept it saw in other styles, the "
        "style on other concepts.",
        " Hatched: the set has no such drawing." if num_gaps else "",
    ]
    return join(said)


def grid_cell(drawing: Drawing, encode: Encode) -> GridCell:
    """One drawing; its prompt is the alternative text."""
    note = f"{drawing.prompt} (never trained on)" if drawing.held_out else drawing.prompt
    shown = None if drawing.picture is None else encode(drawing.picture)
    return GridCell(picture=shown, alt=note, note=note, marked=drawing.held_out)


def measured_section(metrics: Mapping[str, Number]) -> Section | None:
    """The table of accuracies with intervals, then distances."""
    rows = [
        accuracy_row(metrics, key, title, name if index == 0 else Html("&nbsp;"))
        for key, name in ACCURACY_NAMES.items()
        for index, title in enumerate(title for title in SET_TITLES if f"{key}_{title}" in metrics)
    ]
    if not rows:
        return None
    columns = (
        "question",
        "pictures",
        "value",
        "95% interval",
        "of ceiling",
        "between floor (grey) and ceiling (green)",
    )
    body = [table(columns, rows, number_columns=columns[2:5]), distance_table(metrics)]
    lead = (
        "A judge trained on real drawings only names style and concept of each picture, always among all concepts and "
        "styles. What it cannot name on real drawings (the ceiling) no model can win."
    )
    return Section(heading="How good", body=join(body), lead=lead)


def accuracy_row(metrics: Mapping[str, Number], key: str, of_set: str, name: Node) -> list[Node]:
    """One line of the accuracy table."""
    value, interval = metrics[f"{key}_{of_set}"], metrics.get(f"{key}_{of_set}_interval")
    floor, ceiling = (number_of(metrics.get(f"{key}_{side}")) for side in ("floor", "ceiling"))
    if not isinstance(value, float | int):
        raise ValueError(f"the metric '{key}_{of_set}' is {value!r}: it must be a number")
    low, high = interval if isinstance(interval, Sequence) else (value, value)
    share = f"{value / ceiling:.2f}" if ceiling and of_set not in ("ceiling", "floor") else ""
    spelled = f"{low:.2f}\u2013{high:.2f}" if isinstance(interval, Sequence) else ""
    bar = interval_bar(value, (low, high), floor, ceiling)
    shown = element("strong", f"{value:.2f}") if of_set == "heldout" else f"{value:.2f}"
    return [name, count_note(metrics, f"{key}_{of_set}", SET_TITLES[of_set]), shown, spelled, share, bar]


def distance_table(metrics: Mapping[str, Number]) -> Html:
    """Frechet distances and diversities, with what they compare."""
    meanings = {
        "frechet": ("Frechet distance, drawn to real", "lower is nearer"),
        "frechet_reconstruction": ("Frechet distance, reconstructions to real", "what the autoencoder alone costs"),
        "frechet_floor": ("Frechet distance, untrained to real", "the other end"),
        "diversity": ("Vendi score, drawn", "how many different pictures the set is worth"),
        "diversity_real": ("Vendi score, real", "the same for real drawings"),
    }
    rows = [
        [
            name,
            f"{metrics[key]:.3g}",
            interval_text(metrics.get(f"{key}_interval")),
            f"{metrics[f'{key}_n']:,}" if f"{key}_n" in metrics else "",
            note,
        ]
        for key, (name, note) in meanings.items()
        if isinstance(metrics.get(key), float | int)
    ]
    if not rows:
        return Html("")
    note = "In judge features. Small sets make a Frechet distance too large and a Vendi score too small."
    return table(
        ("measure", "value", "95% interval", "n", "reading"),
        rows,
        caption=note,
        number_columns=("value", "95% interval", "n"),
    )


def weakness_section(data: ReportData) -> Section | None:
    """What the numbers admit, then what the run's author adds."""
    found = [*admissions(data.metrics), *data.weaknesses]
    if not found:
        return None
    return Section(heading="How weak", body=element("ul", *(element("li", one) for one in found)))


def admissions(metrics: Mapping[str, Number]) -> list[str]:
    """Sentences that follow from the numbers alone."""
    said = []
    top5, ceiling = (number_of(metrics.get(f"concept_top5_{side}")) for side in ("heldout", "ceiling"))
    if top5 is not None and ceiling:
        said.append(
            f"Of 100 drawings it was never shown, {round(100 * (1 - top5))} have a concept that the judge does "
            f"not find among its first five; of 100 real ones, {round(100 * (1 - ceiling))}."
        )
    top1, seen = (number_of(metrics.get(f"concept_top1_{side}")) for side in ("heldout", "train"))
    if top1 is not None and seen is not None:
        comparison = "better on" if seen > top1 else "no better on"
        said.append(
            f"The model is {comparison} pairs it trained on: concept recognised {seen:.2f} "
            f"there, {top1:.2f} on held-out pairs."
        )
    reconstruction, style = (number_of(metrics.get(f"style_accuracy_{side}")) for side in ("reconstruction", "ceiling"))
    if reconstruction is not None and style:
        said.append(
            f"The autoencoder keeps {reconstruction / style:.2f} of the style accuracy of real "
            "drawings; no sample can pass that."
        )
    return said


def nearest_section(examples: Sequence[NearestExample], encode: Encode) -> Section | None:
    """Samples beside their nearest training pictures."""
    if not examples:
        return None
    pairs = (nearest_pair(one, encode) for one in examples)
    lead = (
        "Each sample beside the training pictures most similar to it in judge features. A held-out sample whose "
        "neighbours are the same concept in other styles, and other concepts in its style, is not a copy."
    )
    return Section(heading="Memory or invention", body=element("div", *pairs, class_="pairs"), lead=lead)


def nearest_pair(example: NearestExample, encode: Encode) -> Html:
    """One sample, large, and its neighbours."""
    near = [
        GridCell(picture=encode(one.picture), alt=one.caption, note=f"{one.caption}, {one.similarity:.2f}")
        for one in example.neighbours
    ]
    drawn = grid_cell(example.drawing, encode)
    alone = GridCell(picture=drawn.picture, alt=drawn.alt, marked=drawn.marked)
    seen = "never trained on" if example.drawing.held_out else "trained on"
    title = element("p", example.drawing.prompt, " ", element("small", seen))
    return element("div", title, strip([alone]), strip(near), class_="pair")


def loss_section(curves: Sequence[LossCurve]) -> Section | None:
    """One plot per training stage."""
    if not curves:
        return None
    plots = (
        element(
            "div",
            element("h3", curve.name),
            line_plot([Series(name=curve.name, x=curve.steps, y=curve.losses)], x_label="step", y_label="loss"),
        )
        for curve in curves
    )
    return Section(heading="Losses", body=element("div", *plots, class_="plots"))


def dropped_section(data: ReportData, encode: Encode) -> Section | None:
    """How many pictures each queue stage took out and why, with some of them."""
    if not data.dropped:
        return None
    total = sum(one.num for one in data.dropped)
    rows = [
        [
            one.stage,
            one.reason,
            f"{one.num:,}",
            strip([GridCell(picture=encode(source), alt=name) for source, name in one.examples])
            if one.examples
            else "",
        ]
        for one in data.dropped
    ]
    lead = (
        f"{total:,} of {data.num_pictures_in:,} pictures were taken out before training."
        if data.num_pictures_in
        else None
    )
    return Section(
        heading="What was dropped", body=table(("stage", "reason", "pictures", "for example"), rows), lead=lead
    )


def run_section(data: ReportData) -> Section:
    """Commit, machine, wall time per step and the whole configuration."""
    about: dict[str, str | Html] = {"commit": element("code", data.commit), "machine": data.machine}
    if data.step_times:
        about["time, all steps"] = duration(sum(step.seconds for step in data.step_times))
    body = [facts(about)]
    if data.step_times:
        rows = [
            [step.name, duration(step.seconds), "" if step.budget_seconds is None else duration(step.budget_seconds)]
            for step in data.step_times
        ]
        body.append(table(("step", "wall time", "budget"), rows, number_columns=("wall time", "budget")))
    if data.configuration:
        body.append(folded("The whole configuration", code(json.dumps(data.configuration, indent=2, default=str))))
    if data.metrics:
        body.append(folded("Every number (metrics.json)", code(json.dumps(dict(data.metrics), indent=2))))
    return Section(heading="How it was made", body=join(body))


def licence_section(licences: Sequence[StyleLicence]) -> Section | None:
    """The drawing sets with authors and licences."""
    if not licences:
        return None
    rows = [
        [one.style, one.author, element("a", one.licence, href=one.licence_url), one.source, one.changes]
        for one in licences
    ]
    lead = "The model learned from these drawing sets, and the real drawings on this page are theirs, under their licences."
    body = table(("style", "author", "licence", "source", "changes"), rows, number_columns=())
    return Section(heading="Whose drawings", body=body, lead=lead)


def number_of(value: Number | None) -> float | None:
    """The value when it is one number."""
    return float(value) if isinstance(value, float | int) else None


def percent(value: float) -> str:
    """0.713 -> `71%`."""
    return f"{100 * value:.0f}%"


def interval_text(interval: Number | None) -> str:
    """`0.61 to 0.79` with an en dash, or nothing."""
    return f"{interval[0]:.3g}\u2013{interval[1]:.3g}" if isinstance(interval, Sequence) else ""


def count_note(metrics: Mapping[str, Number], key: str, title: str) -> Html:
    """The set's name with the number of its pictures."""
    num = metrics.get(f"{key}_n")
    return join([title, element("small", f" ({num:,})")]) if isinstance(num, int) else join([title])


def duration(seconds: float) -> str:
    """`45 s`, `12 min 5 s`, `2 h 31 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
