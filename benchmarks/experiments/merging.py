"""Specialists by domain into one model: merged, trained on both, climbed on both, or distilled on the student's own paths.

    base --SFT on rendered solids--> specialist --+--> merge, at several amounts and at thirds of the training
     |  '--SFT on black lines------> specialist --+--> on-policy distillation: one student, a teacher for each domain's prompts
     +-----SFT on both packs-----------------------> mixed
     '-----GRPO on prompts of both domains---------> mixed reward

Everything is told against the base, which has seen the same pictures: a specialist's gain is what fine-tuning added to it, and a
student keeps a share of that. Where no gain is shown there is nothing to keep, and nothing is claimed. All models draw the same
prompts from the same noise with one seed, and are trained anew and drawn from other noise with the next. Also asked: whether
fine-tuning brings saturation and fine detail to what real pictures have, and whether merging returns less later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.experiments.climbing import SMALL_CLIMB, ClimbPlan, climb
from benchmarks.experiments.drawn import SIDE
from benchmarks.experiments.ground import Ground, stand
from benchmarks.experiments.merging_measures import Bench, Measuring, Row, open_bench
from benchmarks.experiments.merging_page import (
    BASE,
    HALF,
    MIXED,
    NAMES,
    REWARDED,
    STUDENT,
    merge_name,
    report,
    verdicts,
)
from benchmarks.experiments.results import footer, named, publish, without_pixels
from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.merge import combine_checkpoints
from pleinair.checkpoint.store import digest_file, list_checkpoints, read_manifest
from pleinair.cli import steps
from pleinair.cli.main import build_parser
from pleinair.cli.main import main as pleinair
from pleinair.cli.parents import config_of
from pleinair.cli.parts import Parts
from pleinair.cli.places import shipped
from pleinair.cli.progress import ProgressLine
from pleinair.cli.workspace import Workspace, open_workspace
from pleinair.config import config_digest, to_document
from pleinair.model.judge import load_judge
from pleinair.packing.pictures import CuratedPicture
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.plan import LoaderConfig
from pleinair.posttraining.distilling import on_policy_stage
from pleinair.recipes.later_stages import DOMAINS
from pleinair.records.errors import ConfigError
from pleinair.sampling.shipped import load_autoencoder
from pleinair.training.engine import EngineConfig, Parent, Phase, train
from pleinair.training.hooks.progress import EachStep
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.prompts import CaptionLoader, InTurn
from pleinair.training.stages.on_policy_distillation import OnPolicyConfig

SIZES = ("width", "num_layers", "num_heads", "num_kv_heads")
"""In which the base differs from the recipes of fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What decides weights."""

    num_steps: int = 60
    """Of each specialist; the mixed model has as many for each domain. Thirds of it are merged, too."""
    batch_size: int = 64
    learning_rate: float = 3e-4
    student: OnPolicyConfig = field(default_factory=lambda: OnPolicyConfig(anchor_weight=0.02))
    student_steps: int = 240
    student_batch: int = 32
    student_rate: float = 3e-4
    climb: ClimbPlan = field(default_factory=lambda: replace(ClimbPlan(), num_iterations=40))
    rewards: Mapping[str, float] = field(default_factory=lambda: {"rubric": 1.0, "artefact": 0.5})
    """What the model of mixed reward climbs, by weight."""

    def __post_init__(self) -> None:
        if self.num_steps % 3 or self.num_steps < 3:
            raise ConfigError(
                f"num_steps is {self.num_steps}: give a multiple of 3, so that both domains stop at its thirds"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is trained and judged."""

    training: Training = field(default_factory=Training)
    measuring: Measuring = field(default_factory=Measuring)
    num_seeds: int = 5
    amounts: tuple[float, ...] = (HALF, 0.75, 1.0)
    """Of what each specialist learned, in a merge."""


FULL = Plan()
SMALL = Plan(
    training=Training(
        num_steps=3, batch_size=4, student=OnPolicyConfig(num_steps=3, num_visits=1, anchor_weight=0.02), student_steps=2,
        student_batch=2, climb=SMALL_CLIMB,
    ),
    measuring=Measuring(num_pictures=8, num_features=2, num_steps=2), num_seeds=2, amounts=(HALF, 1.0),
)  # fmt: skip


