"""Which prompts get the rollouts: the prompt pool against uniform choice, with equally many of them.

    the base, no guidance --8 pictures of each prompt that training may see--> 24 prompts whose rewards differ most
                                                                               24 whose rewards differ least
    arm x seed --GRPO over these 48--> mean reward of all 48, of new noise, before and after

The reward is the rubric of a judge that was fitted to be climbed. What it says of the pictures is no measure of quality: the
question is only how much of it the same rollouts gain; gold, of another judge, is told beside it. Both arms start from the
same weights, draw with seeds of their own, and are measured with the same noise, after every few iterations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.experiments.drawn import NUM_SHOWN, SIDE, spread
from benchmarks.experiments.ground import Ground, stand
from benchmarks.experiments.paired import said_of
from benchmarks.experiments.results import footer, named, once, opening, publish, without_pixels
from pleinair.config import config_digest, to_document
from pleinair.pages import GridCell, GridRow, Html, Section, Series, grid, line_plot, page, table
from pleinair.posttraining.distilling import student_of
from pleinair.records.rewards import Pictures, RewardContext
from pleinair.rewards.combine import MixConfig, RewardMix
from pleinair.rewards.rubric import RubricConfig, RubricReward
from pleinair.sampling import Sampler
from pleinair.training.engine import EngineConfig, Hook, Parent, Phase, Run, train
from pleinair.training.hooks.rewards import Earnings
from pleinair.training.mesh import Mesh
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.records import StepRecord, read_records
from pleinair.training.rollouts.drawing import DrawingConfig, PromptFeatures, draw_groups, pictures_of, seed_of
from pleinair.training.rollouts.loader import RolloutBatch, RolloutConfig, Rollouts
from pleinair.training.rollouts.pool import PoolConfig, PromptPool
from pleinair.training.stages.grpo import Grpo, GrpoConfig

ARMS = {"pool": PoolConfig(reward_range=(0.0, 1.0)), "uniform": PoolConfig(by="uniform")}
AIM = 1.3
"""Times the reward that uniform choice gains, by the same rollouts."""
Rewards = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is drawn and learned."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    half: int = 24
    """Prompts of either kind."""
    num_iterations: int = 64
    measured_every: int = 8
    """Iterations."""
    rollout: RolloutConfig = field(
        default_factory=lambda: RolloutConfig(
            num_groups=8,
            group_size=8,
            keep=4,
            drawing=DrawingConfig(num_steps=6, resolution=SIDE, window_size=2, precision="fp32"),
        )
    )
    batch_size: int = 32
    learning_rate: float = 1e-4
    num_measured: int = 8
    """Pictures of each prompt, both to sort the candidates and to measure an arm."""
    num_candidates: int = 400
    """At most."""
    threads: int = 1


FULL = Plan()
SMALL = Plan(
    seeds=(0, 1), half=2, num_iterations=2, measured_every=1, batch_size=2, num_measured=2, num_candidates=6,
    rollout=RolloutConfig(
        num_groups=2, group_size=2, drawing=DrawingConfig(num_steps=3, resolution=SIDE, window_size=1, precision="fp32")
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Parts:
    """What all runs share."""

    ground: Ground
    plan: Plan
    home: Path

    @cached_property
    def features(self) -> PromptFeatures:
        """Every prompt is encoded once, for all runs."""
        base = self.ground.sampler()
        return PromptFeatures(base.text_encoder, base.projection)

    def reward(self, member: str) -> RubricReward:
        """The rubric of one of the ground's judges, without a gate: the pool is to see what the judge says, not its floor."""
        judge = self.ground.fitted[member].judge
        return RubricReward(judge.parser(), judge, RubricConfig(essential_above=0))

    def measured(self, sampler: Sampler, prompts: Sequence[str], salt: str, member: str = "reward") -> Rewards:
        """(P, num_measured) rewards of pictures drawn without guidance; `salt` chooses their noise."""
        each = self.plan.num_measured
        pictures = self.drawn(sampler, prompts, salt, each)
        of_each = [prompt for prompt in prompts for _ in range(each)]
        return self.said(of_each, pictures, member).reshape(len(prompts), each)

    def drawn(self, sampler: Sampler, prompts: Sequence[str], salt: str, each: int) -> Pictures:
        """Pictures of each prompt, drawn as rollouts are."""
        drawing = self.plan.rollout.drawing
        seeds = [seed_of(0, 0, salt, prompt, number) for prompt in prompts for number in range(each)]
        drawn = draw_groups(sampler, self.features, prompts, seeds, drawing, drawing.window(0, 0))
        return pictures_of(sampler, drawn.samples_BCHW, 64)

    def few(self, checkpoint: Path, prompts: Sequence[str]) -> list[Any]:
        """One picture of some of the prompts, of both halves, for the page."""
        shown = some_of(prompts)
        return np.asarray(self.drawn(self.ground.sampler(checkpoint), shown, "measuring", 1)).tolist()  # type: ignore[no-any-return]

    def said(self, prompts: Sequence[str], pictures: Pictures, member: str) -> Rewards:
        """What a judge's rubric says of each picture."""
        context = RewardContext(seeds=(0,) * len(pictures), groups=tuple(range(len(pictures))))
        return self.reward(member).score(prompts, pictures, context).values["rubric"]


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """Both arms with every seed, then the page; returns it. What is done is kept under `runs` and not done again."""
    plan, ground = SMALL if small else FULL, stand(runs, base, small)
    parts = Parts(
        ground,
        plan,
        runs / f"prompt-pool-{config_digest([ground.identity, to_document(plan), to_document(ARMS)])[:12]}",
    )
    sorted_by: list[dict[str, Any]] = once(parts.home / "prompts.json", lambda: chosen_prompts(parts))
    chosen = [one["prompt"] for one in sorted_by]
    rows = [arm_row(parts, chosen, arm, seed) for seed in plan.seeds for arm in ARMS]
    document = {"rows": without_pixels(rows), "prompts": sorted_by, "plan": asdict(plan)}
    return publish(out, "prompt_pool", document, report(rows, sorted_by, parts))


