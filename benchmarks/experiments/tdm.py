"""Students of four and eight steps against their teacher, with and without guidance.

    base checkpoint --Tdm, prompts alone--> students (seeds) --no guidance, their own steps--> drawings
                   '--28 and 52 steps guided, and the students' few steps guided and not----> drawings

Prompts that are judged are not among those that students were distilled on. The judge names style and concept; the Frechet
distance is that of the judge's leading features to the real pictures of the same prompts; coverage is the share of those
pictures in whose neighbourhood a drawing lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.drawn import (
    NUM_SHOWN,
    SIDE,
    Scorer,
    prompted,
    shown,
    spread,
)
from benchmarks.experiments.ground import stand
from benchmarks.experiments.results import once, opening, publish, without_pixels
from benchmarks.krablet.rounds import commit, machine
from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import read_manifest
from pleinair.cli.places import shipped
from pleinair.cli.progress import ProgressLine
from pleinair.config import config_digest, to_document
from pleinair.model.text_encoder import TextEncoder
from pleinair.pages import GridCell, GridRow, Section, grid, page, table
from pleinair.posttraining.distilling import few_step_stage
from pleinair.sampling import Sampler, SamplingConfig
from pleinair.sampling.checkpoints import read_model
from pleinair.sampling.shipped import load_autoencoder
from pleinair.sampling.stored import sampling_of
from pleinair.training.engine import EngineConfig, Parent, Phase, train
from pleinair.training.hooks.progress import EachStep
from pleinair.training.optimisers import HeadConfig, OptimiserConfig
from pleinair.training.prompts import PromptLoader, encode_prompts
from pleinair.training.stages.tdm import TdmConfig

REFERENCE = "teacher, 28 steps, guided"
WITHIN = 0.10
"""How near the student is to come to the reference."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is trained and judged."""

    seeds: tuple[tuple[int, int], ...] = ((8, 5), (4, 2))
    """Steps of the students, and how many are trained of each."""
    num_updates: int = 600
    batch_size: int = 16
    num_judged: int = 160
    num_features: int = 32
    learning_rate: float = 1e-4
    """The student's."""
    fake_factor: float = 5.0
    """The fake model's rate over it."""
    guidance: float = 3.0


FULL = Plan()
SMALL = Plan(
    seeds=((4, 2),), num_updates=3, batch_size=2, num_judged=8, num_features=2
)  # fmt: skip


@dataclass(frozen=True)
class Materials:
    """What all pieces need."""

    base: Path
    runs: Path
    plan: Plan
    encoder: TextEncoder
    prompts: tuple[str, ...]
    """Those that students are distilled on."""
    scorer: Scorer

    @property
    def stamp(self) -> str:
        """What all results here depend on."""
        return config_digest([identity(read_manifest(self.base)), to_document(self.plan)])[:12]

    @property
    def home(self) -> Path:
        """Where the pieces are kept."""
        return self.runs / f"tdm-{self.stamp}"


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """All students, all drawings, then the page; returns it. No warehouse is needed."""
    made = prepared(runs, base, small)
    rows: list[dict[str, Any]] = [{"name": "real pictures", "seed": 0, **made.scorer.of_real()}]
    rows += [teacher_row(made, name, config) for name, config in teachers_ways(made.plan).items()]
    for num_steps, num_seeds in made.plan.seeds:
        rows += [student_row(made, num_steps, seed) for seed in range(num_seeds)]
    told = {"base": str(made.base), "plan": asdict(made.plan)}
    return publish(out, "tdm", {"rows": without_pixels(rows), **told}, report(rows, made))


def prepared(runs: Path, base: str | None, small: bool) -> Materials:
    """Real pictures, the split of prompts, the encoder."""
    plan, ground = SMALL if small else FULL, stand(runs, base, small)
    pictures = ground.pictures
    order = np.random.default_rng(0).permutation(len(pictures))
    judged = [pictures[row] for row in sorted(order[: plan.num_judged])]
    learned = [pictures[row] for row in sorted(order[plan.num_judged :])]
    prompts = tuple(dict.fromkeys(prompt for prompt, _, _ in prompted(learned)))
    scorer = Scorer(judged, pictures, plan.num_features)
    return Materials(ground.base, runs, plan, ground.encoder, prompts, scorer)


def teachers_ways(plan: Plan) -> dict[str, SamplingConfig]:
    """How the teacher is sampled."""

    def way(num_steps: int, guidance: float) -> SamplingConfig:
        return SamplingConfig(num_steps=num_steps, guidance=guidance, resolution=SIDE)

    ways = {f"teacher, {n} steps, guided": way(n, plan.guidance) for n in (52, 28)}
    for num_steps, _ in plan.seeds:
        ways[f"teacher, {num_steps} steps, guided"] = way(num_steps, plan.guidance)
        ways[f"teacher, {num_steps} steps, unguided"] = way(num_steps, 0.0)
    return ways


