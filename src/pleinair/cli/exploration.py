"""`pleinair evaluate CHECKPOINT --suite exploration` and `pleinair ledger`: explore what a model can do, and at what cost.

real pictures (warehouse, once) -> world -> judges fitted once, kept beside the warehouse
CHECKPOINT -> subject --draw, in pieces kept in OUT--> pictures --measure--> OUT/metrics.json, OUT/report.html
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pleinair.cli.progress import ProgressLine
from pleinair.cli.published import SUITES, add_judge_options
from pleinair.config import config_digest
from pleinair.records.errors import ConfigError

if TYPE_CHECKING:
    from pleinair.cli.workspace import Workspace
    from pleinair.evaluation.exploration.requests import Asked, Size
    from pleinair.evaluation.exploration.sheet import Sheet, Witnesses
    from pleinair.evaluation.exploration.subjects import Subject
    from pleinair.evaluation.exploration.suite import Known, Result
    from pleinair.evaluation.exploration.world import Pictures, World
    from pleinair.krablet import Database
    from pleinair.packing.pictures import CuratedPicture
    from pleinair.records.preferences import PreferenceEvent
    from pleinair.sampling import Sampler, SamplingConfig

REFERENCES = ("real", "reconstruction", "untrained", "shipped")
PIECE = 64
"""Pictures reconstructed at once."""
SIDE = 64
EXPLORATION = "exploration"


def register(verbs: Any) -> None:
    """Add the verb `ledger`; `evaluate` gets its options from `add_suite_options`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "ledger",
        help="what each stage of a lineage gained and lost, from the metrics of each",
        description="One row per stage: can it, left alone, transfer, near copies, beside the change since the first stage.",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="METRICS", help="metrics.json of each stage, in order")
    parser.add_argument("-o", "--output", type=Path, help="page to write as well")
    parser.set_defaults(run=show_ledger)
    parser = verbs.add_parser(
        "orders",
        help="whether subjects come out in the order that they must",
        description="Compare untrained, a model, reconstruction and real, measure by measure, with the expected orders.",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="METRICS", help="metrics.json of each subject")
    parser.add_argument("-o", "--output", type=Path, help="page to write as well")
    parser.set_defaults(run=show_orders)


def add_suite_options(parser: argparse.ArgumentParser) -> None:
    """Options of `evaluate` that belong to suites."""
    parser.add_argument(
        "--suite",
        choices=[EXPLORATION, *SUITES],
        help="measure a checkpoint, a packaged file, a run's folder, or one of "
        + ", ".join(REFERENCES)
        + "; all but exploration are published benchmarks, whose prompts and judge you bring",
    )
    parser.add_argument("--size", choices=["quick", "full"], default="quick", help="how much is drawn (default: quick)")
    parser.add_argument("--seed", type=int, default=0, help="other pictures of the same prompts (default: 0)")
    parser.add_argument(
        "--concepts", metavar="RECIPE", help="what it was trained on (default: the run's, or drawings-64)"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts of your own, one JSON object per line; of a published benchmark the file or folder it publishes",
    )
    parser.add_argument("-o", "--output", type=Path, help="folder to write (default: SUITE/NAME)")
    add_judge_options(parser)


def home_of(options: argparse.Namespace) -> Workspace:
    """The warehouse with the real pictures; of a recipe only the source of drawings is used."""
    from pleinair.cli.workspace import open_workspace

    options = argparse.Namespace(**{**vars(options), "recipe": "drawings-64", "runs": options.home / EXPLORATION})
    return open_workspace(options)


@dataclass(frozen=True)
class Opened:
    """What is to be measured."""

    name: str
    labels: Sequence[str]
    """What it was trained on."""
    make: Callable[[World], Subject]


def evaluate_suite(work: Workspace, options: argparse.Namespace) -> int:
    """Draw, look, measure, write; prints the table. Goes on where it was stopped."""
    from pleinair.captioning.ocr import text_reader
    from pleinair.cli.workspace import only_one
    from pleinair.evaluation.exploration.asking import own_requests
    from pleinair.evaluation.exploration.measuring import draw_in_pieces, measure_subject

    if options.judge is not None:
        raise ConfigError("--judge is for published benchmarks: the exploration suite has judges of its own")
    own = None
    if options.prompts is not None:
        from pleinair.evaluation.exploration.requests import read_requests

        own = read_requests(options.prompts)
    opened = open_subject(work, options)
    out: Path = options.output or Path(EXPLORATION) / opened.name
    out.mkdir(parents=True, exist_ok=True)
    with only_one(out):
        world = ready_world(work, opened.labels)
        witnesses, known = ready_witnesses(work, world)
        asked = own_requests(own, world, seed=options.seed) if own else ask_suite(world, options.size, options.seed)
        subject, line = opened.make(world), ProgressLine(f"pictures of {opened.name}")
        pictures = draw_in_pieces(subject, asked, out / "pictures", line.update)
        size = "own" if own else options.size
        result, sheet = measure_subject(
            subject,
            asked,
            world,
            witnesses,
            known,
            text_reader("rapidocr"),
            pictures=pictures,
            size=size,
            seed=options.seed,
        )
        write_all(work, out, result, sheet, witnesses, known)
    print(as_text(result))
    print(f"page: {out / 'report.html'}")
    return 0


