"""`pleinair ablate RECIPE --switch NAME ...`: paired small trainings of both sides of a choice, and four verdicts on it.

    pack --split--> trained | unseen     costs of every arm     learning-rate sweeps     trainings (resumable)     the page

The command may be stopped anywhere; the same one goes on. `--page-only` makes the page of what is there.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pleinair.cli.workspace import Workspace, add_run_options
from pleinair.records.errors import ConfigError, PackError

if TYPE_CHECKING:
    from pleinair.ablation.matrix import Matrix, Places
    from pleinair.ablation.trainings import Job


def register(verbs: Any) -> None:
    """Add the verb `ablate`."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        "ablate",
        help="compare both sides of an architectural or training choice: paired trainings, four verdicts",
        description="Train both sides of every switch with equal compute, several seeds, two horizons and every resolution of "
        "the recipe, and write a page of verdicts. Needs the recipe's pack. It may be stopped; the same command goes on.",
    )
    add_run_options(parser)
    parser.add_argument(
        "--switch",
        action="append",
        default=[],
        metavar="NAME",
        help="a switch of the table, or your own as NAME=KEY=VALUE,KEY=OTHER (repeatable; default: the whole table)",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="trainings of each arm and resolution (default: %(default)s)"
    )
    parser.add_argument("--short", type=int, default=400, help="steps of the short horizon (default: %(default)s)")
    parser.add_argument("--long", type=int, default=1200, help="steps of the long horizon (default: %(default)s)")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="e.g. equal=steps or margin=0.02 (repeatable)",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="trainings side by side, 0 for none but this process (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder of the page (default: ablation/page in the run's folder)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--plan", action="store_true", help="measure what a step costs, print what would be trained, stop"
    )
    what.add_argument("--page-only", action="store_true", help="only write the page, of what is trained so far")
    parser.set_defaults(run=ablate)


def ablate(options: argparse.Namespace) -> int:
    """Measure, sweep, train, judge, write."""
    from pleinair.cli.workspace import open_workspace
    from pleinair.cluster.locks import only_one

    work = open_workspace(options)
    matrix = open_matrix(work, options)
    if options.page_only:
        print(f"page: {write(with_costs(matrix).with_rates(), options)}")
        return 0
    with only_one(matrix.places.directory):
        prepare(work, matrix)
        matrix = with_costs(matrix)
        print(plan_text(matrix, options.jobs), flush=True)
        if not options.plan:
            train_all(matrix, options)
    return 0


def train_all(matrix: Matrix, options: argparse.Namespace) -> None:
    """Sweep, then train all that is not trained; the page is written whatever ends it."""
    sweeps = [job for switch, side in matrix.sides() for job in matrix.sweep(switch, side).values()]
    try:
        run(matrix, sweeps, options.jobs, "learning rates")
        matrix = matrix.with_rates()
        run(matrix, matrix.jobs(), options.jobs, "trainings")
        probes = [job for arm in matrix.arms() for job in matrix.probe(arm).values()]
        run(matrix, probes, options.jobs, "larger learning rates")
    finally:
        print(f"page: {write(matrix.with_rates(), options)}", flush=True)


def run(matrix: Matrix, jobs: Sequence[Job], num_processes: int, label: str) -> None:
    """Run jobs with live progress; a job's work is its steps times what the baseline's step costs at its resolution."""
    from pleinair.ablation.running import run_jobs, total_steps
    from pleinair.cli.progress import ProgressLine

    line, base = ProgressLine(f"{label}, GFLOP"), matrix.baseline
    work = {job.digest: total_steps(job) * matrix.cost(base, job.resolution).flops_per_step for job in jobs}

    def show(done: float, whole: float, note: str) -> None:
        line.update(round(done / 1e9), round(whole / 1e9), note)

    try:
        run_jobs(jobs, matrix.places, work, num_processes, show)
    finally:
        line.close()


def open_matrix(work: Workspace, options: argparse.Namespace) -> Matrix:
    """What is to be compared. Raises ConfigError and PackError before anything is done."""
    from pleinair.ablation.matrix import AblationConfig, Matrix
    from pleinair.ablation.switches import find_switches
    from pleinair.config import config_digest, override
    from pleinair.packs.pack import read_pack_manifest

    sizes = [f"{name}={getattr(options, name)}" for name in ("seeds", "short", "long")]
    config = override(AblationConfig(), [*sizes, *options.config])
    switches = find_switches(options.switch)
    if not (work.pack / "pack.json").exists():
        raise PackError(
            f"there is no pack in {work.pack}: run 'pleinair pack {work.recipe.name}' with the same --runs first"
        )
    manifest = read_pack_manifest(work.pack)
    if absent := set(work.recipe.resolutions) - set(manifest.resolutions):
        raise PackError(
            f"pack {work.pack} has no pictures at {min(absent)} px, only {manifest.resolutions}: pack again"
        )
    data = config_digest([manifest.plan, config.unseen_share])[:12]
    matrix = Matrix(work.recipe, config, _places(work, data), switches)
    for switch in matrix.switches:
        if switch.trains and matrix.arm(switch, switch.first).key == matrix.arm(switch, switch.second).key:
            raise ConfigError(
                f"both sides of the switch {switch.name} are the same for recipe {work.recipe.name}: remove it"
            )
    return matrix


def _places(work: Workspace, data: str) -> Places:
    from pleinair.ablation.matrix import Places

    directory = work.run_dir / "ablation"
    names = {name: directory / f"{name}-{data}" for name in ("trained", "unseen", "patches")}
    directory.mkdir(exist_ok=True)
    return Places(directory=directory, **names)