@dataclass(frozen=True)
class Materials:
    """What all trainings need."""

    ground: Ground
    plan: Training
    packs: Mapping[str, Workspace]
    """By domain, and of both: whose `pack` and `held_out` are written."""
    home: Path
    """Where weights are kept, all that they depend on in its name."""


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """All models, then the page; returns it. What is done is not done again. No warehouse is needed."""
    plan, ground = SMALL if small else FULL, stand(runs, base, small)
    pictures = {domain: [one for one in ground.pictures if one.style in styles] for domain, styles in DOMAINS.items()}
    made = prepared(ground, pictures, plan.training)
    bench = open_bench(ground, pictures, {domain: made.packs[domain].held_out for domain in NAMES}, plan.measuring)
    rows: list[Row] = []
    returns: list[Row] = []
    for seed in range(plan.num_seeds):
        specialists = {domain: fine_tuned(made, domain, seed) for domain in NAMES}
        for name, checkpoint in models_of(made, plan.amounts, specialists, seed).items():
            rows += bench.rows(name, seed, checkpoint)
            if name in (BASE, REWARDED):  # climbed without guidance, a model may want none
                rows += bench.rows(f"{name}, no guidance", seed, checkpoint, guidance=0.0)
        returns += returns_of(made, bench, specialists, seed)
    real = {domain: one.real for domain, one in bench.domains.items()}
    told = {
        "plan": to_document(plan),
        "base": named(ground.base),
        "real": real,
        "verdicts": verdicts(rows, returns, real),
    }
    document = {"rows": without_pixels(rows), "returns": returns, **told}
    texts = {domain: [prompt for prompt, _, _ in of.scorer.prompts] for domain, of in bench.domains.items()}
    foot = footer(runs, "merging", f"{plan.num_seeds} seeds, settings in merging.json; base {named(ground.base)}")
    return publish(out, "merging", document, report(__doc__, rows, returns, real, texts, foot))


def prepared(ground: Ground, pictures: Mapping[str, Sequence[CuratedPicture]], plan: Training) -> Materials:
    """Packs of each domain and of both."""
    autoencoder = shipped("autoencoder")
    parts = Parts(load_autoencoder(autoencoder), digest_file(autoencoder).sha256, load_judge(shipped("judge")))
    both = [one for of in pictures.values() for one in of]
    stamp = config_digest([identity(read_manifest(ground.base)), [one.key for one in both], plan])[:12]
    packs = {}
    for name, of in {**pictures, MIXED: both}.items():
        words = words_of(ground, name, plan, f"{stamp[:6]}-pack")
        packs[name] = open_workspace(build_parser().parse_args(["train", *words]))
        steps.pack_step(packs[name], list(of), parts)
    return Materials(ground, plan, packs, ground.runs / f"merging-{stamp}")


def words_of(ground: Ground, name: str, plan: Training, last: str, *more: str) -> list[str]:
    """The command line of one fine-tuning, or of its pack."""
    many = plan.num_steps * (len(NAMES) if name == MIXED else 1)
    settings = [
        f"name=merging-{name}-{last}",
        f"phases=({{'resolution': {SIDE}, 'num_steps': {many}, 'batch_size': {plan.batch_size}}},)",
        f"engine.keep_every={many // 3}",
        f"engine.num_threads={plan.climb.threads}",
        f"engine.optimiser.learning_rate={plan.learning_rate}",
        "watch.preview_every=0",
        f"watch.validation.every={many}",
        *(f"transformer.{size}={getattr(config_of(ground.base), size)}" for size in SIZES),
        *more,
    ]
    recipe = f"drawings-sft-{NAMES[0] if name == MIXED else name}"
    places = ["--runs", str(ground.runs), "--parent", str(ground.base)]
    return [recipe, *places, *(word for one in settings for word in ("--set", one))]


def fine_tuned(made: Materials, name: str, seed: int) -> list[Path]:
    """Checkpoints at the thirds of a fine-tuning, trained or found."""
    last = f"{made.home.name.removeprefix('merging-')[:6]}-{seed}"
    pack = f"pack={str(made.packs[name].pack)!r}"
    if pleinair(["train", *words_of(made.ground, name, made.plan, last, pack, f"engine.seed={seed}")]):
        raise SystemExit(f"the fine-tuning on {name} did not end well")
    many = made.plan.num_steps * (len(NAMES) if name == MIXED else 1)
    return at_thirds(list_checkpoints(made.ground.runs / f"merging-{name}-{last}" / "checkpoints"), many)


