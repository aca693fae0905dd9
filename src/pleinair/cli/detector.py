"""`pleinair detector`: a classifier made from a sentence; measured, versioned, run over the warehouse, checked by people."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.curate import add_warehouse_options, open_warehouse

if TYPE_CHECKING:
    from pleinair.curation.detectors.detector import Detector, Manifest
    from pleinair.krablet import Database


def register(verbs: Any) -> None:
    """Add the verb `detector` with its own verbs."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "detector", help="make, run and check a small classifier for a flaw named in words"
    )
    own = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _register_new(own)
    _register_run(own)
    _register_check(own)
    listing: argparse.ArgumentParser = own.add_parser("list", help="all detectors and how good they are")
    showing: argparse.ArgumentParser = own.add_parser("show", help="one detector: labels, features, measures, verdicts")
    _add_name(showing)
    for each, verb in ((listing, list_detectors), (showing, show)):
        add_warehouse_options(each)
        each.set_defaults(run=verb)


def _register_new(own: Any) -> None:
    parser: argparse.ArgumentParser = own.add_parser(
        "new",
        help="label a sample, fit, measure, save a version",
        description="Labels come from one place: --plant draws the flaw onto pictures, --vlm asks a vision-language model, "
        "--text takes what the image-text model finds, --rule a SQL condition. A name that exists gets its next version.",
    )
    parser.add_argument("prompt", help="what a picture must show, e.g. 'flat vector frame around the picture'")
    parser.add_argument("--name", required=True, help="a short name; part of column names")
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument(
        "--plant", help="frame, border, watermark, collage, or reconstructed (by the shipped autoencoder)"
    )
    labels.add_argument(
        "--vlm", nargs="+", metavar="KEY=VALUE", help="an endpoint, e.g. url=http://127.0.0.1:8000/v1 model=qwen3-vl"
    )
    labels.add_argument("--text", help="words for the model of 'pleinair tower'; weak labels")
    labels.add_argument("--rule", metavar="SQL", help="a condition on `images` that pictures showing it satisfy")
    parser.add_argument("--sample", type=int, default=1000, help="pictures to label (default: %(default)s)")
    parser.add_argument("--where", default="TRUE", metavar="SQL", help="which kept pictures to sample")
    parser.add_argument(
        "--features", action="append", metavar="SET[+SET]", help="what to look at; several are tried (default: all)"
    )
    parser.add_argument(
        "--max-false-rate", type=float, default=0.005, help="good pictures it may drop (default: 0.005)"
    )
    parser.add_argument("--min-confidence", type=float, default=0.8, help="of a model's answers (default: %(default)s)")
    parser.add_argument("--positive-share", type=float, default=0.02, help="with --text: pictures that may show it")
    parser.add_argument("--budget", action="append", default=[], metavar="KEY=VALUE", help="e.g. dollars=5")
    parser.add_argument("--provenance", action="store_true", help="drop first what its file says a generator made")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and the plants (default: 0)")
    add_warehouse_options(parser)
    parser.set_defaults(run=new)


def _register_run(own: Any) -> None:
    parser: argparse.ArgumentParser = own.add_parser(
        "run", help="score every kept picture", description="It may be stopped at any time; the same command goes on."
    )
    _add_name(parser)
    parser.add_argument(
        "--threshold", type=float, help="take the verdicts at another threshold; nothing is scored again"
    )
    parser.add_argument("--processes", type=int, default=2, help="worker processes (default: %(default)s)")
    add_warehouse_options(parser)
    parser.set_defaults(run=run)


def _register_check(own: Any) -> None:
    parser: argparse.ArgumentParser = own.add_parser(
        "check",
        help="have a person check it",
        description="Without answers: write a page of numbered pictures. With answers: keep them, and say what they mean.",
    )
    _add_name(parser)
    parser.add_argument("--yes", type=int, nargs="+", default=[], metavar="N", help="pictures that show it")
    parser.add_argument("--no", type=int, nargs="+", default=[], metavar="N", help="pictures that do not")
    parser.add_argument("--rest", choices=["yes", "no"], default="", help="the answer for all others of the sheet")
    parser.add_argument("--most", type=int, default=60, help="pictures on a sheet (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed shows other pictures")
    parser.add_argument("--page", type=Path, help="where (default: NAME-check.html)")
    add_warehouse_options(parser)
    parser.set_defaults(run=check)


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the detector")
    parser.add_argument("--version", type=int, help="default: the newest")


def models_folder(home: Path) -> Path:
    """Where detectors are kept."""
    return home / "models" / "detectors"


def new(options: argparse.Namespace) -> int:
    """Label, fit, measure, save; print the measures."""
    from pleinair.cli.detector_labels import candidate_features, labelled
    from pleinair.curation.detectors.detector import Manifest, check_name, save_detector, versions
    from pleinair.curation.detectors.fitting import FitConfig, fit_detector

    check_name(options.name)
    folder = models_folder(options.home)
    known = versions(folder, options.name)
    candidates = candidate_features(options.features)
    with open_warehouse(options) as db:
        examples, labelled_by = labelled(options, db, sorted({name for each in candidates for name in each}))
    manifest = Manifest(
        name=options.name,
        version=max(known, default=0) + 1,
        parent=max(known, default=None),
        prompt=options.prompt,
        features=candidates[0],
        threshold=0.5,
        labelled_by=labelled_by,
        reads_provenance=options.provenance,
    )
    config = FitConfig(candidates=candidates, max_false_rate=options.max_false_rate)
    detector = fit_detector(examples, manifest, config)
    place = save_detector(detector, folder)
    print(described(detector.manifest))
    print(f"kept in {place}; 'pleinair detector run {options.name}' scores the pictures", flush=True)
    return 0


