"""Specialists by domain into one model: merged, trained on both, or distilled on the student's own paths.

    base --SFT on rendered solids--> specialist --+--> merge, at several amounts
        '--SFT on black lines------> specialist --+--> on-policy distillation: one student, each teacher for its own prompts
        '--SFT on both packs-----------------------> mixed

Every model is measured on both domains: held-out error, what the judge names, Frechet distance to the domain's pictures, and
whether supervised fine-tuning brings saturation and fine detail to what real pictures have. Merging is repeated at thirds
of the specialists' training, to see whether it returns less later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.drawn import NUM_SHOWN, SIDE, Scorer, shown, spread
from benchmarks.experiments.ground import stand
from benchmarks.experiments.results import once, opening, publish, without_pixels
from benchmarks.krablet.rounds import commit, machine
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
from pleinair.evaluation.domains import held_out_errors
from pleinair.model.judge import load_judge
from pleinair.model.text_encoder import TextEncoder
from pleinair.packing.pictures import CuratedPicture
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack
from pleinair.packs.plan import LoaderConfig
from pleinair.pages import GridCell, GridRow, Section, Series, grid, line_plot, page, table
from pleinair.posttraining.distilling import on_policy_stage
from pleinair.recipes.later_stages import DOMAINS
from pleinair.sampling import Sampler, SamplingConfig
from pleinair.sampling.checkpoints import read_model
from pleinair.sampling.shipped import load_autoencoder
from pleinair.training.engine import EngineConfig, Parent, Phase, train
from pleinair.training.hooks.progress import EachStep
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.prompts import CaptionLoader, InTurn
from pleinair.training.stages.on_policy_distillation import OnPolicyConfig

NAMES = tuple(DOMAINS)
"""The domains, in the order in which teachers are numbered."""
MIXED, STUDENT = "mixed", "on-policy student"
SIZES = ("width", "num_layers", "num_heads", "num_kv_heads")
"""In which the base differs from the recipes of fine-tuning."""
KEPT = 0.95
"""Share of each specialist's skill that the student is to have on its domain."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is trained and judged."""

    num_seeds: int = 3
    num_steps: int = 60
    """Of each specialist; the mixed model has as many for each domain."""
    batch_size: int = 64
    learning_rate: float = 3e-4
    amounts: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    drawn_amounts: tuple[float, ...] = (0.5, 1.0)
    """Merges that are drawn and judged, too."""
    student_steps: int = 120
    student_batch: int = 32
    student_rate: float = 3e-4
    anchor_weight: float = 0.02
    num_judged: int = 120
    num_features: int = 24
    sampling_steps: int = 28


FULL = Plan()
SMALL = Plan(
    num_seeds=2, num_steps=3, batch_size=4, amounts=(0.5, 1.0), drawn_amounts=(0.5,), student_steps=2,
    student_batch=2, num_judged=8, num_features=2, sampling_steps=3,
)  # fmt: skip


@dataclass(frozen=True)
class Materials:
    """What all pieces need."""

    base: Path
    runs: Path
    plan: Plan
    packs: Mapping[str, Workspace]
    """By domain, and of both: whose `pack` and `held_out` are written."""
    scorers: Mapping[str, Scorer]
    """By domain."""
    encoder: TextEncoder

    @property
    def home(self) -> Path:
        """Where the pieces are kept, all that they depend on in its name."""
        stamp = config_digest([identity(read_manifest(self.base)), to_document(self.plan)])
        return self.runs / f"merging-{stamp[:12]}"


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """All models, then the page; returns it. No warehouse is needed."""
    made = prepared(runs, base, small)
    rows = measured(made, "base", 0, made.base)
    returns: list[dict[str, Any]] = []
    for seed in range(made.plan.num_seeds):
        models, thirds = models_of(made, seed)
        for name, checkpoint in models.items():
            rows += measured(made, name, seed, checkpoint, drawn=not is_undrawn(name, made.plan))
        returns += [{"steps": at, "seed": seed, **gain(made, seed, at, merged)} for at, merged in thirds.items()]
    real = {domain: scorer.of_real() for domain, scorer in made.scorers.items()}
    told = {"base": str(made.base), "plan": asdict(made.plan)}
    document = {"rows": without_pixels(rows), "returns": returns, **told}
    return publish(out, "merging", document, report(rows, returns, real, made))


def prepared(runs: Path, base: str | None, small: bool) -> Materials:
    """Packs of each domain and of both, and who measures."""
    plan, ground = SMALL if small else FULL, stand(runs, base, small)
    autoencoder = shipped("autoencoder")
    parts = Parts(load_autoencoder(autoencoder), digest_file(autoencoder).sha256, load_judge(shipped("judge")))
    pictures = {domain: [one for one in ground.pictures if one.style in styles] for domain, styles in DOMAINS.items()}
    both = [one for of in pictures.values() for one in of]
    packs = {}
    for name, of in {**pictures, MIXED: both}.items():
        words = words_of(runs, ground.base, name, plan, f"{len(both)}-pack")
        packs[name] = open_workspace(build_parser().parse_args(["train", *words]))
        steps.pack_step(packs[name], of, parts)
    scorers = {domain: Scorer(judged(of, plan.num_judged), both, plan.num_features) for domain, of in pictures.items()}
    return Materials(ground.base, runs, plan, packs, scorers, ground.encoder)