def open_subject(work: Workspace, options: argparse.Namespace) -> Opened:
    """The subject the command names, its model loaded. Raises ConfigError, CheckpointError before any work is done."""
    from pleinair.evaluation.exploration.subjects import Drawn, Real, Reconstructed
    from pleinair.recipes import find_recipe

    name: str = options.recipe
    concepts = find_recipe(options.concepts or trained_on(Path(name)) or "drawings-64").concepts
    if name == "real":
        return Opened(name, concepts, Real)
    if name == "reconstruction":
        return Opened(name, concepts, lambda world: Reconstructed(Real(world), reconstructor()))
    sampler, config = open_model(name)
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
    from pleinair.cli.places import shipped
    from pleinair.cli.sample import open_sampler
    from pleinair.cli.steps import open_text_encoder, read_model
    from pleinair.model.transformer import Transformer
    from pleinair.sampling import Sampler
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
    transformer, projection = read_model(place)
    sampler = Sampler(transformer, load_autoencoder(shipped("autoencoder")), open_text_encoder(), projection)
    return sampler, sampling_of(place)


def reconstructor() -> Callable[[Pictures], Pictures]:
    """Pictures through the shipped autoencoder."""
    from pleinair.cli.places import shipped
    from pleinair.model.pixels import to_bytes, to_signed_unit
    from pleinair.sampling.shipped import load_autoencoder

    autoencoder = load_autoencoder(shipped("autoencoder"))

    def reconstruct(pictures_NHWC: Pictures) -> Pictures:
        with torch.inference_mode():
            parts = [pictures_NHWC[start : start + PIECE] for start in range(0, len(pictures_NHWC), PIECE)]
            return np.concatenate(
                [to_bytes(autoencoder.decode(autoencoder.encode(to_signed_unit(one)))) for one in parts]
            )

    return reconstruct


def ready_world(work: Workspace, labels: Sequence[str]) -> World:
    """The curated drawings of the warehouse, kept as one file; delete it to read them again.

    A warehouse without any is filled and curated first. One that has some is left as it is: curating it here would judge
    its pictures anew, by other limits than their owner's.
    """
    from pleinair.cli import steps
    from pleinair.cli.places import shipped
    from pleinair.evaluation.exploration.world import World
    from pleinair.evaluation.judge import load_judge
    from pleinair.packing.pictures import picture_set
    from pleinair.packs.pictures import load_pictures, save_pictures

    path = work.home / EXPLORATION / "drawings-64px.npz"
    listed = path.with_suffix(".labels.json")
    if not listed.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with steps.open_database(work) as db:
            found = read_drawings_of(work, db)
        save_pictures(picture_set(found, SIDE), path)
        _write(listed, json.dumps({one.label: one.concept for one in found if one.label and one.concept}))
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


def ready_witnesses(work: Workspace, world: World) -> tuple[Witnesses, Known]:
    """Both judges and the copy embedding of a world, beside the warehouse."""
    from pleinair.cli.places import shipped
    from pleinair.evaluation.exploration.fitting import fit_witnesses
    from pleinair.evaluation.features import PictureFeatures
    from pleinair.evaluation.judge import load_judge
    from pleinair.model.efficientnet import fetch_efficientnet

    features = PictureFeatures(fetch_efficientnet(work.cache / "efficientnet-lite0"))
    folder = work.home / EXPLORATION / config_digest([features.name, list(world.keys)])[:12]
    judge = load_judge(shipped("judge"))
    return fit_witnesses(world, judge, features, folder, lambda said: ProgressLine(said).update)


def ask_suite(world: World, size: Size, seed: int) -> list[Asked]:
    """The suite's requests of a size, in the words that captions use for styles."""
    from pleinair.curation.sources import STYLES
    from pleinair.evaluation.exploration.asking import suite_requests

    return suite_requests(world, {name: style.words for name, style in STYLES.items()}, size, seed=seed)


