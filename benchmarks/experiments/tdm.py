"""Students of four and eight steps against their teacher, with and without guidance.

    teacher --Tdm, prompts alone--> students (seeds) --no guidance, their own steps--> drawings
           '--28 and 52 steps guided, and the students' few steps guided and not-----> drawings, in the noise of each seed

Judged are the held-out pairs, which neither teacher nor students were trained on. The judge names style and concept; the Frechet
distance is that of the judge's leading features to the real pictures of the same prompts, by equally many pictures everywhere;
coverage is the share of those pictures in whose neighbourhood a drawing lies. The teacher is drawn as often as there are
seeds, each time in the noise that one student has, and every interval is of differences within a seed. What a line is worth is
said by the untrained student beside it: the teacher at as few steps, unguided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.experiments.drawn import NUM_SHOWN, SIDE, Pixels, Scorer, prompted
from benchmarks.experiments.ground import stand
from benchmarks.experiments.results import footer, named, once, publish, without_pixels
from benchmarks.experiments.tdm_page import GAP, REFERENCE_STEPS, Row, Student, report, teacher_name, verdicts
from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import read_manifest
from pleinair.cli.parents import find_checkpoint
from pleinair.cli.places import shipped
from pleinair.cli.progress import ProgressLine
from pleinair.config import config_digest
from pleinair.model.text_encoder import TextEncoder
from pleinair.posttraining.distilling import few_step_stage
from pleinair.sampling import Sampler, SamplingConfig
from pleinair.sampling.checkpoints import read_model
from pleinair.sampling.shipped import load_autoencoder
from pleinair.sampling.stored import sampling_of
from pleinair.training.engine import EngineConfig, Parent, Phase, train
from pleinair.training.hooks.progress import EachStep
from pleinair.training.optimisers import HeadConfig, OptimiserConfig
from pleinair.training.prompts import PromptLoader, encode_prompts
from pleinair.training.records import StepRecord, read_records
from pleinair.training.stages.tdm import TdmConfig

GUIDANCE = 3.0
"""Of the base: what its students hold, and how it is drawn guided."""
CLIMBED_GUIDANCE = 1.0
"""In its place for a teacher that is given: one that was climbed without guidance needs little more."""
ACCURATE_STEPS = 52
NUM_STRETCHES = 20
"""Of a training, over which what it logs is averaged."""


@dataclass(frozen=True, kw_only=True)
class Distilling:
    """What a student is trained with: with another constant it is another one."""

    num_updates: int = 1000
    batch_size: int = 16
    learning_rate: float = 1e-4
    """The student's."""
    fake_factor: float = 5.0
    """The fake model's rate over it."""
    guidance: float = GUIDANCE
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How much is judged: with other numbers models are judged anew, and not trained."""

    num_judged: int = 240
    """Held-out pictures at most."""
    num_features: int = 32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is run."""

    students: tuple[Student, ...] = (
        Student(num_steps=8, num_seeds=5),
        Student(num_steps=4, num_seeds=3),
        Student(num_steps=8, num_seeds=2, fake_updates=3),
    )
    distilling: Distilling = field(default_factory=Distilling)
    judging: Judging = field(default_factory=Judging)

    @property
    def num_draws(self) -> int:
        """How often the teacher is drawn: once for each seed of the most."""
        return max(one.num_seeds for one in self.students)


FULL = Plan()
SMALL = Plan(
    students=(Student(num_steps=4, num_seeds=2), Student(num_steps=4, num_seeds=1, fake_updates=3)),
    distilling=Distilling(num_updates=3, batch_size=2),
    judging=Judging(num_judged=12, num_features=2),
)


@dataclass(frozen=True)
class Materials:
    """What all pieces need."""

    teacher: Path
    runs: Path
    plan: Plan
    encoder: TextEncoder
    prompts: tuple[str, ...]
    """Those that students are distilled on."""
    scorer: Scorer

    @property
    def home(self) -> Path:
        """Where everything of this teacher is kept."""
        return self.runs / f"tdm-{identity(read_manifest(self.teacher))[:8]}"

    def kept(self, name: str, draw: int) -> Path:
        """Where the numbers of a model in the noise of one draw are kept, all that they depend on in the name."""
        stamp = config_digest([self.plan.judging, self.scorer.prompts])[:8]
        return self.home / f"{name.replace(', ', '-').replace(' ', '-')}-judged-{stamp}-{draw}.json"