def teacher_row(made: Materials, name: str, config: SamplingConfig) -> dict[str, Any]:
    """One way to sample the teacher, measured."""
    path = made.home / f"{name.replace(', ', '-').replace(' ', '-')}.json"
    calls = config.num_steps * (2 if config.guidance else 1)
    row = once(path, lambda: made.scorer.of_model(sampler_of(made, made.base), config))
    return {"name": name, "seed": 0, "calls": calls, **row}


def student_row(made: Materials, num_steps: int, seed: int) -> dict[str, Any]:
    """One student, trained and measured."""
    checkpoint = trained(made, num_steps, seed)
    config = replace(sampling_of(checkpoint), resolution=SIDE)
    row = once(
        made.home / f"student-{num_steps}-{seed}.json",
        lambda: made.scorer.of_model(sampler_of(made, checkpoint), config),
    )
    return {"name": f"student, {num_steps} steps", "seed": seed, "calls": num_steps, **row}


def sampler_of(made: Materials, checkpoint: Path) -> Sampler:
    """A checkpoint with all it needs to draw."""
    model, projection = read_model(checkpoint)
    return Sampler(model, load_autoencoder(shipped("autoencoder")), made.encoder, projection)


def trained(made: Materials, num_steps: int, seed: int) -> Path:
    """Distil, or find that it is done."""
    plan, name = made.plan, f"student-{num_steps}-{seed}"
    config = TdmConfig(num_steps=num_steps, guidance=plan.guidance)
    stage = few_step_stage(made.base, config, made.encoder)
    codec = load_autoencoder(shipped("autoencoder"))
    side = SIDE // codec.downscale
    prompts = encode_prompts(made.prompts, made.encoder, stage.pretrain.projection)
    loader = PromptLoader(prompts, (codec.latent_channels, side, side), plan.batch_size, seed=seed)
    rule = OptimiserConfig(
        learning_rate=plan.learning_rate,
        betas=(0.0, 0.95),
        warmup_steps=20,
        decay_share=0.3,
        head=HeadConfig(rate_factor=plan.fake_factor),
    )
    line = ProgressLine(name)
    return train(
        stage,
        [Phase("prompts", plan.num_updates, plan.batch_size, loader)],
        EngineConfig(seed=seed, optimiser=rule),
        made.home / name,
        config_digest=config_digest([made.stamp, to_document(config), seed]),
        hooks=[
            EachStep(lambda record, total: line.update(record.step + 1, total, f"gap {record.metrics['tdm/gap']:.3f}"))
        ],
        parent=Parent(checkpoint=made.base),
        on_message=lambda said: print(f"  {said}"),
    )


def verdicts(rows: Sequence[dict[str, Any]], plan: Plan) -> list[str]:
    """What was to be reached, and whether it was."""
    found = []
    (reference,) = [row for row in rows if row["name"] == REFERENCE]
    for num_steps, _ in plan.seeds:
        students = [row for row in rows if row["name"] == f"student, {num_steps} steps"]
        for key, words, better in (
            ("concept", "concepts named", "more"),
            ("style", "styles named", "more"),
            ("frechet_extrapolated", "Frechet distance", "less"),
            ("coverage", "coverage", "more"),
        ):
            mean, half = spread([row[key] for row in students])
            allowed = 1 + WITHIN if better == "less" else 1.0 if key == "coverage" else 1 - WITHIN
            limit = allowed * reference[key]
            reached = mean <= limit if better == "less" else mean >= limit
            found.append(
                f"{num_steps} steps, {words}: {mean:.3f} (half interval {half:.3f}) against {reference[key]:.3f} of the "
                f"{REFERENCE}; {'reached' if reached else 'not reached'} (limit {limit:.3f})."
            )
    return found


def report(rows: Sequence[dict[str, Any]], made: Materials) -> str:
    """The page."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    columns = ["model", "calls a picture", "concept named", "style named", "Frechet", "Frechet, extrapolated", "coverage",
               "fine detail", "saturation"]  # fmt: skip
    keys = ("concept", "style", "frechet", "frechet_extrapolated", "coverage", "fine_detail", "saturation")
    cells = []
    for name in names:
        of = [row for row in rows if row["name"] == name]
        measured = [shown([row[key] for row in of]) if key in of[0] else "\u2013" for key in keys]
        cells.append([name, str(of[0].get("calls", "\u2013")), *measured])
    first = [row for row in rows if row["seed"] == 0]
    pictures = [
        GridRow(
            name=prompt,
            cells=[GridCell(picture=np.array(row["pixels"][place], np.uint8), alt=prompt) for row in first],
        )
        for place, (prompt, _, _) in enumerate(made.scorer.prompts[:NUM_SHOWN])
    ]
    sections = [
        Section(heading="Numbers", body=table(columns, cells)),
        Section(heading="The same prompts and seeds", body=grid([row["name"] for row in first], pictures)),
    ]
    plan = made.plan
    how = f"{plan.num_updates} updates of {plan.batch_size} prompts, {len(made.prompts)} prompts, seeds {plan.seeds}"
    footer = f"make experiment-tdm, commit {commit()}, {machine()}. {how}; base {made.base}."
    return page("Students of few steps", opening(__doc__, verdicts(rows, made.plan)), sections, footer=footer)