def judged(pictures: Sequence[CuratedPicture], count: int) -> list[CuratedPicture]:
    """Held-out ones first, then as many others, chosen at random."""
    order = np.random.default_rng(0).permutation(len(pictures))
    return sorted((pictures[row] for row in order), key=lambda one: not one.held_out)[:count]


def words_of(runs: Path, base: Path, name: str, plan: Plan, last: object, *more: str) -> list[str]:
    """The command line of one fine-tuning, or of its pack."""
    many = plan.num_steps * (len(NAMES) if name == MIXED else 1)
    settings = [
        f"name=merging-{name}-{last}",
        f"phases=({{'resolution': {SIDE}, 'num_steps': {many}, 'batch_size': {plan.batch_size}}},)",
        f"engine.keep_every={many // 3}",
        f"engine.optimiser.learning_rate={plan.learning_rate}",
        "watch.preview_every=0",
        f"watch.validation.every={many}",
        *(f"transformer.{size}={getattr(config_of(base), size)}" for size in SIZES),
        *more,
    ]
    recipe = f"drawings-sft-{NAMES[0] if name == MIXED else name}"
    return [recipe, "--runs", str(runs), "--parent", str(base), *(w for one in settings for w in ("--set", one))]


def fine_tuned(made: Materials, name: str, seed: int) -> list[Path]:
    """Checkpoints at thirds of a fine-tuning, trained or found."""
    pack = f"pack={str(made.packs[name].pack)!r}"
    last = f"{made.home.name[-6:]}-{seed}"
    words = words_of(made.runs, made.base, name, made.plan, last, pack, f"engine.seed={seed}")
    if pleinair(["train", *words]):
        raise SystemExit(f"the fine-tuning on {name} did not end well")
    kept = made.runs / f"merging-{name}-{last}" / "checkpoints"
    return list_checkpoints(kept)[-3:]


def models_of(made: Materials, seed: int) -> tuple[dict[str, Path], dict[int, Path]]:
    """Everything that one seed gives, by name, and the merges at thirds of the training, by step."""
    specialists = {domain: fine_tuned(made, domain, seed) for domain in NAMES}
    models = {domain: checkpoints[-1] for domain, checkpoints in specialists.items()}
    for amount in made.plan.amounts:
        models[merge_name(amount)] = merged(made, [models[domain] for domain in NAMES], amount, seed, "end")
    models[MIXED] = fine_tuned(made, MIXED, seed)[-1]
    models[STUDENT] = distilled(made, [models[domain] for domain in NAMES], seed)
    thirds = {}
    for place in range(3):
        children = [specialists[domain][place] for domain in NAMES]
        thirds[read_manifest(children[0]).step] = merged(made, children, 0.5, seed, str(place))
    return models, thirds


def merge_name(amount: float) -> str:
    """As the table calls it."""
    return f"merge x {amount:g}"


def is_undrawn(name: str, plan: Plan) -> bool:
    """Merges that are only measured by their error."""
    return name in {merge_name(amount) for amount in plan.amounts if amount not in plan.drawn_amounts}


def merged(made: Materials, children: Sequence[Path], amount: float, seed: int, when: str) -> Path:
    """The base and so much of what each child has learned."""
    out = made.home / f"merge-{amount:g}-{seed}-{when}"
    if not out.exists():
        made.home.mkdir(parents=True, exist_ok=True)
        combine_checkpoints(made.base, children, [amount] * len(children), out=out)
    return out


def distilled(made: Materials, teachers: Sequence[Path], seed: int) -> Path:
    """One student of all specialists, from the base, with the base as its anchor."""
    plan, name = made.plan, f"student-{seed}"
    config = OnPolicyConfig(anchor_weight=plan.anchor_weight)
    stage = on_policy_stage(made.base, teachers, config, anchor=made.base)
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
        EngineConfig(seed=seed, optimiser=rule),
        made.home / name,
        config_digest=config_digest([made.home.name, to_document(config), seed]),
        hooks=[EachStep(lambda record, total: line.update(record.step + 1, total, f"loss {record.loss:.4f}"))],
        parent=Parent(checkpoint=made.base),
        on_message=lambda said: print(f"  {said}"),
    )


def measured(made: Materials, name: str, seed: int, checkpoint: Path, drawn: bool = True) -> list[dict[str, Any]]:
    """One model on every domain."""
    sampling = SamplingConfig(num_steps=made.plan.sampling_steps, resolution=SIDE)

    def measure() -> list[dict[str, Any]]:
        model, projection = read_model(checkpoint)
        rows = []
        for domain, scorer in made.scorers.items():
            row: dict[str, Any] = {"domain": domain, "error": error_on(made, domain, checkpoint)}
            if drawn:
                sampler = Sampler(model, load_autoencoder(shipped("autoencoder")), made.encoder, projection)
                row |= scorer.of_model(sampler, sampling)
            rows.append(row)
        return rows

    kept = made.home / f"measured-{name.replace(' ', '-')}-{seed}.json"
    return [{"name": name, "seed": seed, **row} for row in once(kept, measure)]


