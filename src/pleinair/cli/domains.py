"""`pleinair domains CHECKPOINT ... --on RUN ...`: every checkpoint on the held-out pictures of every domain.

A domain is the run of its specialist: its held-out pack lies beside the run's pack.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pleinair.model.text_encoder import FeatureProjection
    from pleinair.model.transformer import Transformer
    from pleinair.packs.pack import Pack
    from pleinair.sampling import SamplingConfig


def register(verbs: Any) -> None:
    """Add the verb `domains`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "domains",
        help="a matrix of checkpoints by domains: held-out error, and what a judge names",
        description="Held-out error of every checkpoint on every domain; the first checkpoint is what others are compared "
        "with. Writes domains.json and domains.html.",
    )
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="checkpoints, runs, weights or a shipped model; NAME=CHECKPOINT says what the table calls it",
    )
    parser.add_argument(
        "--on", nargs="+", required=True, metavar="RUN", help="runs whose held-out packs are the domains"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are (default: %(default)s)")
    parser.add_argument(
        "--draw",
        type=int,
        default=0,
        metavar="N",
        help="also draw N prompts of each domain and judge them (default: 0)",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("domains"), help="folder of page and numbers")
    parser.set_defaults(run=domains)


def domains(options: argparse.Namespace) -> int:
    """Measure, write, say where."""
    import json

    from pleinair.cli.parents import find_checkpoint, require_same_projection
    from pleinair.cli.report import commit
    from pleinair.config import to_document
    from pleinair.evaluation.domains import compare, domain_page, held_out_errors
    from pleinair.pages import write_page
    from pleinair.records.errors import require
    from pleinair.sampling.checkpoints import read_model

    require("torch", "train")
    from pleinair.sampling.stored import sampling_of

    places = dict(_named(told) for told in options.checkpoints)
    checkpoints = {name: find_checkpoint(place, options.runs) for name, place in places.items()}
    packs = {Path(run).name: open_domain(Path(run)) for run in options.on}
    errors: dict[str, dict[str, Any]] = {domain: {} for domain in packs}
    accuracies: dict[tuple[str, str], dict[str, float]] = {}
    for name, checkpoint in checkpoints.items():
        model, projection = read_model(checkpoint)
        for domain, pack in packs.items():
            require_same_projection(checkpoint, pack.directory, projection_of_pack(pack))
            errors[domain][name] = held_out_errors(model, projection, pack)
            if options.draw:
                accuracies[domain, name] = judged(model, projection, pack, options.draw, sampling_of(checkpoint))
            print(f"  {name} on {domain}: {errors[domain][name].mean():.4f}", flush=True)
    matrix = compare(errors, lambda domain, name: accuracies.get((domain, name), {}))
    options.output.mkdir(parents=True, exist_ok=True)
    told = {name: str(place) for name, place in checkpoints.items()} | {"commit": commit()}
    document = {"told": told, **to_document(matrix)}
    (options.output / "domains.json").write_text(json.dumps(document, indent=1) + "\n")
    write_page(options.output / "domains.html", domain_page(matrix, told))
    print(f"page: {options.output / 'domains.html'}")
    return 0


def _named(told: str) -> tuple[str, str]:
    """A table's name and the place: `base=runs/demo`, or the place's own last words."""
    name, separator, place = told.partition("=")
    if separator:
        return name, place
    path = Path(told)
    return (path.parents[1].name if path.parent.name == "checkpoints" else path.name), told


def open_domain(run: Path) -> Pack:
    """The held-out pack of a run, or a pack itself. Raises PackError where there is none."""
    from pleinair.packs.pack import Pack
    from pleinair.records.errors import PackError

    place = run if (run / "pack.json").exists() else run / "pack-held-out"
    if not (place / "pack.json").exists():
        raise PackError(f"{run} has no held-out pack: pack its recipe, and let watch.validation.every be positive")
    return Pack(place)


def projection_of_pack(pack: Pack) -> FeatureProjection:
    """The text projection of its captions."""
    from pleinair.sampling.projection import read_projection

    return read_projection(pack.directory)


def judged(
    model: Transformer, projection: FeatureProjection, pack: Pack, count: int, sampling: SamplingConfig
) -> dict[str, float]:
    """Shares of drawings, of the first prompts of a pack, in which the shipped judge names style and concept."""
    from pleinair.cli.encoders import open_text_encoder
    from pleinair.cli.places import shipped
    from pleinair.evaluation.prompted import draw_and_judge, prompts_of
    from pleinair.model.judge import load_judge
    from pleinair.sampling import Sampler
    from pleinair.sampling.shipped import load_autoencoder

    sampler = Sampler(model, load_autoencoder(shipped("autoencoder")), open_text_encoder(), projection)
    (resolution,) = pack.manifest.resolutions
    config = replace(sampling, resolution=resolution)
    drawn = draw_and_judge(sampler, load_judge(shipped("judge")), prompts_of(pack)[:count], config)
    return {"style": drawn.style_accuracy, "concept": drawn.concept_accuracy}