def run(options: argparse.Namespace) -> int:
    """Score and judge; exit code 1 when pictures are stuck."""
    from pleinair.cli.curate import close_run, show_workers
    from pleinair.cli.detector_labels import fetch_encoder
    from pleinair.cli.places import cache_dir
    from pleinair.cli.progress import ProgressLine
    from pleinair.curation.detectors.stage import run_detector

    fetch_encoder()
    detector, line = _load(options), ProgressLine("detector")
    with open_warehouse(options) as db:
        done = run_detector(
            db,
            detector,
            models_folder(options.home),
            cache=cache_dir(),
            store=options.home / "store",
            threshold=options.threshold,
            processes=options.processes,
            on_progress=lambda now: show_workers(line, now),
        )
        line.close()
        print(verdict_line(db, detector.manifest), flush=True)
    return close_run(options.home, done)


def verdict_line(db: Database, manifest: Manifest) -> str:
    """How many pictures are scored and dropped."""
    from pleinair.curation.detectors.stage import detected_table, drop_column, score_column

    images = detected_table(db, manifest)
    scored = images.count(f"{score_column(manifest)} IS NOT NULL")
    dropped = images.count(f"{score_column(manifest)} IS NOT NULL AND {drop_column(manifest.name)} <> ''")
    return f"{manifest.label}: {dropped} of {scored} scored pictures dropped"


def check(options: argparse.Namespace) -> int:
    """Write a sheet, or take answers to the newest one."""
    from pleinair.curation import ObjectStore
    from pleinair.curation.detectors.checks import answers_of, draw_sheet, estimate, read_sheet, write_sheet
    from pleinair.curation.detectors.labels import events_of, latest, read_labels, record_labels
    from pleinair.curation.detectors.sheet_page import write_check_page
    from pleinair.curation.detectors.stage import detected_table
    from pleinair.curation.detectors.vlm import Opinion

    folder, manifest = models_folder(options.home), _load(options).manifest
    page = options.page or Path(f"{options.name}-check.html")
    with open_warehouse(options) as db:
        if not (options.yes or options.no or options.rest):
            images = detected_table(db, manifest)
            sheet = draw_sheet(images, manifest, threshold=manifest.threshold, most=options.most, seed=options.seed)
            write_check_page(page, sheet, images, ObjectStore(options.home / "store"))
            write_sheet(sheet, folder)
            print(f"{len(sheet.names)} pictures to check: {page}")
            return 0
        sheet = read_sheet(folder, options.name)
        answers = answers_of(sheet, options.yes, options.no, options.rest)
        told = {name: Opinion(shows, 1.0, "a person") for name, shows in answers.items()}
        record_labels(db, events_of(options.name, "human", told))
        found = estimate(sheet, latest(read_labels(db, options.name, "human")))
    low, high = found.recall_interval
    print(
        f"{len(answers)} answers kept. By {found.num_answers} answers of people to this sheet, {manifest.name} v{sheet.version} "
        f"has precision {found.precision} and recall {found.recall:.2f} ({low:.2f}-{high:.2f})"
    )
    return 0


def list_detectors(options: argparse.Namespace) -> int:
    """A line per version."""
    from pleinair.curation.detectors.detector import load_detector, names, versions

    folder = models_folder(options.home)
    for name in names(folder):
        for version in versions(folder, name):
            print(summary(load_detector(folder, name, version).manifest))
    return 0


def show(options: argparse.Namespace) -> int:
    """The manifest in words, and the verdicts in the warehouse."""
    manifest = _load(options).manifest
    print(described(manifest))
    with open_warehouse(options) as db:
        print(verdict_line(db, manifest))
    return 0


def _load(options: argparse.Namespace) -> Detector:
    from pleinair.curation.detectors.detector import load_detector

    return load_detector(models_folder(options.home), options.name, options.version)


def summary(manifest: Manifest) -> str:
    """One line."""
    if not manifest.measures:
        return f"{manifest.label}: {manifest.prompt}, not measured"
    first = manifest.measures[0]
    told = f"recall {first.recall}, false rate {first.false_rate}, truth {first.origin}"
    return f"{manifest.label}: {manifest.prompt}; {told}"


def described(manifest: Manifest) -> str:
    """All that the manifest says."""
    parent = f", follows v{manifest.parent}" if manifest.parent else ""
    lines = [
        f"{manifest.label}: {manifest.prompt}{parent}",
        f"  labels: {json.dumps(manifest.labels)} by {manifest.labelled_by}, of {', '.join(manifest.sources)}",
        f"  looks at {' + '.join(manifest.features)}; threshold {manifest.threshold:.3f}",
        *(f"    {recall:.3f} recall on held-out folds with {names}" for names, recall in manifest.candidates.items()),
        f"  {'measured on':<42} {'truth':<8} {'recall':<21} {'false rate':<21} {'precision':<21} if 2% show it",
    ]
    lines += [
        f"  {one.slice:<42} {one.origin:<8} {one.recall!s:<21} {one.false_rate!s:<21} {one.precision!s:<21} "
        f"{one.precision_at(0.02):.2f}"
        for one in manifest.measures
    ]
    return "\n".join(lines)
