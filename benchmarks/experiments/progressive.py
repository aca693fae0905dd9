"""Progressive resolution, alignment in its first phase and merging, against the same compute without each.

    everything        32 -> 64 -> 128 px, iREPA at 32 px, stable rate, then a decay
    no alignment      the same steps without iREPA
    all at 128 px     as many FLOPs, all of them at 128 px, without iREPA, the same decay

Each arm has two seeds. Of each run three models are measured: the last of the stable phase, the mean of its last four
checkpoints (PMA), and the end of the decay. The held-out error is that of pairs never trained on, at 128 px, on a fixed grid
of timesteps with the same noise for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.experiments.results import once, opening, publish, without_pixels
from benchmarks.krablet.rounds import commit, machine
from pleinair.checkpoint.store import list_checkpoints
from pleinair.cli import encoders, steps
from pleinair.cli.main import build_parser
from pleinair.cli.main import main as pleinair
from pleinair.cli.parts import ready_parts
from pleinair.cli.places import shipped
from pleinair.cli.workspace import Workspace, open_workspace
from pleinair.curation.stages import images_table
from pleinair.evaluation.domains import held_out_errors
from pleinair.evaluation.prompted import draw_and_judge, prompts_of
from pleinair.model.judge import load_judge
from pleinair.packs.pack import Pack
from pleinair.pages import GridCell, GridRow, Section, Series, grid, line_plot, page, table
from pleinair.recipes import Recipe, find_recipe
from pleinair.sampling import Sampler
from pleinair.sampling.checkpoints import read_model
from pleinair.sampling.shipped import load_autoencoder
from pleinair.training.records import StepRecord, read_records

RECIPE = "progressive"
SEEDS = (0, 1)
EVERYTHING, UNALIGNED, ALL_LARGE = "everything", "no alignment", "all at 128 px"
ARMS = (EVERYTHING, UNALIGNED, ALL_LARGE)
MODELS = ("end of the stable phase", "mean of its last four (PMA)", "end of the decay")
NUM_MERGED = 4
NUM_JUDGED = 60
NUM_SHOWN = 8
PATCH_WIDTH = 112
"""Channels of the patch features, for the projector's FLOPs."""


@dataclass(frozen=True)
class Arm:
    """One run."""

    name: str
    seed: int
    settings: tuple[str, ...]
    stable_steps: int
    """Where the decay begins."""

    @property
    def run(self) -> str:
        """Name of its run."""
        return f"progressive-{self.name.replace(' ', '-')}-{self.seed}"

    def train(self, runs: Path) -> list[StepRecord]:
        """Train to the end, or find that it has; its records."""
        words = [
            word
            for setting in (f"name={self.run}", f"engine.seed={self.seed}", *self.settings)
            for word in ("--set", setting)
        ]
        if pleinair(["train", RECIPE, "--runs", str(runs), *words]):
            raise SystemExit(f"{self.run} did not end well")
        return read_records(runs / self.run / "steps.jsonl")


def run(runs: Path, home: Path | None, out: Path) -> Path:
    """All arms, then the page; returns it."""
    recipe = find_recipe(RECIPE)
    work = packed(runs, home)
    measured: list[dict[str, Any]] = []
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for seed in SEEDS:
        budget: list[float] = []
        for name in ARMS:
            arm = arm_of(name, seed, recipe, work.pack, budget)
            records = arm.train(runs)
            flops = flops_of(records, recipe)
            if name == EVERYTHING:
                budget = flops
            total = list(accumulate(flops))
            points = [
                (x, r.metrics["validation/loss"])
                for x, r in zip(total, records, strict=True)
                if "validation/loss" in r.metrics
            ]
            curves[f"{name}, seed {seed}"] = ([x for x, _ in points], [y for _, y in points])
            seconds = sum(32 / record.samples_per_second for record in records)
            told = {"arm": name, "seed": seed, "steps": len(records), "flops": total[-1], "seconds": seconds}
            measured += [told | row for row in evaluated(arm, runs, work)]
    prompts = [prompt for prompt, _, _ in judged_prompts(work)]
    document = {"rows": without_pixels(measured), "curves": curves}
    return publish(out, "progressive", document, report(measured, curves, prompts))