@dataclass(frozen=True)
class Renoised(Sampler):
    """A sampler in the noise of another draw."""

    draw: int = 0

    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        config: SamplingConfig,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Pixels:
        """As the sampler does, other seeds in place of these."""
        moved = [self.draw * 1_000_003 + seed for seed in seeds]
        return super().sample(prompts, moved, config, on_progress)


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """All students, all drawings, then the page; returns it. `base` is another teacher, and no warehouse is needed."""
    made = prepared(runs, base, SMALL if small else FULL, small)
    rows: list[Row] = [{"name": "real pictures", "seed": 0, **made.scorer.of_real()}]
    ways = teachers_ways(made.plan)
    rows += [teacher_row(made, name, ways[name], draw) for name in ways for draw in range(made.plan.num_draws)]
    rows += [student_row(made, one, seed) for one in made.plan.students for seed in range(one.num_seeds)]
    told = {"base": named(made.teacher), "plan": asdict(made.plan), "verdicts": verdicts(rows, made.plan.students)}
    shown = [prompt for prompt, _, _ in made.scorer.prompts[:NUM_SHOWN]]
    html = report(
        __doc__ or "",
        rows,
        made.plan.students,
        shown,
        made.plan.distilling.num_updates,
        footer(runs, "tdm", how_of(made)),
    )
    return publish(out, "tdm", {"rows": without_pixels(rows), **told}, html)


def how_of(made: Materials) -> str:
    """What the students were trained with, in a sentence."""
    plan = made.plan.distilling
    return (
        f"{plan.num_updates} updates of {plan.batch_size} of {len(made.prompts)} prompts, guidance {plan.guidance:g}; teacher "
        f"{named(made.teacher)}"
    )


def pilot(runs: Path, base: str | None = None, small: bool = False) -> Iterator[str]:
    """One student of the first kind, and one with more fake updates: how the gap falls, and what both are worth. All is kept."""
    made = prepared(runs, base, SMALL if small else FULL, small)
    first = made.plan.students[0]
    rows = [teacher_row(made, name, config, 0) for name, config in teachers_ways(made.plan).items()]
    for student in (first, replace(first, fake_updates=3)):
        row = student_row(made, student, 0)
        rows.append(row)
        yield f"{student.name}: {row['seconds']:.0f} s of updates"
        for key, values in row["log"].items():
            yield f"  {key:24}" + " ".join(f"{value:.3f}" for value in values)
    for row in rows:
        numbers = "  ".join(f"{key} {row[key]:.3f}" for key in ("concept", "style", "frechet", "coverage"))
        yield f"{row['name']:34}{numbers}"
    yield "seed 0 alone, without intervals; the log is of equal stretches of the training"


def prepared(runs: Path, base: str | None, plan: Plan, small: bool) -> Materials:
    """Teacher, held-out pictures, the prompts to distil on, the encoder."""
    ground = stand(runs, None, small)
    if base is not None:
        plan = replace(plan, distilling=replace(plan.distilling, guidance=CLIMBED_GUIDANCE))
    held_out = [one for one in ground.pictures if one.held_out]
    places = np.linspace(0, len(held_out) - 1, min(plan.judging.num_judged, len(held_out))).round().astype(int)
    judged = [held_out[place] for place in places]
    learned = [one for one in ground.pictures if not one.held_out]
    prompts = tuple(dict.fromkeys(prompt for prompt, _, _ in prompted(learned)))
    scorer = Scorer(judged, ground.pictures, plan.judging.num_features)
    teacher = ground.base if base is None else find_checkpoint(base, runs)
    return Materials(teacher, runs, plan, ground.encoder, prompts, scorer)


