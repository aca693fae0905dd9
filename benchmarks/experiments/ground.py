"""What all experiments on post-training stand on: one base model, one set of rewards, and nobody of them who measures.

    drawings at 32 px --pack, the demo's recipe--> base --two steps--> failures
         '--enlarged as judges see them--> judge of seed 1 ------------------> reward `rubric`        |
         |                             '-> judge of seed 2, another network -> gold: watched, never climbed
         '--as the autoencoder gives them back, and the failures--> classifiers of seeds 1, 2 -> reward `artefact`, gold

All are fitted to pictures that training may see; held-out pairs calibrate the judges (one half) and tell how right they are
(the other). The shipped judge and the exploration suite's second judge measure; no reward is built on them. Every experiment
uses one core: once the ground is there, `make -j2` of two of them is faster than one after the other with two threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.drawn import SIDE, Pixels, given_back, list_drawings, text_encoder
from benchmarks.experiments.results import once
from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import digest_file, read_manifest
from pleinair.cli import steps
from pleinair.cli.main import build_parser
from pleinair.cli.main import main as pleinair
from pleinair.cli.parents import find_checkpoint
from pleinair.cli.parts import Parts
from pleinair.cli.places import shipped
from pleinair.cli.progress import ProgressLine
from pleinair.cli.workspace import Workspace, open_workspace
from pleinair.curation.sources import TRAINING_STYLES
from pleinair.evaluation.judge_training import train_judge
from pleinair.evaluation.prompted import Prompted, at_judges_size
from pleinair.model.judge import JudgeConfig, load_judge
from pleinair.model.text_encoder import TextEncoder
from pleinair.packing.pictures import CuratedPicture
from pleinair.packs.pack import Pack
from pleinair.pages import Html, element, table
from pleinair.recipes.concepts import DRAWINGS, EVERYDAY
from pleinair.records.rewards import Reward
from pleinair.rewards.artefact import (
    ArtefactReward,
    ArtefactTraining,
    Classifier,
    fit_artefacts,
    load_classifier,
    save_classifier,
)
from pleinair.rewards.combine import MixConfig, RewardMix
from pleinair.rewards.diversity import DiversityReward
from pleinair.rewards.gold import Gold
from pleinair.rewards.picture_judge import PictureJudge, calibrated, load_picture_judge, measure, save_picture_judge
from pleinair.rewards.rubric import RubricConfig, RubricReward
from pleinair.rewards.statistics import StatisticsConfig
from pleinair.sampling import Sampler, SamplingConfig
from pleinair.sampling.checkpoints import read_model
from pleinair.sampling.shipped import load_autoencoder

RECIPE = "demo"


@dataclass(frozen=True, kw_only=True)
class GroundPlan:
    """How much the base and the rewards are trained."""

    name: str = "experiments-base"
    """Of the base's run."""
    labels: tuple[str, ...] = DRAWINGS
    styles: tuple[str, ...] = TRAINING_STYLES
    base_steps: int = 1500
    """So few that it still has something to learn from rewards: 45 epochs."""
    batch_size: int = 64
    judge_epochs: int = 24
    """About four minutes of one core for a judge."""
    artefact_steps: int = 250
    num_failures: int = 300
    """Drawings of the base in two steps: what a classifier of artefacts learns beside corrupted pictures."""
    threads: int = 1


