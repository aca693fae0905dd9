"""Runs of the experiment on preference optimisation: pairs that the base draws, and the weights along each run.

    base --guided, many steps | worse--> pairs --Preference with an arm's loss--> run --Snapshots--> weights every few steps

A run's folder bears the digest of all that it was trained with, so another constant is another run. What is measured of the
weights is no part of it (`stpo_measures`): measuring otherwise trains nothing anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import save_file

from benchmarks.experiments.drawn import SIDE
from benchmarks.experiments.ground import RECIPE, Fitted
from benchmarks.experiments.ground import Ground as Shared
from benchmarks.experiments.results import once
from benchmarks.experiments.stpo_arms import SHUFFLED, Arm
from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import read_manifest
from pleinair.cli.progress import ProgressLine
from pleinair.config import config_digest
from pleinair.packing.delta_pairs import DeltaConfig, make_delta_pairs
from pleinair.packing.pair_drawing import Source
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pairs import Anchored, PairLoader, PairLoaderConfig, Pairs
from pleinair.packs.plan import LoaderConfig
from pleinair.pages.picture import Pixels
from pleinair.recipes import find_recipe
from pleinair.records.rewards import RewardContext
from pleinair.rewards.rubric import RubricConfig, RubricReward
from pleinair.sampling import SamplingConfig
from pleinair.sampling.checkpoints import read_model
from pleinair.training.engine import EngineConfig, Phase, Run, train
from pleinair.training.hooks.divergence import Divergence, DivergenceConfig
from pleinair.training.hooks.progress import EachStep
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.records import StepRecord, read_records
from pleinair.training.stages.preference import FrozenCopy, Preference
from pleinair.training.stages.pretrain import Pretrain

GUIDANCE = 3.0
"""Of winners, and of the base where it is drawn with guidance."""
LEAST_CHANCE = 1e-4
"""Less than this a judge is not believed to tell apart."""


@dataclass(frozen=True, kw_only=True)
class PairPlan:
    """The pairs that all arms train on: others are other runs."""

    num_pairs: int = 640
    num_steps: int = 28
    """Euler steps of winners."""
    guidance: float = GUIDANCE
    fewer_steps: int = 2
    """Of losers by `steps`."""
    seed: int = 0

    @property
    def delta(self) -> DeltaConfig:
        """Guided winners of many steps; losers without guidance, of few steps, of half the prompt. Said, where few are sure."""
        return DeltaConfig(
            sampling=SamplingConfig(num_steps=self.num_steps, guidance=self.guidance, resolution=SIDE),
            fewer_steps=self.fewer_steps,
            when_unsure="say",
            ways=("guidance", "steps", "prompt"),
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What all runs share: with another constant they are other runs."""

    num_steps: int = 240
    every: int = 30
    """Steps between two snapshots."""
    batch_size: int = 16
    """Pairs of a step."""
    learning_rate: float = 3e-5
    budget: DivergenceConfig = field(default_factory=lambda: DivergenceConfig(drift=0.5, window=10))
    """Where a run ends itself."""
    threads: int = 1


@dataclass(frozen=True)
class Ground:
    """What all arms share."""

    shared: Shared
    """Base, packs, rewards."""
    source: Source
    """The base as it draws."""
    plan: PairPlan
    pairs: Pairs
    folder: Path
    """Of everything that stands on this base, these rewards and these pairs."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run that is over."""

    folder: Path
    steps: list[int]
    """Of its snapshots."""
    seconds: float
    """Of its steps."""
    stopped: bool
    """Whether it ended itself, its divergence budget spent."""

    def weights(self, step: int) -> Path:
        """A snapshot's file."""
        return snapshot(self.folder, step)


def ready(shared: Shared, runs: Path, plan: PairPlan) -> Ground:
    """The pairs, drawn or found."""
    source = Source(shared.sampler(), identity(read_manifest(shared.base)))
    folder = runs / f"stpo-{config_digest([shared.identity, plan.delta, plan.num_pairs])[:8]}"
    reward = ("the reward's judge", likelihood(shared.fitted["reward"]))
    draw_pairs(folder / "pairs", prompts_of(shared, 0, plan.num_pairs), source, plan, reward)
    return Ground(shared, source, plan, Pairs(folder / "pairs"), folder)


def prompts_of(shared: Shared, first: int, count: int) -> list[str]:
    """Some of the prompts that training may see, in their order; from the first one again where there are fewer."""
    prompts = [prompt for prompt, _, _ in shared.trained_prompts]
    order = np.random.default_rng(0).permutation(len(prompts))
    return [prompts[order[number % len(prompts)]] for number in range(first, first + count)]