def packed(runs: Path, home: Path | None) -> Workspace:
    """The recipe's pack, patch features and held-out pack; drawings are listed and curated first where they are not."""
    words = ["pack", RECIPE, "--runs", str(runs), *(["--home", str(home)] if home else [])]
    work = open_workspace(build_parser().parse_args(words))
    if (work.held_out / "pack.json").exists() and work.patch_features.exists():
        return work
    with steps.open_database(work) as db:
        if not images_table(db).count("source = 'drawings'"):
            steps.ingest_step(work, db)
        steps.curate_step(work, db)
        steps.pack_step(work, steps.curated_pictures(work, db), ready_parts(work, db))
    return work


def arm_of(name: str, seed: int, recipe: Recipe, pack: Path, budget: Sequence[float]) -> Arm:
    """The settings of an arm; the one at 128 px has the steps that `budget`, FLOPs by step, pays for."""
    shared = (f"pack={str(pack.resolve())!r}",)
    stable = sum(phase.num_steps for phase in recipe.phases if not phase.decays)
    if name == EVERYTHING:
        return Arm(name, seed, shared, stable)
    if name == UNALIGNED:
        return Arm(name, seed, (*shared, "repa=None"), stable)
    last = recipe.phases[-1]
    of_a_step = float(np.mean(budget[stable:]))
    every = recipe.engine.keep_every
    many = round((sum(budget) / of_a_step - last.num_steps) / every) * every
    size = f"'resolution': {last.resolution}, 'batch_size': {last.batch_size}"
    phases = f"phases=({{{size}, 'num_steps': {many}}}, {{{size}, 'num_steps': {last.num_steps}, 'decays': True}})"
    return Arm(name, seed, (*shared, "repa=None", phases), many)


