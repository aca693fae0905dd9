"""`pleinair evaluate CHECKPOINT --suite exploration`: explore what a model can do, and at what cost.

real pictures (warehouse, once) -> world -> judges fitted once, kept beside the warehouse
CHECKPOINT -> subject --draw, in pieces kept in OUT--> pictures --measure--> OUT/metrics.json, OUT/report.html
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pleinair.cli.progress import ProgressLine
from pleinair.cli.suites import EXPLORATION, REFERENCES
from pleinair.config import config_digest
from pleinair.records.errors import ConfigError

if TYPE_CHECKING:
    from pleinair.cli.workspace import Workspace
    from pleinair.evaluation.exploration.looking import Witnesses
    from pleinair.evaluation.exploration.requests import Asked, Size
    from pleinair.evaluation.exploration.sheet import Sheet
    from pleinair.evaluation.exploration.subjects import Subject
    from pleinair.evaluation.exploration.suite import Known, Result
    from pleinair.evaluation.exploration.world import World
    from pleinair.krablet import Database
    from pleinair.packing.pictures import CuratedPicture
    from pleinair.records.preferences import PreferenceEvent
    from pleinair.sampling import Sampler, SamplingConfig

SIDE = 64


def home_of(options: argparse.Namespace) -> Workspace:
    """The warehouse with the real pictures; of a recipe only the source of drawings is used."""
    from pleinair.cli.workspace import open_workspace

    plain: dict[str, Any] = {
        "recipe": "drawings-64",
        "set": [],
        "parent": None,
        "text_encoder": None,
        "autoencoder": None,
        "with_optimiser": False,
        "from_scratch": False,
    }
    plain |= {"runs": options.home / EXPLORATION, "processes": getattr(options, "processes", 2)}
    return open_workspace(argparse.Namespace(**{**vars(options), **plain}))


@dataclass(frozen=True)
class Opened:
    """What is to be measured."""

    name: str
    labels: Sequence[str]
    """What it was trained on."""
    make: Callable[[World], Subject]


def evaluate_exploration(options: argparse.Namespace) -> int:
    """Draw, look, measure, write; prints the table. Goes on where it was stopped."""
    from pleinair.cluster.locks import only_one
    from pleinair.evaluation.exploration.asking import own_requests

    own = None
    size: Size = options.size or "quick"
    if options.prompts is not None:
        from pleinair.evaluation.exploration.requests import read_requests

        own = read_requests(options.prompts)
    opened, work = open_subject(options), home_of(options)
    name = f"{opened.name}-seed-{options.seed}" if options.seed else opened.name
    out: Path = options.output or Path(EXPLORATION) / name
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out):
        world = ready_world(work, opened.labels)
        asked = own_requests(own, world, seed=options.seed) if own else ask_suite(world, size, options.seed)
        bench = Bench(work, world, asked, *ready_witnesses(work, world), "own" if own else size, options.seed)
        result = explore(bench, opened.make(world), out)
    print(as_text(result))
    print(f"page: {out / 'report.html'}")
    return 0


@dataclass(frozen=True)
class Bench:
    """All that a subject is measured with."""

    work: Workspace
    world: World
    asked: Sequence[Asked]
    witnesses: Witnesses
    known: Known
    size: str
    seed: int


def explore(bench: Bench, subject: Subject, out: Path) -> Result:
    """Draw in pieces that are kept in `out`, look, measure, write there."""
    from pleinair.evaluation.exploration.measuring import draw_in_pieces, measure_subject

    began, line = time.monotonic(), ProgressLine(f"pictures of {subject.name}")
    pictures = draw_in_pieces(subject, bench.asked, out / "pictures", line.update)
    result, sheet = measure_subject(
        subject,
        bench.asked,
        bench.world,
        bench.witnesses,
        bench.known,
        pictures=pictures,
        size=bench.size,
        seed=bench.seed,
        began=began,
    )
    return write_all(bench.work, out, result, sheet, bench.witnesses, bench.known)


def open_subject(options: argparse.Namespace) -> Opened:
    """The subject the command names, its model loaded. Raises ConfigError, CheckpointError before any work is done."""
    from pleinair.cli.places import shipped
    from pleinair.evaluation.exploration.subjects import Drawn, Real, Reconstructed
    from pleinair.recipes import find_recipe
    from pleinair.sampling.shipped import load_autoencoder

    name: str = options.recipe
    concepts = find_recipe(options.concepts or trained_on(Path(name)) or "drawings-64").concepts
    if name == "real":
        return Opened(name, concepts, Real)
    if name == "reconstruction":
        return Opened(
            name, concepts, lambda world: Reconstructed(Real(world), load_autoencoder(shipped("autoencoder")))
        )
    sampler, config = open_model(name)
    if config.resolution != SIDE:
        raise ConfigError(
            f"{name} draws {config.resolution} pixels a side and the judges know pictures of {SIDE}: evaluate a model of "
            f"{SIDE} pixels, or use a published benchmark"
        )
    short = name if name in REFERENCES else "-".join(Path(name).resolve().with_suffix("").parts[-2:])
    return Opened(short, concepts, lambda world: Drawn(short, sampler, config))


def trained_on(place: Path) -> str | None:
    """The recipe of a run's folder or of a checkpoint in one."""
    for folder in (place, *place.parents[:2]):
        if (folder / "config.json").exists() and (folder / "checkpoints").is_dir():
            name: str = json.loads((folder / "config.json").read_text())["name"]
            return name
    return None