FULL = GroundPlan()
SMALL = GroundPlan(
    name="experiments-base-small", labels=EVERYDAY[:20], base_steps=2, batch_size=8, judge_epochs=1, artefact_steps=2,
    num_failures=24,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Member:
    """What is fitted once as a reward, and once more, otherwise, as gold."""

    seed: int
    widths: tuple[int, ...]
    """Of the judge's stages."""
    blocks: tuple[int, ...]


MEMBERS = {
    "reward": Member(seed=1, widths=(24, 64, 160), blocks=(0, 1, 2)),
    "gold": Member(seed=2, widths=(32, 64, 128), blocks=(1, 1, 1)),
}


@dataclass(frozen=True)
class Fitted:
    """A judge and a classifier of artefacts, with what was measured of them on pictures they never saw."""

    judge: PictureJudge
    artefacts: Classifier
    told: dict[str, Any]

    def rubric(self, config: RubricConfig | None = None) -> RubricReward:
        """Prompt following by this judge."""
        return RubricReward(self.judge.parser(), self.judge, config)

    def artefact(self) -> ArtefactReward:
        """Soundness by this classifier."""
        return ArtefactReward(self.artefacts)

    def diversity(self) -> DiversityReward:
        """Unlikeness within a group, as this judge sees pictures."""
        return DiversityReward(self.judge.features, identity=self.judge.identity, parts=self.judge.parts)


@dataclass(frozen=True)
class Ground:
    """Everything shared."""

    plan: GroundPlan
    runs: Path
    base: Path
    """Its checkpoint."""
    work: Workspace
    """Whose `pack` and `held_out` are written."""
    pictures: Sequence[CuratedPicture]
    """All of them, held-out pairs included."""
    fitted: dict[str, Fitted]
    """By the names of `MEMBERS`."""
    encoder: TextEncoder

    @property
    def identity(self) -> str:
        """Of base and rewards: what is measured on another ground is not gone on with."""
        told = [one for of in self.fitted.values() for one in (of.judge.identity, of.artefact().identity)]
        return ".".join([identity(read_manifest(self.base)), *told])

    @property
    def pack(self) -> Pack:
        """What the base was trained on."""
        return Pack(self.work.pack)

    @property
    def held_out(self) -> Pack:
        """The pairs that it was not."""
        return Pack(self.work.held_out)

    @cached_property
    def trained_prompts(self) -> list[Prompted]:
        """What rewards may be climbed on."""
        return asked([one for one in self.pictures if not one.held_out], self.fitted["reward"].judge)

    @cached_property
    def unseen_prompts(self) -> list[Prompted]:
        """Pairs that no model and no reward was trained on."""
        return asked([one for one in self.pictures if one.held_out], self.fitted["reward"].judge)

    def sampler(self, checkpoint: Path | None = None) -> Sampler:
        """Of the base, or of another checkpoint."""
        return sampler_of(checkpoint or self.base, self.encoder)

    def mix(self, weights: dict[str, float], config: RubricConfig | None = None) -> RewardMix:
        """Rewards to climb, by weight of `rubric`, `artefact` and `diversity`; gold beside them. `config`: the rubric's."""
        return mix_of(self.fitted, weights, config)

    def facts(self) -> Html:
        """For a page: what was fitted, and how right it is."""
        rows = [[name, what, *cells] for name, one in self.fitted.items() for what, *cells in told_rows(one.told)]
        plan = self.plan
        note = (
            f"Fitted to {len(plan.labels)} things in {len(plan.styles)} styles, held-out pairs left out, at {SIDE} px."
        )
        return element("div", element("p", note), table(["member", "of", "right", "sound or true above others"], rows))


def asked(pictures: Sequence[CuratedPicture], judge: PictureJudge) -> list[Prompted]:
    """Short captions whose thing and style the parser finds, and for which the shipped judge has names; each once."""
    names, parse, found = load_judge(shipped("judge")).config, judge.parser(), dict[str, Prompted]()
    for one in pictures:
        prompt, style, concept = one.captions[-1], one.style or "", one.concept or ""
        said = {(of.kind, (of.subject or of.value).replace(" ", "-")) for of in parse([prompt])[0]}
        if {("object", concept), ("style", style)} <= said and concept in names.concept_names:
            found[prompt] = (prompt, style, concept)
    return list(found.values())


def mix_of(fitted: Mapping[str, Fitted], weights: dict[str, float], config: RubricConfig | None) -> RewardMix:
    """What is climbed, of the member `reward`, and what is watched, of the member `gold`: rubric and soundness."""
    reward, gold = fitted["reward"], fitted["gold"]
    makers: dict[str, Callable[[], Reward]] = {
        "rubric": lambda: reward.rubric(config),
        "artefact": reward.artefact,
        "diversity": reward.diversity,
    }
    held = [Gold(gold.rubric()), Gold(gold.artefact())]
    # An experiment looks at what happens to rewards that are climbed too far; it is not to be ended by it.
    never = StatisticsConfig(outlier=math.inf, leap=math.inf, constant_batches=0)
    return RewardMix([makers[name]() for name in weights], MixConfig(weights=weights, statistics=never), gold=held)


def told_rows(told: dict[str, Any]) -> list[list[str]]:
    """Rows of numbers, as text."""
    judged = [
        [f"{kind}, {one['num_pictures']} held-out pictures", f"{one['accuracy']:.3f}", f"{one['area_under_curve']:.3f}"]
        for kind, one in told["judge"].items()
    ]
    faults = [[f"fault {name}", "", f"{area:.3f}"] for name, area in told["artefact"].items()]
    return [*judged, *faults]


def stand(runs: Path, base: str | None = None, small: bool = False) -> Ground:
    """The ground, made where it is not there yet. `base`: another model of the demo's architecture instead of its own."""
    plan = SMALL if small else FULL
    pictures = list_drawings(plan.labels, plan.styles)
    parent = None if base is None else find_checkpoint(base, runs)
    work = packed(runs, plan, pictures, parent)
    checkpoint, encoder = parent or trained(work, runs, plan), text_encoder()
    folder = runs / plan.name / "rewards" / identity(read_manifest(checkpoint))[:8]
    failures = failures_of(sampler_of(checkpoint, encoder), pictures, plan.num_failures)
    fitted = {name: fit(name, pictures, failures, plan, folder) for name in MEMBERS}
    return Ground(plan, runs, checkpoint, work, pictures, fitted, encoder)


def sampler_of(checkpoint: Path, encoder: TextEncoder) -> Sampler:
    """A checkpoint's, through the shipped autoencoder."""
    model, projection = read_model(checkpoint)
    return Sampler(model, load_autoencoder(shipped("autoencoder")), encoder, projection)


def failures_of(sampler: Sampler, pictures: Sequence[CuratedPicture], count: int) -> Callable[[], Pixels]:
    """What a model draws of trained prompts in two steps, drawn once when it is needed."""
    prompts = [one.captions[-1] for one in pictures if not one.held_out]
    chosen = [prompts[place] for place in np.linspace(0, len(prompts) - 1, count).round().astype(int)]
    hasty = SamplingConfig(num_steps=2, resolution=SIDE)
    return cache(lambda: sampler.sample(chosen, range(count), hasty))


def words_of(runs: Path, plan: GroundPlan, parent: Path | None) -> list[str]:
    """The command line of the base: the demo's recipe at one resolution."""
    name = plan.name if parent is None else f"{plan.name}-on-{identity(read_manifest(parent))[:8]}"
    settings = (
        f"name={name}",
        f"phases=({{'resolution': {SIDE}, 'num_steps': {plan.base_steps}, 'batch_size': {plan.batch_size}}},)",
        f"engine.num_threads={plan.threads}",
        f"engine.keep_every={max(1, plan.base_steps // 3)}",
    )
    words = [RECIPE, "--runs", str(runs), *(word for one in settings for word in ("--set", one))]
    return words if parent is None else [*words, "--parent", str(parent)]


def packed(runs: Path, plan: GroundPlan, pictures: Sequence[CuratedPicture], parent: Path | None) -> Workspace:
    """Packs of what is trained on and of what is not. No warehouse is needed."""
    work = open_workspace(build_parser().parse_args(["pack", *words_of(runs, plan, parent)]))
    autoencoder = shipped("autoencoder")
    parts = Parts(load_autoencoder(autoencoder), digest_file(autoencoder).sha256, load_judge(shipped("judge")))
    steps.pack_step(work, list(pictures), parts)
    return work


def trained(work: Workspace, runs: Path, plan: GroundPlan) -> Path:
    """The base, trained or found."""
    if pleinair(["train", *words_of(runs, plan, None)]):
        raise SystemExit("the base did not train to its end")
    return find_checkpoint(str(work.run_dir), runs)


def fit(
    name: str, pictures: Sequence[CuratedPicture], failures: Callable[[], Pixels], plan: GroundPlan, folder: Path
) -> Fitted:
    """A member's judge and classifier, fitted or found in `folder`."""
    stem = f"{name}-{plan.judge_epochs}-{plan.artefact_steps}"
    places = [folder / f"{stem}-{what}.safetensors" for what in ("judge", "artefact")]
    folder.mkdir(parents=True, exist_ok=True)
    small = np.stack([one.pixels[SIDE] for one in pictures])
    held_out = np.array([one.held_out for one in pictures])

    def made() -> dict[str, Any]:
        faults = fit_classifier(small[~held_out], failures(), MEMBERS[name].seed, plan, places[1])
        return {"judge": fit_judge(name, pictures, at_judges_size(small), plan, places[0]), "artefact": faults}

    told = once(folder / f"{stem}.json", made)
    return Fitted(load_picture_judge(places[0]), load_classifier(places[1]), told)


def fit_judge(
    name: str, pictures: Sequence[CuratedPicture], pixels: Pixels, plan: GroundPlan, path: Path
) -> dict[str, Any]:
    """Train on what training may see, calibrate on half of the held-out pairs; what it is worth on the other half."""
    member, line = MEMBERS[name], ProgressLine(f"judge: {name}")
    style_names = tuple(sorted({one.style or "" for one in pictures}))
    concept_names = tuple(sorted({one.concept or "" for one in pictures}))
    styles = np.array([style_names.index(one.style or "") for one in pictures])
    concepts = np.array([concept_names.index(one.concept or "") for one in pictures])
    held_out = np.array([one.held_out for one in pictures])
    judge = train_judge(
        pixels[~held_out],
        styles[~held_out],
        concepts[~held_out],
        JudgeConfig(
            style_names=style_names, concept_names=concept_names, widths=member.widths, blocks=member.blocks,
            epochs=plan.judge_epochs, seed=member.seed,
        ),
        on_progress=lambda now: line.update(now.step, now.num_steps, f"concept loss {now.concept_loss:.2f}"),
    )  # fmt: skip
    line.close()
    first, second = np.flatnonzero(held_out)[::2], np.flatnonzero(held_out)[1::2]
    whole = calibrated(PictureJudge(judge), pixels[first], styles[first], concepts[first])
    save_picture_judge(whole, path)
    told = measure(load_picture_judge(path), pixels[second], styles[second], concepts[second])
    return {kind: asdict(one) for kind, one in told.items()}


def fit_classifier(real: Pixels, failures: Pixels, seed: int, plan: GroundPlan, path: Path) -> dict[str, float]:
    """The classifier of artefacts, on real pictures as the autoencoder gives them back; its areas under the curve."""
    line = ProgressLine(f"artefacts: seed {seed}")
    config = ArtefactTraining(num_steps=plan.artefact_steps, seed=seed)
    classifier, report = fit_artefacts(given_back(real), failures, config, on_progress=line.update)
    line.close()
    save_classifier(classifier, path)
    return dict(report.area_under_curve)