def teachers_ways(plan: Plan) -> dict[str, SamplingConfig]:
    """How the teacher is sampled."""
    few = dict.fromkeys(one.num_steps for one in plan.students)
    ways = [(ACCURATE_STEPS, True), (REFERENCE_STEPS, True), *((n, guided) for n in few for guided in (True, False))]
    return {
        teacher_name(n, guided): SamplingConfig(
            num_steps=n, guidance=plan.distilling.guidance if guided else 0.0, resolution=SIDE
        )
        for n, guided in ways
    }


def teacher_row(made: Materials, name: str, config: SamplingConfig, draw: int) -> Row:
    """One way to sample the teacher, measured in the noise of a draw."""
    calls = config.num_steps * (2 if config.guidance else 1)
    path = made.kept(f"{name}, {config_digest([config])[:8]}", draw)
    row = once(path, lambda: made.scorer.of_model(sampler_of(made, made.teacher, draw), config))
    return {"name": name, "seed": draw, "calls": calls, **row}


def student_row(made: Materials, student: Student, seed: int) -> Row:
    """One student, trained and measured, in the noise of its seed."""
    done = trained(made, student, seed)
    checkpoint = made.home / done.pop("checkpoint")
    config = replace(sampling_of(checkpoint), resolution=SIDE)
    path = made.kept(checkpoint.parents[1].name, seed)
    row = once(path, lambda: made.scorer.of_model(sampler_of(made, checkpoint, seed), config))
    return {"name": student.name, "seed": seed, "calls": student.num_steps, **done, **row}


def log_of(records: Sequence[StepRecord], plan: Distilling) -> Row:
    """What the stage has logged, means over equal stretches of the training, nan where there was none; and its seconds."""
    stretches = [part.tolist() for part in np.array_split(np.array(records, object), min(NUM_STRETCHES, len(records)))]
    keys = sorted({key for record in records for key in record.metrics if key.startswith("tdm/")})

    def mean(key: str, of: Sequence[StepRecord]) -> float:
        values = [record.metrics[key] for record in of if key in record.metrics]
        return float(np.mean(values)) if values else math.nan

    return {
        "log": {key: [mean(key, of) for of in stretches] for key in keys},
        "seconds": sum(plan.batch_size / record.samples_per_second for record in records),
    }


def sampler_of(made: Materials, checkpoint: Path, draw: int) -> Sampler:
    """A checkpoint with all it needs to draw, in the noise of a draw."""
    model, projection = read_model(checkpoint)
    return Renoised(model, load_autoencoder(shipped("autoencoder")), made.encoder, projection, draw)


def trained(made: Materials, student: Student, seed: int) -> Row:
    """A student's checkpoint, and what its training logged; distilled now or before."""
    plan = made.plan.distilling
    config = TdmConfig(num_steps=student.num_steps, guidance=plan.guidance, fake_updates=student.fake_updates)
    digest = config_digest([plan, config, made.prompts, seed])
    folder = made.home / f"{student.name.replace(', ', '-').replace(' ', '-')}-{digest[:8]}-{seed}"

    def made_now() -> Row:
        checkpoint = distil(made, config, folder, seed, digest)
        return {
            "checkpoint": str(checkpoint.relative_to(made.home)),
            **log_of(read_records(folder / "steps.jsonl"), plan),
        }

    found: Row = once(folder / "trained.json", made_now)
    return found


def distil(made: Materials, config: TdmConfig, folder: Path, seed: int, digest: str) -> Path:
    """Distil, or go on with it; gives the last checkpoint."""
    plan, stage = made.plan.distilling, few_step_stage(made.teacher, config, made.encoder)
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
    line = ProgressLine(folder.name)
    last = train(
        stage,
        [Phase("prompts", plan.num_updates, plan.batch_size, loader)],
        EngineConfig(seed=seed, optimiser=rule, keep_checkpoints=1, num_threads=plan.threads),
        folder,
        config_digest=digest,
        hooks=[EachStep(lambda record, total: line.update(record.step + 1, total, f"gap {record.metrics[GAP]:.3f}"))],
        parent=Parent(checkpoint=made.teacher),
        on_message=lambda said: print(f"  {said}"),
    )
    line.close()
    return last