def draw_pairs(folder: Path, prompts: Sequence[str], source: Source, plan: PairPlan, reward: Any = None) -> None:
    """Pairs of known order in a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    make_delta_pairs(folder, prompts, source, plan.delta, reward=reward, on_progress=ProgressLine(folder.name).update)


def likelihood(fitted: Fitted) -> Callable[[Sequence[str], Pixels], npt.NDArray[np.float32]]:
    """The log of a judge's chance that a picture shows all that its prompt requires: without ends, as a reward's mean has."""
    reward = RubricReward(fitted.judge.parser(), fitted.judge, RubricConfig(form="holistic"))

    def score(prompts: Sequence[str], pixels: Pixels) -> npt.NDArray[np.float32]:
        context = RewardContext(seeds=(0,) * len(pixels), groups=tuple(range(len(pixels))))
        chance = reward.score(prompts, pixels, context).values["rubric"]
        logs: npt.NDArray[np.float32] = np.log(np.maximum(chance, LEAST_CHANCE))
        return logs

    return score


def trained(arm: Arm, ground: Ground, plan: TrainPlan) -> Trained:
    """An arm's run, done or found."""
    told = [arm.name, arm.config, arm.seed, plan, ground.pairs.manifest.plan]
    digest = config_digest(told)
    folder = ground.folder / f"{arm.run}-{digest[:8]}"

    def made() -> dict[str, Any]:
        train_arm(arm, ground, plan, folder, digest)
        records = read_records(folder / "steps.jsonl")
        return {
            "steps": [step for step in range(1, len(records) + 1) if snapshot(folder, step).exists()],
            "seconds": sum(plan.batch_size / record.samples_per_second for record in records),
            "stopped": len(records) < plan.num_steps,
        }

    return Trained(folder=folder, **once(folder / "trained.json", made))


def train_arm(arm: Arm, ground: Ground, plan: TrainPlan, folder: Path, digest: str) -> None:
    """Train from the base to the end, or to where the budget is spent."""
    pretrain = pretrain_of(ground.shared)
    stage = Preference(pretrain, FrozenCopy(pretrain.model), arm.config, reference_identity=ground.source.identity)
    line = ProgressLine(arm.run)

    def show(record: StepRecord, total: int) -> None:
        line.update(record.step + 1, total, f"drift {record.metrics['drift']:.4f}")

    train(
        stage,
        [Phase("pairs", plan.num_steps, plan.batch_size, loader_of(arm, ground, plan))],
        engine_of(arm, plan),
        folder,
        config_digest=digest,
        hooks=[Snapshots(folder, plan.every), Divergence(plan.budget), EachStep(show)],
        on_message=lambda said: print(f"  {arm.run}: {said}", flush=True),
    )
    line.close()


def pretrain_of(shared: Shared) -> Pretrain:
    """The base's weights, once more, in the recipe's stage."""
    model, projection = read_model(shared.base)
    return Pretrain(model, projection, find_recipe(RECIPE).pretrain, shared.pack.manifest.latent_space)


def loader_of(arm: Arm, ground: Ground, plan: TrainPlan) -> Anchored:
    """The pairs with rows of the base's own pack beside them; orders by the arm's seed alone."""
    shuffled = PairLoaderConfig(batch_size=plan.batch_size, seed=arm.seed, shuffle_labels=arm.name == SHUFFLED)
    rows = LatentLoader(ground.shared.pack, SIDE, LoaderConfig(batch_size=plan.batch_size, seed=arm.seed))
    return Anchored(PairLoader(ground.pairs, shuffled, ground.source.identity), rows)


def engine_of(arm: Arm, plan: TrainPlan) -> EngineConfig:
    """The same loop for all. AdamW undoes the scale of a loss; clipping would not, so nothing is clipped."""
    optimiser = OptimiserConfig(learning_rate=plan.learning_rate, warmup_steps=10, decay_share=0.0, weight_decay=0.0)
    return EngineConfig(
        seed=arm.seed,
        precision="fp32",
        optimiser=optimiser,
        clip_norm=1e9,
        keep_checkpoints=1,
        num_threads=plan.threads,
    )


def snapshot(folder: Path, step: int) -> Path:
    """Where the weights after so many steps are."""
    return folder / f"weights-{step:05}.safetensors"


class Snapshots:
    """A hook that keeps the weights every few steps and at the last; a run that is gone on with writes the same again."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Write them when due; a file is whole or absent."""
        step = record.step + 1
        if step % self.every == 0 or step == run.total_steps:
            path = snapshot(self.folder, step)
            staging = path.with_suffix(".partial")
            save_file({name: value.contiguous() for name, value in run.stage.model.state_dict().items()}, staging)
            staging.replace(path)
        return {}