def flops_of(records: Sequence[StepRecord], recipe: Recipe) -> list[float]:
    """Of each step: the model's products as measured by the run, and the projector's where it was trained."""
    found = []
    for record in records:
        rows = recipe.phases[0].batch_size
        flops = record.metrics["throughput/flops_per_second"] * rows / record.samples_per_second
        if "repa_cosine" in record.metrics:
            tokens = (recipe.phases[0].resolution // 8) ** 2
            flops += 3 * rows * tokens * 2 * 9 * recipe.transformer.width * PATCH_WIDTH
        found.append(flops)
    return found


def evaluated(arm: Arm, runs: Path, work: Workspace) -> list[dict[str, Any]]:
    """Held-out error and the judge's accuracies of the run's three models; kept beside the run."""
    kept = runs / arm.run / "measured.json"
    checkpoints = {int(path.name[5:13]): path for path in list_checkpoints(runs / arm.run / "checkpoints")}
    every = work.recipe.engine.keep_every
    merged = runs / arm.run / "merged"
    if not merged.exists():
        last_four = [str(checkpoints[arm.stable_steps - place * every]) for place in reversed(range(NUM_MERGED))]
        assert pleinair(["merge", *last_four, "-o", str(merged)]) == 0
    places = (checkpoints[arm.stable_steps], merged, checkpoints[max(checkpoints)])
    rows = once(kept, lambda: [measure(place, work) for place in places])
    return [{"model": model, **row} for model, row in zip(MODELS, rows, strict=True)]


def measure(checkpoint: Path, work: Workspace) -> dict[str, Any]:
    """One model."""
    model, projection = read_model(checkpoint)
    errors = held_out_errors(model, projection, Pack(work.held_out))
    sampler = Sampler(model, load_autoencoder(shipped("autoencoder")), encoders.open_text_encoder(), projection)
    torch.manual_seed(0)
    drawn = draw_and_judge(sampler, load_judge(shipped("judge")), judged_prompts(work), work.recipe.sampling)
    return {
        "errors": errors.tolist(),
        "error": float(errors.mean()),
        "style": drawn.style_accuracy,
        "concept": drawn.concept_accuracy,
        "pixels": drawn.pixels_NHWC[:NUM_SHOWN].tolist(),
    }


def judged_prompts(work: Workspace) -> Sequence[tuple[str, str, str]]:
    """Prompts of held-out pairs, the same for all."""
    return prompts_of(Pack(work.held_out))[:NUM_JUDGED]


def change(rows: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Mean difference of the held-out error over pictures and seeds, and half its 95% interval over pictures."""
    pairs = zip(rows, base, strict=True)
    differences = np.mean([np.array(row["errors"]) - np.array(other["errors"]) for row, other in pairs], axis=0)
    return float(differences.mean()), float(1.96 * differences.std(ddof=1) / np.sqrt(len(differences)))


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What each part gave, in a sentence each."""

    def of(arm: str, model: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["arm"] == arm and row["model"] == model]

    stable, merged, decayed = MODELS
    compared = (
        ("All together", of(EVERYTHING, decayed), f"{ALL_LARGE}, decayed", of(ALL_LARGE, decayed)),
        ("All together, merged", of(EVERYTHING, merged), f"{ALL_LARGE}, unmerged and undecayed", of(ALL_LARGE, stable)),
        ("Progressive resolution alone", of(UNALIGNED, decayed), f"{ALL_LARGE}, decayed", of(ALL_LARGE, decayed)),
        ("Alignment in the first phase", of(EVERYTHING, decayed), UNALIGNED, of(UNALIGNED, decayed)),
        ("Merging", of(EVERYTHING, merged), "the last of the stable phase", of(EVERYTHING, stable)),
        ("Merging", of(EVERYTHING, merged), "the end of the decay", of(EVERYTHING, decayed)),
    )
    told = []
    for what, ours, other_name, theirs in compared:
        mean, half = change(ours, theirs)
        word = "is better than" if mean + half < 0 else "is worse than" if mean - half > 0 else "cannot be told from"
        told.append(f"{what} {word} {other_name}: {mean:+.4f} \u00b1 {half:.4f} of held-out error.")
    return told


def report(
    rows: Sequence[dict[str, Any]], curves: dict[str, tuple[list[float], list[float]]], prompts: Sequence[str]
) -> str:
    """The page."""
    columns = ["arm", "model", "seed", "steps", "PFLOP", "minutes", "held-out error", "style named", "concept named"]
    cells = [
        [
            row["arm"], row["model"], str(row["seed"]), str(row["steps"]), f"{row['flops'] / 1e15:.2f}",
            f"{row['seconds'] / 60:.1f}", f"{row['error']:.4f}", f"{row['style']:.0%}", f"{row['concept']:.0%}",
        ]
        for row in rows
    ]  # fmt: skip
    series = [Series(name=name, x=[x / 1e15 for x in xs], y=ys) for name, (xs, ys) in curves.items()]
    shown = [row for row in rows if row["seed"] == SEEDS[0] and row["model"] != MODELS[0]]
    drawn = [np.array(row["pixels"], np.uint8) for row in shown]
    pictures = [
        GridRow(name=prompt, cells=[GridCell(picture=pixels[place], alt=prompt) for pixels in drawn])
        for place, prompt in enumerate(prompts[:NUM_SHOWN])
    ]
    sections = [
        Section(heading="Numbers", body=table(columns, cells)),
        Section(
            heading="Held-out error against compute",
            body=line_plot(series, x_label="PFLOP", y_label="held-out error at 128 px"),
        ),
        Section(
            heading="Drawings of pairs never trained on",
            body=grid([f"{r['arm']}, {r['model']}" for r in shown], pictures),
        ),
    ]
    how = f"Seeds {SEEDS}; float32 weights, bfloat16 products, no 8-bit emulation."
    footer = f"make experiment-progressive, commit {commit()}, {machine()}. {how}"
    return page(
        "Progressive resolution, alignment and merging", opening(__doc__, verdicts(rows)), sections, footer=footer
    )
