"""`pleinair evaluate CHECKPOINT --suite exploration` and `pleinair ledger`: explore what a model can do, and at what cost.

real pictures (warehouse, once) -> world -> judges fitted once, kept beside the warehouse
CHECKPOINT -> subject --draw, in pieces kept in OUT--> pictures --measure--> OUT/metrics.json, OUT/report.html
"""

from __future__ import annotations

import argparse
import json
import os
import time
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
    from pleinair.evaluation.exploration.page import JudgeReport
    from pleinair.evaluation.exploration.requests import Asked, Request, Size
    from pleinair.evaluation.exploration.sheet import Sheet, Witnesses
    from pleinair.evaluation.exploration.subjects import Subject
    from pleinair.evaluation.exploration.suite import Known, Result
    from pleinair.evaluation.exploration.world import Pictures, World
    from pleinair.evaluation.features import Features, PictureFeatures
    from pleinair.evaluation.judge import Judge
    from pleinair.records.preferences import PreferenceEvent
    from pleinair.sampling import Sampler, SamplingConfig

REFERENCES = ("real", "reconstruction", "untrained", "shipped")
PIECE = 64
"""Pictures drawn between two that are kept: what an interruption costs at most."""
FEATURES_PIECE = 1024
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
    from pleinair.cli.workspace import only_one

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
        asked = plan(world, options.size, options.seed, own)
        result, sheet = measure_subject(opened.make(world), asked, witnesses, known, world, out)
        result = replace(result, size="own" if own else options.size, seed=options.seed)
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
    from pleinair.sampling import Sampler, SamplingConfig
    from pleinair.sampling.shipped import load_autoencoder

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
    return Sampler(
        transformer, load_autoencoder(shipped("autoencoder")), open_text_encoder(), projection
    ), SamplingConfig()


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
    """The drawings of the warehouse, listed and curated first where they are not, and kept as one file."""
    from pleinair.cli import steps
    from pleinair.curation.sources import TRAINING_STYLES
    from pleinair.curation.stages import images_table, kept_where
    from pleinair.curation.store import ObjectStore
    from pleinair.evaluation.exploration.world import World
    from pleinair.packing.pictures import picture_set, read_curated
    from pleinair.packs.pictures import load_pictures, save_pictures

    path = work.home / EXPLORATION / "drawings-64px.npz"
    listed = path.with_suffix(".labels.json")
    if not listed.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with steps.open_database(work) as db:
            steps.ingest_step(work, db)
            steps.curate_step(work, db)
            images, line = images_table(db), ProgressLine("real pictures")
            where, params = (
                f"{kept_where(images)} AND source = 'drawings' AND style = ANY(%s)",
                (list(TRAINING_STYLES),),
            )
            total = images.count(where, params=params)
            store = ObjectStore(work.store)
            found = read_curated(
                images, store, [SIDE], where=where, params=params, on_progress=lambda done: line.update(done, total)
            )
            line.close()
        save_pictures(picture_set(found, SIDE), path)
        listed.write_text(json.dumps({one.label: one.concept for one in found if one.label and one.concept}))
    judge = shipped_judge().config
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


def shipped_judge() -> Judge:
    """The first judge."""
    from pleinair.cli.places import shipped
    from pleinair.evaluation.judge import load_judge

    return load_judge(shipped("judge"))


def ready_witnesses(work: Workspace, world: World) -> tuple[Witnesses, Known]:
    """Both judges and the copy embedding; what is not there is fitted to the world's trained pictures, once."""
    from pleinair.evaluation.copies import CopyConfig, calibrate, changed, fit_copies, load_copies, save_copies
    from pleinair.evaluation.exploration.sheet import Witnesses
    from pleinair.evaluation.exploration.suite import Known
    from pleinair.evaluation.features import PictureFeatures
    from pleinair.evaluation.second_judge import (
        SecondJudgeConfig,
        fit_second_judge,
        load_second_judge,
        save_second_judge,
    )
    from pleinair.model.efficientnet import fetch_efficientnet

    features = PictureFeatures(fetch_efficientnet(work.cache / "efficientnet-lite0"))
    folder = work.home / EXPLORATION / config_digest([features.name, list(world.keys)])[:12]
    folder.mkdir(parents=True, exist_ok=True)
    plain = kept_features(features, world.pictures, folder / "plain.npz", "real pictures looked at")
    if not (folder / "copies.safetensors").exists():
        after = kept_features(
            features, changed(world.pictures, 0), folder / "changed.npz", "changed pictures looked at"
        )
        seen = ~world.held_out
        line = ProgressLine("second judge")
        config = SecondJudgeConfig(
            style_names=tuple(world.style_names),
            concept_names=tuple(world.concept_names),
            features=features.name,
            width=plain.shape[1],
        )
        both = np.concatenate([plain[seen], after[seen]])
        styles, concepts = (np.tile(of[seen], 2) for of in (world.styles, world.concepts))
        save_second_judge(
            fit_second_judge(both, styles, concepts, config, line.update), folder / "second-judge.safetensors"
        )
        line = ProgressLine("copy embedding")
        copies = fit_copies(plain[seen], after[seen], CopyConfig(width=plain.shape[1]), line.update)
        unseen = ~seen
        calibration = calibrate(copies.embed(plain[unseen]), copies.embed(after[unseen]))
        save_copies(copies, calibration, folder / "copies.safetensors")
    second = load_second_judge(folder / "second-judge.safetensors")
    copies, calibration = load_copies(folder / "copies.safetensors")
    trained = [world.concept_of_label[label] for label in world.trained_labels]
    tested = np.flatnonzero(world.held_out & np.isin(world.concepts, trained))
    known = Known(copies.embed(plain), tested, second.standardised(plain[tested]))
    return Witnesses(shipped_judge(), second, copies, calibration, features), known


