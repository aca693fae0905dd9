"""Which prompts get the rollouts: the prompt pool against uniform choice, with equally many of them.

    the shipped model, no guidance --8 pictures of each of the candidates--> 24 prompts whose rewards differ most
                                                                             24 whose rewards differ least
    arm x seed --GRPO over these 48--> mean reward of all 48, of new noise, before and after

The reward is the judge's probability of the thing and of the style that the prompt names, their mean. It is optimised here, so
what it says of the pictures is no measure of quality: the question is only how much of it the same rollouts gain. Both arms
start from the same weights, draw with seeds of their own, and are measured with the same noise, after every few iterations.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.krablet.rounds import commit, machine
from pleinair.captioning.templates import with_article
from pleinair.cli.places import shipped
from pleinair.cli.steps import open_text_encoder
from pleinair.model.judge import Judge, judge_pictures, load_judge
from pleinair.pages import Section, Series, element, line_plot, page, table, write_page
from pleinair.recipes.concepts import EVERYDAY
from pleinair.records.rewards import Assessment, Pictures, RewardContext
from pleinair.sampling import Sampler
from pleinair.sampling.shipped import load_autoencoder, load_model
from pleinair.training.engine import EngineConfig, Hook, Phase, Run, read_records, train
from pleinair.training.hooks.rewards import Earnings
from pleinair.training.mesh import Mesh
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.records import StepRecord
from pleinair.training.rollouts.drawing import DrawingConfig, PromptFeatures, draw_groups, pictures_of, seed_of
from pleinair.training.rollouts.loader import RolloutBatch, RolloutConfig, Rollouts
from pleinair.training.rollouts.pool import PoolConfig, PromptPool
from pleinair.training.stages.grpo import Grpo, GrpoConfig
from pleinair.training.stages.pretrain import Pretrain, PretrainConfig

SEEDS = (0, 1, 2, 3, 4)
ARMS = {"pool": PoolConfig(), "uniform": PoolConfig(by="uniform")}
STYLES = ("noto", "fluent-flat", "openmoji")
HALF = 24
NUM_ITERATIONS, MEASURED_EVERY = 16, 8
DRAWING = DrawingConfig(num_steps=6, resolution=64, window_size=2, precision="fp32")
ROLLOUT = RolloutConfig(num_groups=8, group_size=8, drawing=DRAWING)
BATCH_SIZE = 32
LEARNING_RATE = 1e-4
NUM_MEASURED = 8
"""Pictures of each prompt, both to sort the candidates and to measure an arm."""
DEVIATION_FLOOR = 0.02
"""Added to a group's deviation: a group of equal pictures must not teach its noise."""
Rewards = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Named:
    """The assessor: how sure the judge is of what the prompt names."""

    judge: Judge
    named: dict[str, tuple[int, int]]
    """Prompt -> style and concept, as the judge numbers them."""

    def rewards(self, prompts: Sequence[str], pictures: Pictures) -> Rewards:
        """Mean of the two probabilities."""
        scores = judge_pictures(self.judge, pictures)
        style, concept = (
            torch.from_numpy(logits).softmax(1).numpy() for logits in (scores.style_logits, scores.concept_logits)
        )
        rows, places = np.arange(len(prompts)), np.array([self.named[prompt] for prompt in prompts])
        mean: Rewards = (style[rows, places[:, 0]] + concept[rows, places[:, 1]]) / 2
        return mean

    def assess(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> Assessment:
        """Rewards less the group's mean, over its deviation and a floor."""
        reward = self.rewards(prompts, pictures)
        by_group = reward.reshape(max(context.groups) + 1, -1)
        deviation = by_group.std(axis=1, keepdims=True) + DEVIATION_FLOOR
        advantages = ((by_group - by_group.mean(axis=1, keepdims=True)) / deviation).reshape(-1)
        return Assessment(advantages=advantages, reward=reward, values={"judge": reward})


@dataclass(frozen=True)
class Parts:
    """The model as it is shipped, and who assesses it."""

    sampler: Sampler
    assessor: Named

    @cached_property
    def features(self) -> PromptFeatures:
        """Every prompt is encoded once, for all runs."""
        return PromptFeatures(self.sampler.text_encoder, self.sampler.projection)

    def fresh(self) -> Sampler:
        """The shipped weights again."""
        return Sampler(
            copy.deepcopy(self.sampler.transformer),
            self.sampler.codec,
            self.sampler.text_encoder,
            self.sampler.projection,
        )

    def measured(self, sampler: Sampler, prompts: Sequence[str], salt: str) -> Rewards:
        """(P, NUM_MEASURED) rewards of pictures drawn without guidance; `salt` chooses their noise."""
        seeds = [seed_of(0, 0, salt, prompt, member) for prompt in prompts for member in range(NUM_MEASURED)]
        drawn = draw_groups(sampler, self.features, prompts, seeds, DRAWING, DRAWING.window(0, 0))
        pictures = pictures_of(sampler, drawn.samples_BCHW, 64)
        of_each = [prompt for prompt in prompts for _ in range(NUM_MEASURED)]
        return self.assessor.rewards(of_each, pictures).reshape(len(prompts), NUM_MEASURED)


def run(runs: Path, home: Path | None, out: Path) -> Path:
    """Both arms with every seed, then the page; returns it. What is done is kept under `runs` and not done again."""
    parts = open_parts()
    chosen, sorted_by = chosen_prompts(parts)
    rows = [arm_row(parts, chosen, arm, seed, runs) for seed in SEEDS for arm in ARMS]
    out.mkdir(parents=True, exist_ok=True)
    document = {"rows": rows, "prompts": sorted_by, "commit": commit(), "machine": machine()}
    (out / "prompt_pool.json").write_text(json.dumps(document, indent=1) + "\n")
    write_page(out / "report.html", report(rows, sorted_by))
    return out / "report.html"


def open_parts() -> Parts:
    """The shipped model, autoencoder and judge."""
    transformer, projection, _ = load_model(shipped("drawings-64"))
    judge = load_judge(shipped("judge"))
    styles, concepts = judge.config.style_names, judge.config.concept_names
    named = {
        f"{with_article(label)}, {style} style": (styles.index(style), concepts.index(label.replace(" ", "-")))
        for label in EVERYDAY
        for style in STYLES
        if label.replace(" ", "-") in concepts
    }
    sampler = Sampler(transformer, load_autoencoder(shipped("autoencoder")), open_text_encoder(), projection)
    return Parts(sampler, Named(judge, named))


def chosen_prompts(parts: Parts) -> tuple[list[str], list[dict[str, Any]]]:
    """The candidates that differ most and least in what they earn, and what was measured of them."""
    candidates = list(parts.assessor.named)
    rewards = parts.measured(parts.sampler, candidates, "sorting")
    order = np.argsort(-rewards.std(axis=1), kind="stable")
    kept = [*order[:HALF], *order[-HALF:]]
    told = [
        {
            "prompt": candidates[place],
            "half": "open" if number < HALF else "decided",
            "mean": float(rewards[place].mean()),
            "deviation": float(rewards[place].std()),
        }
        for number, place in enumerate(kept)
    ]
    return [candidates[place] for place in kept], told


class Measuring:
    """A hook that measures the mean reward of all prompts every few iterations, with the same noise each time."""

    def __init__(self, parts: Parts, sampler: Sampler, prompts: Sequence[str], every: int) -> None:
        self.parts, self.sampler, self.prompts, self.every = parts, sampler, prompts, every

    def after_step(self, run: Run[Any], record: StepRecord) -> dict[str, float]:
        """The mean, when due."""
        if (record.step + 1) % self.every:
            return {}
        rewards = self.parts.measured(self.sampler, self.prompts, "measuring").mean(axis=1)
        return {
            "measured/all": float(rewards.mean()),
            "measured/open": float(rewards[:HALF].mean()),
            "measured/decided": float(rewards[HALF:].mean()),
        }


def arm_row(parts: Parts, prompts: Sequence[str], arm: str, seed: int, runs: Path) -> dict[str, Any]:
    """One run, or what was kept of it."""
    directory = runs / f"prompt-pool-{arm}-{seed}"
    kept = directory / "measured.json"
    if kept.exists():
        row: dict[str, Any] = json.loads(kept.read_text())
        return row
    before = float(parts.measured(parts.sampler, prompts, "measuring").mean())
    records = train_arm(parts, prompts, arm, seed, directory)
    points = [
        (record.step + 1, record.metrics["measured/all"]) for record in records if "measured/all" in record.metrics
    ]
    opened = [record.metrics["measured/open"] for record in records if "measured/open" in record.metrics]
    row = {
        "arm": arm,
        "seed": seed,
        "before": before,
        "after": points[-1][1],
        "open_after": opened[-1],
        "steps": [0, *(step for step, _ in points)],
        "rewards": [before, *(reward for _, reward in points)],
        "deviation": float(
            np.mean([r.metrics["rollout/deviation"] for r in records if "rollout/deviation" in r.metrics])
        ),
        "seconds": sum(BATCH_SIZE / record.samples_per_second for record in records),
    }
    kept.write_text(json.dumps(row))
    return row


def train_arm(parts: Parts, prompts: Sequence[str], arm: str, seed: int, directory: Path) -> list[StepRecord]:
    """GRPO from the shipped weights."""
    sampler = parts.fresh()
    stage = Grpo(Pretrain(sampler.transformer, sampler.projection, PretrainConfig()), GrpoConfig(clip=5e-3))
    loader = Rollouts(
        sampler, parts.assessor, PromptPool(prompts, ARMS[arm]), ROLLOUT, directory / "rollouts",
        batch_size=BATCH_SIZE, seed=seed, mesh=Mesh(),
    )  # fmt: skip
    steps = loader.steps_per_iteration
    optimiser = OptimiserConfig(learning_rate=LEARNING_RATE, warmup_steps=2, decay_share=0.0, weight_decay=0.0)
    config = EngineConfig(seed=seed, precision="fp32", optimiser=optimiser, keep_checkpoints=1)
    hooks: list[Hook] = [Earnings(loader), Measuring(parts, sampler, prompts, MEASURED_EVERY * steps)]
    phase: Phase[RolloutBatch] = Phase("rl", NUM_ITERATIONS * steps, BATCH_SIZE, loader)
    train(stage, [phase], config, directory, config_digest=f"{arm}-{seed}", hooks=hooks, on_message=lambda _: None)
    return read_records(directory / "steps.jsonl")


def gains(rows: Sequence[dict[str, Any]], arm: str) -> npt.NDArray[np.float64]:
    """Reward gained, by seed."""
    return np.array([row["after"] - row["before"] for row in rows if row["arm"] == arm])


def interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean and half its 95% interval over seeds (normal; wide for few)."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(values.mean()), float(half)


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """The comparison in a sentence."""
    pool, uniform = gains(rows, "pool"), gains(rows, "uniform")
    ratio = pool.mean() / uniform.mean()
    mean, half = interval(pool - uniform)
    pictures = NUM_ITERATIONS * ROLLOUT.num_pictures
    return (
        f"After {pictures} pictures the pool has gained {pool.mean():+.4f} and uniform choice {uniform.mean():+.4f} of mean "
        f"reward over all prompts, a ratio of {ratio:.2f}; the difference is {mean:+.4f} \u00b1 {half:.4f} over {len(pool)} seeds."
    )


def report(rows: Sequence[dict[str, Any]], prompts: Sequence[dict[str, Any]]) -> str:
    """The page."""
    opening = element(
        "div",
        element("p", (__doc__ or "").split("\n\n")[-1].replace("\n", " ")),
        element("p", verdict(rows)),
    )
    columns = ["arm", "seed", "before", "after", "gained", "open half after", "deviation inside its groups", "minutes"]
    cells = [
        [
            row["arm"], str(row["seed"]), f"{row['before']:.4f}", f"{row['after']:.4f}",
            f"{row['after'] - row['before']:+.4f}", f"{row['open_after']:.4f}", f"{row['deviation']:.4f}",
            f"{row['seconds'] / 60:.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    series = [Series(name=f"{row['arm']}, seed {row['seed']}", x=row["steps"], y=row["rewards"]) for row in rows]
    listed = [[row["prompt"], row["half"], f"{row['mean']:.3f}", f"{row['deviation']:.3f}"] for row in prompts]
    sections = [
        Section(heading="Numbers", body=table(columns, cells)),
        Section(heading="Mean reward", body=line_plot(series, x_label="update", y_label="mean reward, all prompts")),
        Section(heading="Prompts", body=table(["prompt", "half", "mean reward", "deviation"], listed)),
    ]
    footer = f"make experiment-prompt_pool, commit {commit()}, {machine()}. Seeds {SEEDS}; float32, no guidance."
    return page("The prompt pool against uniform choice", opening, sections, footer=footer)