def error_on(made: Materials, domain: str, checkpoint: Path) -> float:
    """Mean held-out error."""
    model, projection = read_model(checkpoint)
    return float(held_out_errors(model, projection, Pack(made.packs[domain].held_out)).mean())


def gain(made: Materials, seed: int, at: int, merge: Path) -> dict[str, float]:
    """By domain how much lower the merge's held-out error is than the base's."""

    def measure() -> dict[str, float]:
        return {domain: error_on(made, domain, made.base) - error_on(made, domain, merge) for domain in NAMES}

    return dict(once(made.home / f"gain-{seed}-{at}.json", measure))


def values(rows: Sequence[dict[str, Any]], name: str, domain: str, key: str) -> list[float]:
    """Of all seeds; empty where it was not measured."""
    return [row[key] for row in rows if row["name"] == name and row["domain"] == domain and key in row]


def verdicts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What was to be reached, and whether it was."""
    found = []
    for domain in NAMES:
        for key, words in (("concept", "concepts named"), ("style", "styles named")):
            own, expert, merge = (
                spread(values(rows, name, domain, key))[0] for name in (STUDENT, domain, merge_name(0.5))
            )
            reached = "reached" if own >= KEPT * expert else "not reached"
            found.append(
                f"{domain}, {words}: student {own:.3f}, specialist {expert:.3f}, merge {merge:.3f}; {KEPT:.0%} of the "
                f"specialist {reached}."
            )
        base, own, expert, merge = (
            spread(values(rows, name, domain, "error"))[0] for name in ("base", STUDENT, domain, merge_name(0.5))
        )
        found.append(
            f"{domain}, held-out error: base {base:.4f}, specialist {expert:.4f}, merge {merge:.4f}, student {own:.4f}."
        )
    return found


def report(
    rows: Sequence[dict[str, Any]],
    returns: Sequence[dict[str, Any]],
    real: Mapping[str, dict[str, Any]],
    made: Materials,
) -> str:
    """The page."""
    sections = [Section(heading=f"On {domain}", body=_domain_table(rows, domain, real[domain])) for domain in NAMES]
    gained = "Held-out error of the base less that of the merge of both specialists at that step."
    sections.append(Section(heading="Returns of merging", body=_returns_plot(returns), lead=gained))
    sections += [Section(heading=f"Drawings of {domain}", body=_drawings(rows, domain, made)) for domain in NAMES]
    plan = made.plan
    how = f"{plan.num_steps} steps of {plan.batch_size} for each specialist, {plan.num_seeds} seeds; base {made.base}"
    return page(
        "Specialists into one",
        opening(__doc__, verdicts(rows)),
        sections,
        footer=f"make experiment-merging, commit {commit()}, {machine()}. {how}.",
    )


def _domain_table(rows: Sequence[dict[str, Any]], domain: str, real: Mapping[str, Any]) -> Any:
    keys = ("error", "concept", "style", "frechet_extrapolated", "saturation", "fine_detail")
    columns = [
        "model",
        "held-out error",
        "concept named",
        "style named",
        "Frechet, extrapolated",
        "saturation",
        "detail",
    ]
    cells = []
    for name in dict.fromkeys(row["name"] for row in rows):
        found = {key: values(rows, name, domain, key) for key in keys}
        forms = {key: ".4f" if key == "error" else ".3f" for key in keys}
        cells.append([name, *(shown(of, forms[key]) if of else "\u2013" for key, of in found.items())])
    cells.append(["real pictures", *(f"{real[key]:.3f}" if key in real else "\u2013" for key in keys)])
    return table(columns, cells)


def _returns_plot(returns: Sequence[dict[str, Any]]) -> Any:
    series = []
    for domain in NAMES:
        places = sorted({row["steps"] for row in returns})
        means = [float(np.mean([row[domain] for row in returns if row["steps"] == at])) for at in places]
        series.append(Series(name=domain, x=[float(at) for at in places], y=means))
    return line_plot(series, x_label="steps of the specialists", y_label="gain of the merge")


def _drawings(rows: Sequence[dict[str, Any]], domain: str, made: Materials) -> Any:
    first = [row for row in rows if row["seed"] == 0 and row["domain"] == domain and "pixels" in row]
    pictures = [
        GridRow(
            name=prompt,
            cells=[GridCell(picture=np.array(row["pixels"][place], np.uint8), alt=prompt) for row in first],
        )
        for place, (prompt, _, _) in enumerate(made.scorers[domain].prompts[:NUM_SHOWN])
    ]
    return grid([row["name"] for row in first], pictures)