def write_all(work: Workspace, out: Path, result: Result, sheet: Sheet, witnesses: Witnesses, known: Known) -> None:
    """`metrics.json`, `prompts.txt` and the page, each by rename."""
    from pleinair.captioning.ocr import text_reader
    from pleinair.cli.report import commit, machine
    from pleinair.evaluation.exploration.fitting import judge_reports
    from pleinair.evaluation.exploration.measuring import self_test
    from pleinair.evaluation.exploration.orders import SELF_TEST, check_orders
    from pleinair.evaluation.exploration.page import Story, exploration_page
    from pleinair.evaluation.exploration.suite import to_document
    from pleinair.pages import write_page
    from pleinair.records.preferences import PREFERENCES

    line = ProgressLine("self test")
    planted = self_test(sheet, witnesses, known, text_reader("rapidocr"), work.home / EXPLORATION, line.update)
    document = {**to_document(result), "commit": commit(), "machine": machine()}
    _write(out / "metrics.json", json.dumps(document, indent=1) + "\n")
    _write(out / "prompts.txt", "".join(f"{one.seed}\t{one.request.unit}\n" for one in sheet.asked))
    story = Story(
        result=result,
        real=planted["real"],
        sheet=sheet,
        judges=judge_reports(sheet.world, witnesses),
        self_test=check_orders(SELF_TEST, planted),
        preferences=answers_about(result, out.parent / PREFERENCES),
        facts={"commit": document["commit"], "machine": document["machine"], "origin of every judgement": "synthetic"},
    )
    write_page(out / "report.html", exploration_page(story))


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
    from pleinair.evaluation.exploration.suite import MEANINGS

    lines = [f"{'measure':26} {'first judge':24} {'second judge':24} {'n':>5}  says"]
    for name, by_judge in result.measures.items():
        one, other = next(iter(by_judge.values())), by_judge.get("second")
        cells = [f"{x.value:.3f} [{x.interval[0]:.3f}, {x.interval[1]:.3f}]" if x else "" for x in (one, other)]
        lines.append(f"{name:26} {cells[0]:24} {cells[1]:24} {one.num_pictures:5}  {MEANINGS[name].says}")
    return "\n".join(lines)


def show_ledger(options: argparse.Namespace) -> int:
    """Print the ledger, and write its page when asked."""
    from pleinair.evaluation.exploration.ledger import ledger, ledger_page
    from pleinair.evaluation.exploration.suite import from_document
    from pleinair.pages import write_page

    rows = ledger([from_document(_read(path)) for path in options.results])
    for subject, entries in rows:
        print(subject)
        for entry in entries:
            change = "" if entry.since_first is None else f"{entry.since_first.difference:+.3f} since the first"
            agree = "" if entry.judges_agree else ", the judges disagree"
            print(f"  {entry.measure:20} {entry.measured.value:.3f} {change}{agree}")
    if options.output is not None:
        write_page(options.output, ledger_page(rows))
        print(f"page: {options.output}")
    return 0


def show_orders(options: argparse.Namespace) -> int:
    """Print each expected order, and whether it holds; 1 when one does not."""
    from pleinair.evaluation.exploration.orders import SUBJECTS, check_orders, orders_page
    from pleinair.evaluation.exploration.suite import from_document
    from pleinair.pages import write_page

    found = [from_document(_read(path)) for path in options.results]
    models = [one.subject for one in found if one.subject not in REFERENCES or one.subject == "shipped"]
    if len(models) != 1 or len(found) < 2:
        raise ConfigError(
            f"orders are of one model and its references, not of {len(models)} models: give one, and real"
        )
    results = {"model" if one.subject == models[0] else one.subject: one for one in found}
    steps = check_orders(SUBJECTS, results)
    for step in steps:
        low, high = step.comparison.interval
        change = f"{step.comparison.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        order = f"{step.lower} {step.relation} {step.upper}"
        print(f"{step.measure:26} {step.judge:7} {order:32} {change:26} {'holds' if step.holds else 'FAILS'}")
    print(f"{sum(step.holds for step in steps)} of {len(steps)} hold")
    if options.output is not None:
        write_page(options.output, orders_page(models[0], results, steps))
        print(f"page: {options.output}")
    return 0 if all(step.holds for step in steps) else 1


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as unreadable:
        raise ConfigError(
            f"{path} cannot be read ({unreadable}): give a metrics.json that evaluate wrote"
        ) from unreadable
    return document


def _write(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text(text)
    os.replace(staging, path)