def prepare(work: Workspace, matrix: Matrix) -> None:
    """Split the pack into trained and unseen pairs, and encode the trained pictures for iREPA, unless that is done."""
    from pleinair.packs.pack import Pack
    from pleinair.packs.split import share_of_pairs, split_pack

    places, share = matrix.places, matrix.config.unseen_share
    if not all((pack / "pack.json").exists() for pack in (places.trained, places.unseen)):
        told = f"a share of {share:g} of the pairs"
        takes = share_of_pairs(share, "ablation")
        split_pack(Pack(work.pack), takes, told, kept=places.trained, taken=places.unseen)
    if any(arm.repa is not None for arm in matrix.arms()) and not places.patches.exists():
        write_patches(work, places)


def write_patches(work: Workspace, places: Places) -> None:
    """Features of the trained pictures on the grids of image tokens, from the warehouse's pictures."""
    from pleinair.cli import steps
    from pleinair.cli.places import cache_dir
    from pleinair.model.efficientnet import fetch_efficientnet, load_efficientnet
    from pleinair.packs.pack import Pack
    from pleinair.packs.split import read_rows
    from pleinair.training.patch_features import EfficientNetPatches, write_patch_features

    encoder = EfficientNetPatches(load_efficientnet(fetch_efficientnet(cache_dir() / "efficientnet-lite0")))
    pack = Pack(places.trained)
    with steps.open_database(work) as db:
        pixels = {picture.key: picture.pixels for picture in steps.curated_pictures(work, db)}
    batches = []
    for entry in pack.manifest.shards:
        keys = sorted({row.key for row in read_rows(pack, entry)})
        if absent := [key for key in keys if key not in pixels]:
            raise PackError(f"{absent[0]} is in the pack and not in the warehouse at {work.home}: name its --home")
        grid = (
            entry.shape[1] // work.recipe.transformer.patch_size,
            entry.shape[2] // work.recipe.transformer.patch_size,
        )
        for start in range(0, len(keys), 64):
            chunk = keys[start : start + 64]
            batches.append((grid, chunk, [pixels[key][entry.resolution] for key in chunk]))
    shutil.rmtree(places.patches, ignore_errors=True)
    write_patch_features(places.patches, encoder, batches)


def with_costs(matrix: Matrix) -> Matrix:
    """The matrix with what a step of each of its arms costs at each resolution."""
    from pleinair.ablation.costs import measure_costs
    from pleinair.cli.progress import ProgressLine

    costs, config = dict(matrix.costs), matrix.config
    for resolution in matrix.resolutions:
        arms = {arm.cost_key: arm for arm in matrix.arms()}
        if all((key, resolution) in costs for key in arms):
            continue
        line = ProgressLine(f"cost of a step at {resolution} px")
        jobs = {key: matrix.job(arm, resolution, 0, config.short, None) for key, arm in arms.items()}
        measured = measure_costs(jobs, config.cost_rounds, matrix.places.directory, line.update)
        line.close()
        costs.update({(key, resolution): cost for key, cost in measured.items()})
    return replace(matrix, costs=costs)


def plan_text(matrix: Matrix, num_processes: int) -> str:
    """What is trained and what it costs, before it is."""
    import numpy as np

    from pleinair.ablation.running import total_steps
    from pleinair.cli.progress import duration

    lines, seconds = (
        [f"{'arm':34} {'px':>4} {'parameters':>10} {'MFLOP/step':>10} {'CPU ms':>7} {'MB':>6} {'steps':>11}"],
        0.0,
    )
    for arm in matrix.arms():
        for resolution in matrix.resolutions:
            cost = matrix.cost(arm, resolution)
            job, step = matrix.judged(arm, resolution, 0), float(np.median(cost.cpu_seconds))
            seconds += matrix.config.seeds * total_steps(job) * step
            lines.append(
                f"{arm.name:34} {resolution:4} {cost.parameters:10,} {cost.flops_per_step / 1e6:10,.0f} {1000 * step:7.1f} "
                f"{cost.peak_bytes / 1e6:6.1f} {job.short:5}/{job.long}"
            )
    base = matrix.cost(matrix.baseline, matrix.resolutions[0])
    sweeps = [job for switch, side in matrix.sides() for job in matrix.sweep(switch, side).values()]
    sweeps += [job for arm in matrix.arms() for job in matrix.probe(arm).values()]
    seconds += sum(total_steps(job) for job in sweeps) * float(np.median(base.cpu_seconds))
    count = len(matrix.jobs()) + len(sweeps)
    wall = duration(seconds / max(1, num_processes))
    lines.append(
        f"{count} trainings, {duration(seconds)} of CPU time, about {wall} with {max(1, num_processes)} side by side on idle cores"
    )
    if sweeps:
        lines.append("a side whose best learning rate is not the recipe's adds its trainings")
    return "\n".join(lines)


def write(matrix: Matrix, options: argparse.Namespace) -> Path:
    """Judge what is there and write the page."""
    from pleinair.ablation.judging import judge_matrix
    from pleinair.ablation.page import write_bench

    return write_bench(options.out or matrix.places.directory / "page", judge_matrix(matrix, _command(options)))


def _command(options: argparse.Namespace) -> str:
    given = [f"--switch {one}" for one in options.switch] + [f"--set {one}" for one in options.set]
    given += [f"--config {one}" for one in options.config]
    sizes = f"--seeds {options.seeds} --short {options.short} --long {options.long}"
    return " ".join([f"pleinair ablate {options.recipe}", sizes, *given])