def some_of(prompts: Sequence[str]) -> list[str]:
    """Evenly chosen ones."""
    return [
        prompts[place] for place in np.linspace(0, len(prompts) - 1, min(NUM_SHOWN, len(prompts))).round().astype(int)
    ]


def chosen_prompts(parts: Parts) -> list[dict[str, Any]]:
    """The candidates that differ most and least in what they earn, and what was measured of them."""
    half, known = parts.plan.half, parts.ground.trained_prompts
    places = np.linspace(0, len(known) - 1, min(parts.plan.num_candidates, len(known))).round().astype(int)
    candidates = [known[place][0] for place in places]
    rewards = parts.measured(parts.ground.sampler(), candidates, "sorting")
    order = np.argsort(-rewards.std(axis=1), kind="stable")
    return [
        {
            "prompt": candidates[place],
            "half": "open" if number < half else "decided",
            "mean": float(rewards[place].mean()),
            "deviation": float(rewards[place].std()),
        }
        for number, place in enumerate([*order[:half], *order[-half:]])
    ]


class Measuring:
    """A hook that measures the mean reward of all prompts every few iterations, with the same noise each time."""

    def __init__(self, parts: Parts, sampler: Sampler, prompts: Sequence[str], every: int) -> None:
        self.parts, self.sampler, self.prompts, self.every = parts, sampler, prompts, every

    def after_step(self, run: Run[Any], record: StepRecord) -> dict[str, float]:
        """The means, when due."""
        if (record.step + 1) % self.every:
            return {}
        half = self.parts.plan.half
        rewards = self.parts.measured(self.sampler, self.prompts, "measuring").mean(axis=1)
        return {
            "measured/all": float(rewards.mean()),
            "measured/open": float(rewards[:half].mean()),
            "measured/decided": float(rewards[half:].mean()),
        }


def arm_row(parts: Parts, prompts: Sequence[str], arm: str, seed: int) -> dict[str, Any]:
    """One run, or what was kept of it."""

    def before(member: str) -> float:
        return float(parts.measured(parts.ground.sampler(), prompts, "measuring", member).mean())

    def made() -> dict[str, Any]:
        directory = parts.home / f"{arm}-{seed}"
        first = once(parts.home / "base.json", lambda: {member: before(member) for member in parts.ground.fitted})
        last = train_arm(parts, prompts, arm, seed, directory)
        records = read_records(directory / "steps.jsonl")
        points = [record for record in records if "measured/all" in record.metrics]
        deviations = [r.metrics["rollout/deviation"] for r in records if "rollout/deviation" in r.metrics]
        gold = parts.measured(parts.ground.sampler(last), prompts, "measuring", "gold")
        return {
            "before": first["reward"],
            "after": points[-1].metrics["measured/all"],
            "open_after": points[-1].metrics["measured/open"],
            "gold_gained": float(gold.mean()) - first["gold"],
            "steps": [0, *(record.step + 1 for record in points)],
            "rewards": [first["reward"], *(record.metrics["measured/all"] for record in points)],
            "deviation": float(np.mean(deviations)),
            "pixels": parts.few(last, prompts),
            "seconds": sum(parts.plan.batch_size / record.samples_per_second for record in records),
        }

    return {"arm": arm, "seed": seed, **once(parts.home / f"{arm}-{seed}.json", made)}


