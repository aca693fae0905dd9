"""From the results of a run to its page: `report.html` and `metrics.json`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pleinair.cli.steps import Evaluated
from pleinair.cli.workspace import Workspace
from pleinair.config import to_document
from pleinair.curation.drops.reading import StageDrops, read_drops
from pleinair.curation.pictures import decode
from pleinair.curation.sources import STYLES, TRAINING_STYLES
from pleinair.curation.stages import images_table
from pleinair.curation.store import ObjectStore
from pleinair.evaluation.drawings import Drawings
from pleinair.evaluation.report import (
    Drawing,
    DrawingRow,
    Dropped,
    LossCurve,
    NearestExample,
    Neighbour,
    ReportData,
    StepTime,
    StyleLicence,
    write_report,
)
from pleinair.packing.pictures import resize_square
from pleinair.training.engine import read_records

if TYPE_CHECKING:
    from pleinair.krablet import Database

CURVE_POINTS = 200
LICENCE_URLS = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "MIT": "https://opensource.org/license/mit",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
}
WEAKNESSES = (
    "The pictures are 64 pixels wide and the model is four to eleven million parameters: it knows the concepts of its "
    "recipe, on white, in these ten styles, and little else. A prompt outside them gives something near the closest one.",
    "Each (concept, style) pair has one training picture, so a trained pair is largely remembered; "
    "only the outlined cells show what the model can put together.",
)


def report_step(work: Workspace, db: Database, evaluated: Evaluated, seconds: dict[str, float]) -> Path:
    """Write the page and the numbers; returns the page."""
    drops = read_drops(images_table(db))
    metrics = {
        **evaluated.metrics,
        "seconds_total": sum(seconds.values()),
        "seconds": seconds,
        "pictures_in": max((stage.num_in for stage in drops), default=0),
        **{f"dropped_{stage.stage}": stage.num_dropped for stage in drops},
        "training_steps": sum(phase.num_steps for phase in work.recipe.phases),
        "commit": commit(),
        "machine": machine(),
    }
    staging = work.run_dir / ".metrics.json.partial"
    staging.write_text(json.dumps(metrics, indent=2) + "\n")
    os.replace(staging, work.run_dir / "metrics.json")
    return write_report(work.run_dir, report_data(work, drops, evaluated, metrics, seconds))


def report_data(
    work: Workspace, drops: list[StageDrops], evaluated: Evaluated, metrics: dict[str, Any], seconds: dict[str, float]
) -> ReportData:
    """Everything the page shows."""
    recipe = work.recipe
    return ReportData(
        title=recipe.title,
        description=(
            "Drawn from prompts such as <a red apple, noto style> by a small model of K2's architecture, trained from "
            f"nothing by 'pleinair run {recipe.name}'."
        )
        .replace("<", "\u201c")
        .replace(">", "\u201d"),
        styles=[STYLES[style].words for style in TRAINING_STYLES],
        rows=grid_rows(evaluated.drawn, recipe.evaluation.grid_concepts or recipe.concepts),
        metrics={name: value for name, value in metrics.items() if isinstance(value, (int, float, list))},
        licences=[licence(style) for style in TRAINING_STYLES],
        num_pictures_in=int(metrics["pictures_in"]),
        dropped=[row for stage in drops for row in dropped_rows(stage, ObjectStore(work.store))],
        loss_curves=loss_curves(work.run_dir),
        nearest=nearest_examples(evaluated, recipe.sampling.resolution),
        weaknesses=WEAKNESSES,
        configuration=to_document(recipe),
        commit=str(metrics["commit"]),
        machine=str(metrics["machine"]),
        step_times=[
            StepTime(
                name=name, seconds=spent, budget_seconds=60 * recipe.minutes[name] if name in recipe.minutes else None
            )
            for name, spent in seconds.items()
        ],
    )


def grid_rows(drawn: Drawings, labels: Sequence[str]) -> list[DrawingRow]:
    """One row per concept, one cell per style; a cell without a real drawing stays empty."""
    first: dict[tuple[str | None, str | None], Drawing] = {}
    for pair, pixels in zip(drawn.pairs, drawn.pixels_NHWC, strict=True):
        drawing = Drawing(picture=pixels, prompt=pair.prompt, held_out=pair.real.held_out)
        first.setdefault((pair.real.label, pair.real.style), drawing)
    nothing = Drawing(picture=None, prompt="")
    return [
        DrawingRow(concept=label, drawings=[first.get((label, style), nothing) for style in TRAINING_STYLES])
        for label in labels
        if any((label, style) in first for style in TRAINING_STYLES)
    ]


def dropped_rows(stage: StageDrops, store: ObjectStore) -> list[Dropped]:
    """One line per reason, with small copies of a few of its pictures."""
    rows = []
    for reason in stage.reasons:
        shown = [(one.image_name, one.image_path) for one in reason.shown if one.image_path]
        examples = (
            [(_thumbnail(store.get(path)), name) for name, path in shown[:6]]
            if stage.stage not in ("fetch", "probe")
            else []
        )
        rows.append(Dropped(stage=stage.stage, reason=reason.kind, num=reason.count, examples=examples))
    return rows


def _thumbnail(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    from PIL import Image

    return resize_square(Image.fromarray(decode(data)), 64)


def loss_curves(run_dir: Path) -> list[LossCurve]:
    """The loss of each phase, averaged down to a few hundred points."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in read_records(run_dir / "steps.jsonl"):
        curves.setdefault(record.phase, []).append((record.step, record.loss))
    return [_averaged(name, points) for name, points in curves.items()]


def _averaged(name: str, points: list[tuple[int, float]]) -> LossCurve:
    parts = np.array_split(np.array(points), min(CURVE_POINTS, len(points)))
    means = [part.mean(axis=0) for part in parts]
    return LossCurve(
        name=f"transformer, {name}", steps=[float(x) for x, _ in means], losses=[float(y) for _, y in means]
    )


def nearest_examples(evaluated: Evaluated, resolution: int) -> list[NearestExample]:
    """Drawings beside the trained pictures nearest to them."""
    examples = []
    for found in evaluated.neighbours:
        pair, pixels = evaluated.drawn.pairs[found.drawing], evaluated.drawn.pixels_NHWC[found.drawing]
        neighbours = [
            Neighbour(picture=picture.pixels[resolution], caption=picture.captions[-1], similarity=similarity)
            for picture, similarity in found.trained
        ]
        drawing = Drawing(picture=pixels, prompt=pair.prompt, held_out=pair.real.held_out)
        examples.append(NearestExample(drawing=drawing, neighbours=neighbours))
    return examples


def licence(name: str) -> StyleLicence:
    """Who drew a style, and under which terms it is shown."""
    style = STYLES[name]
    url = LICENCE_URLS[style.licence]
    return StyleLicence(
        style=style.words, author=style.author, licence=style.licence, licence_url=url, source=style.package.spec
    )


def commit() -> str:
    """The commit this code is at, with `+` when files differ from it; `unknown` outside a repository."""
    here = Path(__file__).parent
    asked = [["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]]
    answers = [
        subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=False) for words in asked
    ]
    if answers[0].returncode:
        return "unknown"
    return answers[0].stdout.strip() + ("+" if answers[1].stdout.strip() else "")


def machine() -> str:
    """What the run was made on, in a few words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    software = f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores ({cpu}), {memory:.0f} GiB, {software}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