def open_model(name: str) -> tuple[Sampler, SamplingConfig]:
    """The sampler of a run's folder, a checkpoint, a packaged file, the shipped model, or one that learned nothing."""
    from pleinair.checkpoint.manifests import MANIFEST
    from pleinair.cli.encoders import open_text_encoder
    from pleinair.cli.places import shipped
    from pleinair.cli.sample import open_sampler
    from pleinair.model.transformer import Transformer
    from pleinair.sampling import Sampler
    from pleinair.sampling.checkpoints import read_model
    from pleinair.sampling.shipped import load_autoencoder
    from pleinair.sampling.stored import sampling_of

    place = Path(name)
    if name == "shipped":
        return open_sampler()
    if name == "untrained":
        sampler, config = open_sampler()
        torch.manual_seed(0)
        return replace(sampler, transformer=Transformer(sampler.transformer.config)), config
    if place.is_file():
        return open_sampler(model=place)
    if (place / "checkpoints").is_dir():
        return open_sampler(run_dir=place)
    if not place.is_dir():
        raise ConfigError(
            f"there is no {name}: give a run's folder, a checkpoint, a file of `export --to package`, or one of "
            + ", ".join(REFERENCES)
        )
    if not (place / MANIFEST).exists():
        raise ConfigError(
            f"{name} is no checkpoint: it has no {MANIFEST}. Folders of other layouts, such as diffusers', do not say which "
            "text features and latents a model draws with: give a run's folder or one of its checkpoints"
        )
    transformer, projection = read_model(place)
    sampler = Sampler(transformer, load_autoencoder(shipped("autoencoder")), open_text_encoder(), projection)
    return sampler, sampling_of(place)


def ready_world(work: Workspace, labels: Sequence[str] = ()) -> World:
    """The curated drawings of the warehouse, kept as one file; delete it to read them again.

    A warehouse without any is filled and curated first. One that has some is left as it is: curating it here would judge
    its pictures anew, by other limits than their owner's.
    """
    from pleinair.cli import steps
    from pleinair.cli.places import shipped
    from pleinair.evaluation.exploration.world import World
    from pleinair.model.judge import load_judge
    from pleinair.packing.pictures import picture_set
    from pleinair.packs.pictures import load_pictures, save_pictures

    path = work.home / EXPLORATION / "drawings-64px.npz"
    listed = path.with_suffix(".labels.json")
    if not listed.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with steps.open_database(work) as db:
            found = read_drawings_of(work, db)
        save_pictures(picture_set(found, SIDE), path)
        write_text(listed, json.dumps({one.label: one.concept for one in found if one.label and one.concept}))
    judge = load_judge(shipped("judge")).config
    pictures, slugs = load_pictures(path), json.loads(listed.read_text())
    numbers = {name: number for number, name in enumerate(judge.concept_names)}
    pictures = pictures.where(np.array([concept in numbers for concept in pictures.concepts]))
    return World(
        keys=pictures.keys,
        pictures=pictures.pixels_NHWC,
        styles=np.array([judge.style_names.index(style) for style in pictures.styles]),
        concepts=np.array([numbers[concept] for concept in pictures.concepts]),
        held_out=pictures.held_out,
        style_names=judge.style_names,
        concept_names=judge.concept_names,
        concept_of_label={label: numbers[slug] for label, slug in slugs.items() if slug in numbers},
        trained_labels=[label for label in labels if slugs.get(label) in numbers],
    )


def read_drawings_of(work: Workspace, db: Database) -> list[CuratedPicture]:
    """Every kept drawing of the training styles."""
    from pleinair.cli import steps
    from pleinair.curation.sources import TRAINING_STYLES
    from pleinair.curation.stages import images_table, kept_where
    from pleinair.curation.store import ObjectStore
    from pleinair.packing.pictures import read_curated

    images, params = images_table(db), (list(TRAINING_STYLES),)
    drawings = "source = 'drawings' AND style = ANY(%s)"
    if not images.count(f"{kept_where(images)} AND {drawings}", params=params):
        steps.ingest_step(work, db)
        steps.curate_step(work, db)
    line, where = ProgressLine("real pictures"), f"{kept_where(images)} AND {drawings}"
    total, store = images.count(where, params=params), ObjectStore(work.store)
    found = read_curated(
        images, store, [SIDE], where=where, params=params, on_progress=lambda done: line.update(done, total)
    )
    line.close()
    return found