def kept_features(features: PictureFeatures, pictures: Pictures, path: Path, said: str) -> Features:
    """Features of pictures, kept in pieces so that an interruption costs little."""
    parts, line = [], ProgressLine(said)
    for start in range(0, len(pictures), FEATURES_PIECE):
        piece = path.with_suffix(f".{start // FEATURES_PIECE}.npy")
        if not piece.exists():
            staging = piece.with_name(f".{piece.name}")
            np.save(staging, features.of(pictures[start : start + FEATURES_PIECE]).astype(np.float16))
            os.replace(staging, piece)
        parts.append(np.load(piece, allow_pickle=False).astype(np.float32))
        line.update(min(start + FEATURES_PIECE, len(pictures)), len(pictures))
    line.close()
    return np.concatenate(parts)


def plan(world: World, size: Size, seed: int, own: Sequence[Request] | None) -> list[Asked]:
    """What is asked: the suite's prompts, or the reader's own, each once."""
    from pleinair.curation.sources import STYLES
    from pleinair.evaluation.exploration.requests import PLANS, Asked, build_requests, plan_requests

    if own is not None:
        for one in own:
            unknown = [label for label in (one.label, one.other) if label and label not in world.concept_of_label]
            if unknown or (one.style and one.style not in world.style_names):
                raise ConfigError(
                    f"{one.prompt!r} should show {(unknown or [one.style])[0]!r}, which no judge knows: use labels of the "
                    f"drawing sets, and styles {', '.join(world.style_names)}"
                )
        return [Asked(one, seed * 1_000_003 + place) for place, one in enumerate(own)]
    concepts = {label: world.concept_names[world.concept_of_label[label]] for label in world.trained_labels}
    requests = build_requests(concepts, {style: STYLES[style].words for style in world.style_names})
    return plan_requests([one for one in requests if is_real(one, world)], PLANS[size], seed=seed)


def is_real(request: Request, world: World) -> bool:
    """Whether a real picture shows what is asked, so that every subject has a real one beside it."""
    if request.style:
        return world.row(request.label, request.style) is not None
    return request.kind != "colour" or request.label in world.concept_of_label


def measure_subject(
    subject: Subject, asked: Sequence[Asked], witnesses: Witnesses, known: Known, world: World, out: Path | None
) -> tuple[Result, Sheet]:
    """Every measure of a subject; with `out`, its pictures are kept there. Raises ConfigError."""
    from pleinair.captioning.ocr import text_reader
    from pleinair.evaluation.exploration.requests import digest_requests
    from pleinair.evaluation.exploration.suite import Result, measure_all

    began = time.monotonic()
    pictures = subject.draw(asked) if out is None else draw_in_pieces(subject, asked, out)
    try:
        sheet = witnesses.look(world, asked, pictures)
        measures = measure_all(sheet, witnesses, known, text_reader("rapidocr"))
    except ValueError as refused:
        raise ConfigError(str(refused)) from refused
    distinct = list({one.request.unit: one.request for one in asked}.values())
    result = Result(
        subject=subject.name,
        size="",
        seed=0,
        prompts_sha256=digest_requests(distinct),
        num_pictures=len(asked),
        seconds=time.monotonic() - began,
        measures=measures,
    )
    return result, sheet