def at_thirds(checkpoints: Sequence[Path], num_steps: int) -> list[Path]:
    """Those of each third of a training, whatever else was saved by the clock."""
    by_step = {read_manifest(one).step: one for one in checkpoints}
    return [by_step[place * (num_steps // 3)] for place in (1, 2, 3)]


def models_of(
    made: Materials, amounts: Sequence[float], specialists: Mapping[str, Sequence[Path]], seed: int
) -> dict[str, Path]:
    """Everything that is judged with one seed, by name."""
    experts = {domain: checkpoints[-1] for domain, checkpoints in specialists.items()}
    merges = {merge_name(amount): merged(made, list(experts.values()), amount, seed, "end") for amount in amounts}
    return {
        BASE: made.ground.base,
        **experts,
        **merges,
        MIXED: fine_tuned(made, MIXED, seed)[-1],
        REWARDED: climbed(made, seed),
        STUDENT: distilled(made, list(experts.values()), seed),
    }


def returns_of(made: Materials, bench: Bench, specialists: Mapping[str, Sequence[Path]], seed: int) -> list[Row]:
    """By third and domain, how much the held-out error of the merge, and of the domain's own specialist, fell."""
    before, found = bench.errors(made.ground.base), []
    for place in range(3):
        children = [specialists[domain][place] for domain in NAMES]
        after = bench.errors(merged(made, children, HALF, seed, f"third-{place + 1}"))
        for domain, child in zip(NAMES, children, strict=True):
            told = {"seed": seed, "step": read_manifest(child).step, "domain": domain}
            own = before[domain] - bench.errors(child)[domain]
            found.append({**told, "merge": before[domain] - after[domain], "specialist": own})
    return found


def merged(made: Materials, children: Sequence[Path], amount: float, seed: int, when: str) -> Path:
    """The base and so much of what each child has learned."""
    out = made.home / f"merge-{amount:g}-{seed}-{when}"
    if not out.exists():
        made.home.mkdir(parents=True, exist_ok=True)
        combine_checkpoints(made.ground.base, children, [amount] * len(children), out=out)
    return out


def climbed(made: Materials, seed: int) -> Path:
    """GRPO from the base on the trained prompts of all domains; other rewards have a folder of their own."""
    ground, weights = made.ground, dict(made.plan.rewards)
    styles = {style for of in DOMAINS.values() for style in of}
    prompts = list(dict.fromkeys(prompt for prompt, style, _ in ground.trained_prompts if style in styles))
    directory = made.home / f"mixed-reward-{config_digest(ground.identity)[:6]}-{seed}"
    told = [weights, made.home.name]
    return climb(ground, ground.base, ground.mix(weights), told, made.plan.climb, seed, directory, prompts=prompts)


def distilled(made: Materials, teachers: Sequence[Path], seed: int) -> Path:
    """One student of all specialists, from the base, with the base as its anchor."""
    plan, base, name = made.plan, made.ground.base, f"student-{seed}"
    stage = on_policy_stage(base, teachers, plan.student, anchor=base)
    own = LoaderConfig(batch_size=plan.student_batch, seed=seed)
    loaders = [
        CaptionLoader(LatentLoader(Pack(made.packs[domain].pack), SIDE, own), number)
        for number, domain in enumerate(NAMES)
    ]
    rule = OptimiserConfig(rule="muon", learning_rate=plan.student_rate, warmup_steps=10, decay_share=0.5)
    line = ProgressLine(name)
    return train(
        stage,
        [Phase("captions", plan.student_steps, plan.student_batch, InTurn(loaders))],
        EngineConfig(seed=seed, optimiser=rule, num_threads=made.plan.climb.threads),
        made.home / name,
        config_digest=config_digest([made.home.name, plan.student, rule, seed]),
        hooks=[EachStep(lambda record, total: line.update(record.step + 1, total, f"loss {record.loss:.4f}"))],
        parent=Parent(checkpoint=base),
        on_message=lambda said: print(f"  {said}"),
    )