def train_arm(parts: Parts, prompts: Sequence[str], arm: str, seed: int, directory: Path) -> Path:
    """GRPO from the base; gives the last checkpoint."""
    plan, ground = parts.plan, parts.ground
    base, stage = ground.sampler(), Grpo(student_of(ground.base), GrpoConfig())
    sampler = Sampler(stage.model, base.codec, base.text_encoder, base.projection)
    mix = RewardMix([parts.reward("reward")], MixConfig(weights={"rubric": 1.0}))
    loader = Rollouts(
        sampler, mix, PromptPool(prompts, ARMS[arm]), plan.rollout, directory / "rollouts", batch_size=plan.batch_size,
        seed=seed, mesh=Mesh(),
    )  # fmt: skip
    steps = loader.steps_per_iteration
    optimiser = OptimiserConfig(learning_rate=plan.learning_rate, warmup_steps=2, decay_share=0.0, weight_decay=0.0)
    config = EngineConfig(
        seed=seed, precision="fp32", optimiser=optimiser, keep_checkpoints=1, num_threads=plan.threads
    )
    hooks: list[Hook] = [Earnings(loader), Measuring(parts, sampler, prompts, plan.measured_every * steps)]
    phase: Phase[RolloutBatch] = Phase("rl", plan.num_iterations * steps, plan.batch_size, loader)
    return train(
        stage, [phase], config, directory, config_digest=config_digest([parts.home.name, arm, seed]), hooks=hooks,
        parent=Parent(checkpoint=ground.base), on_message=lambda _: None,
    )  # fmt: skip


def gains(rows: Sequence[dict[str, Any]], arm: str) -> npt.NDArray[np.float64]:
    """Reward gained by each seed, the mean over all its measurements: what the same rollouts gain, at whatever point they end."""
    return np.array([np.mean(row["rewards"][1:]) - row["before"] for row in rows if row["arm"] == arm])


def ratio_interval(pool: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The 95% interval of the ratio of both means, by Fieller over pairs of seeds: where it holds for r, pool - r uniform is 0."""
    tried = np.linspace(0, 5, 2001)
    held = [r for r in tried if abs((found := spread((pool - r * uniform).tolist()))[0]) <= found[1]]
    return (float(min(held)), float(max(held))) if held else (math.nan, math.nan)


def verdict(rows: Sequence[dict[str, Any]], num_pictures: int) -> str:
    """The comparison in a sentence."""
    pool, uniform = gains(rows, "pool"), gains(rows, "uniform")
    mean, half = spread((pool - uniform).tolist())
    told = (
        f"Over {num_pictures} pictures the pool gains {pool.mean():+.4f} and uniform choice {uniform.mean():+.4f} of mean "
        f"reward over all prompts, the mean over the run; the difference is {mean:+.4f} \u00b1 {half:.4f} over {len(pool)} seeds."
    )
    if not spread(uniform.tolist())[0] - spread(uniform.tolist())[1] > 0:
        return f"{told} Uniform choice gained nothing for sure: there is no ratio."
    low, high = ratio_interval(pool, uniform)
    said = said_of([(low, high)], AIM)
    return f"{told} A ratio of {pool.mean() / uniform.mean():.2f} [{low:.2f}, {high:.2f}]; to reach: {AIM}, {said}."


def pictures(rows: Sequence[dict[str, Any]], prompts: Sequence[dict[str, Any]], parts: Parts) -> Html:
    """The base and the first seed's run of each arm."""
    texts = [one["prompt"] for one in prompts]
    columns = {"base": parts.few(parts.ground.base, texts)}
    columns |= {row["arm"]: row["pixels"] for row in rows if row["seed"] == parts.plan.seeds[0]}
    listed = [
        GridRow(name=text, cells=[GridCell(picture=np.array(of[place], np.uint8), alt=text) for of in columns.values()])
        for place, text in enumerate(some_of(texts))
    ]
    return grid(list(columns), listed)


def report(rows: Sequence[dict[str, Any]], prompts: Sequence[dict[str, Any]], parts: Parts) -> str:
    """The page."""
    plan = parts.plan
    told = verdict(rows, plan.num_iterations * plan.rollout.num_pictures)
    columns = [
        "arm",
        "seed",
        "before",
        "after",
        "gained",
        "gold gained",
        "open half after",
        "deviation in groups",
        "minutes",
    ]
    cells = [
        [
            row["arm"], str(row["seed"]), f"{row['before']:.4f}", f"{row['after']:.4f}",
            f"{row['after'] - row['before']:+.4f}", f"{row['gold_gained']:+.4f}", f"{row['open_after']:.4f}",
            f"{row['deviation']:.4f}", f"{row['seconds'] / 60:.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    series = [Series(name=f"{row['arm']}, seed {row['seed']}", x=row["steps"], y=row["rewards"]) for row in rows]
    listed = [[row["prompt"], row["half"], f"{row['mean']:.3f}", f"{row['deviation']:.3f}"] for row in prompts]
    sections = [
        Section(heading="Numbers", body=table(columns, cells)),
        Section(heading="Mean reward", body=line_plot(series, x_label="update", y_label="mean reward, all prompts")),
        Section(heading="The same prompts and noise", body=pictures(rows, prompts, parts)),
        Section(heading="Prompts", body=table(["prompt", "half", "mean reward", "deviation"], listed)),
        Section(heading="The rewards", body=parts.ground.facts()),
    ]
    return page(
        "The prompt pool against uniform choice",
        opening(__doc__, [told]),
        sections,
        footer=footer(parts.ground.runs, "prompt_pool", f"Seeds {plan.seeds}; base {named(parts.ground.base)}"),
    )