def draw_in_pieces(subject: Subject, asked: Sequence[Asked], out: Path) -> Pictures:
    """The subject's pictures, a piece at a time, each kept until the next command of the same subject and prompts."""
    from pleinair.cli.steps import read_drawings, write_drawings

    folder, parts, line = out / "pictures", [], ProgressLine(f"pictures of {subject.name}")
    folder.mkdir(exist_ok=True)
    identity = subject_digest(subject)
    for start in range(0, len(asked), PIECE):
        piece = asked[start : start + PIECE]
        stamp = config_digest([identity, [[one.request.prompt, one.seed] for one in piece]])
        kept = folder / f"{start // PIECE:04}.npz"
        pictures = read_drawings(kept, stamp)
        if pictures is None:
            pictures = subject.draw(piece)
            write_drawings(kept, stamp, pictures)
        parts.append(pictures)
        line.update(start + len(piece), len(asked))
    line.close()
    return np.concatenate(parts)


def subject_digest(subject: Subject) -> str:
    """What identifies a subject's pictures: a model's weights and settings, or its name."""
    from pleinair.evaluation.exploration.subjects import Drawn
    from pleinair.model.digest import part_digest

    if isinstance(subject, Drawn):
        return config_digest([part_digest(subject.sampler.transformer), subject.config])
    return subject.name


def write_all(work: Workspace, out: Path, result: Result, sheet: Sheet, witnesses: Witnesses, known: Known) -> None:
    """`metrics.json`, `prompts.txt` and the page, each by rename."""
    from pleinair.cli.report import commit, machine
    from pleinair.evaluation.exploration.orders import SELF_TEST, check_orders
    from pleinair.evaluation.exploration.page import Story, exploration_page
    from pleinair.evaluation.exploration.suite import to_document
    from pleinair.pages import write_page
    from pleinair.records.preferences import PREFERENCES

    planted = self_test(work, sheet, witnesses, known)
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


def self_test(work: Workspace, sheet: Sheet, witnesses: Witnesses, known: Known) -> dict[str, Result]:
    """Real pictures and their damaged forms, measured on the same requests; kept per list of requests."""
    from pleinair.evaluation.exploration import damage
    from pleinair.evaluation.exploration.subjects import Real
    from pleinair.evaluation.exploration.suite import from_document, to_document

    world, asked = sheet.world, sheet.asked
    stamp = config_digest([list(world.keys), [[one.request.unit, one.seed] for one in asked], witnesses.features.name])
    kept = work.home / EXPLORATION / f"self-test-{stamp[:12]}.json"
    if kept.exists():
        documents = json.loads(kept.read_text())
    else:
        real, pairs = Real(world), ("default", "specified", "unseen")
        subjects: list[tuple[Subject, Sequence[Asked]]] = [
            (real, asked),
            (damage.style_collapse(real, world.style_names[0]), asked),
            (damage.concept_collapse(real, world.trained_labels[0]), asked),
            (damage.copies(real), asked),
            (damage.noise(real), asked),
            (damage.wrong_prompts(real), asked),
            (damage.TrainingCopies(world), [one for one in asked if one.request.kind in pairs]),
        ]
        documents, line = {}, ProgressLine("self test")
        for number, (subject, of) in enumerate(subjects):
            if len(of):
                documents[subject.name] = to_document(measure_subject(subject, of, witnesses, known, world, None)[0])
            line.update(number + 1, len(subjects), subject.name)
        line.close()
        _write(kept, json.dumps(documents))
    return {name: from_document(document) for name, document in documents.items()}


def judge_reports(world: World, witnesses: Witnesses) -> list[JudgeReport]:
    """How good both judges are on the world's held-out pictures."""
    from pleinair.evaluation.exploration.page import JudgeReport
    from pleinair.evaluation.exploration.sheet import among_first
    from pleinair.evaluation.exploration.world import discrimination_gap
    from pleinair.evaluation.judge import judge_pictures

    rows = np.flatnonzero(world.held_out)
    pictures, styles, concepts = world.pictures[rows], world.styles[rows], world.concepts[rows]
    found = {
        "first": ("a small network of its own, trained on drawings", judge_pictures(witnesses.judge, pictures)),
        "second": (
            "linear heads on EfficientNet-Lite0, trained on photographs",
            witnesses.second.judge(witnesses.features.of(pictures)),
        ),
    }
    return [
        JudgeReport(
            judge=name,
            made_of=made_of,
            style=float((scores.style_logits.argmax(axis=1) == styles).mean()),
            concept_top1=float(among_first(scores.concept_logits, concepts, 1).mean()),
            concept_top5=float(among_first(scores.concept_logits, concepts, 5).mean()),
            style_gap=discrimination_gap(scores.style_logits, styles),
            concept_gap=discrimination_gap(scores.embedding, concepts),
            num=len(rows),
        )
        for name, (made_of, scores) in found.items()
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