def ready_witnesses(work: Workspace, world: World, reader: str = "rapidocr") -> tuple[Witnesses, Known]:
    """Both judges, the copy embedding and the reader, for a world, beside the warehouse."""
    from pleinair.captioning.ocr import text_reader
    from pleinair.cli.places import shipped
    from pleinair.evaluation.exploration.fitting import fit_witnesses
    from pleinair.evaluation.features import PictureFeatures
    from pleinair.model.efficientnet import fetch_efficientnet
    from pleinair.model.judge import load_judge

    features = PictureFeatures(fetch_efficientnet(work.cache / "efficientnet-lite0"))
    folder = work.home / EXPLORATION / config_digest([features.name, list(world.keys)])[:12]
    judge = load_judge(shipped("judge"))
    return fit_witnesses(world, judge, features, text_reader(reader), folder, lambda said: ProgressLine(said).update)


def ask_suite(world: World, size: Size, seed: int) -> list[Asked]:
    """The suite's requests of a size, in the words that captions use for styles."""
    from pleinair.curation.sources import STYLES
    from pleinair.evaluation.exploration.asking import suite_requests

    return suite_requests(world, {name: style.words for name, style in STYLES.items()}, size, seed=seed)


def write_all(work: Workspace, out: Path, result: Result, sheet: Sheet, witnesses: Witnesses, known: Known) -> Result:
    """`metrics.json`, `requests.jsonl` and the page, each by rename; gives the result with what its self test rejects."""
    from pleinair.cli.report import commit, licence, machine
    from pleinair.curation.sources import TRAINING_STYLES
    from pleinair.evaluation.exploration.fitting import judge_reports
    from pleinair.evaluation.exploration.page import Story, exploration_page
    from pleinair.evaluation.exploration.self_test import self_test
    from pleinair.evaluation.exploration.suite import to_document
    from pleinair.evaluation.exploration.trace import REQUESTS, trace_lines
    from pleinair.pages import write_page
    from pleinair.records.preferences import PREFERENCES

    tested = self_test(sheet, witnesses, known, work.home / EXPLORATION, ProgressLine("self test").update)
    result = replace(result, rejected=tested.rejected)
    judges = judge_reports(sheet.world, witnesses)
    facts = {"commit": commit(), "machine": machine(), "origin of every judgement": "synthetic"}
    trust = {"judges": [asdict(one) for one in judges], "copies": asdict(witnesses.calibration)}
    document = {**to_document(result), **facts, **trust}
    write_text(out / "metrics.json", json.dumps(document, indent=1) + "\n")
    write_text(out / REQUESTS, "".join(trace_lines(sheet, known)))
    story = Story(
        result=result,
        sheet=sheet,
        judges=judges,
        copies=witnesses.calibration,
        tested=tested,
        preferences=answers_about(result, out.parent / PREFERENCES),
        facts=facts,
        licences=[licence(style) for style in TRAINING_STYLES],
    )
    write_page(out / "report.html", exploration_page(story))
    return result


def answers_about(result: Result, log: Path) -> list[PreferenceEvent]:
    """Answers of `pleinair sides` in which the subject was a side, of the same prompts."""
    from pleinair.records.preferences import read_preferences

    return [
        event
        for event in read_preferences(log)
        if event.prompts_sha256 == result.prompts_sha256 and result.subject in (event.left.subject, event.right.subject)
    ]


def as_text(result: Result) -> str:
    """The table for a terminal."""
    from pleinair.evaluation.exploration.requests import are_frozen
    from pleinair.evaluation.exploration.suite import MEANINGS

    lines = [f"{'measure':26} {'first judge':24} {'second judge':24} {'n':>5}  says"]
    for name, by_judge in result.measures.items():
        one, other = next(iter(by_judge.values())), by_judge.get("second")
        cells = [f"{x.value:.3f} [{x.interval[0]:.3f}, {x.interval[1]:.3f}]" if x else "" for x in (one, other)]
        said = MEANINGS[name].says
        if result.rejected.get(name):
            said = f"REJECTED by the self test ({', '.join(result.rejected[name])}): {said}"
        lines.append(f"{name:26} {cells[0]:24} {cells[1]:24} {one.num_pictures:5}  {said}")
    known = "the published ones" if are_frozen(result.size, result.prompts_sha256) else "none that are published"
    return "\n".join([*lines, f"prompts: {known}, {result.prompts_sha256[:16]}"])


def write_text(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text(text)
    os.replace(staging, path)
