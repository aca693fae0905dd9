"""One arm of an experiment on reinforcement learning: GRPO or DiffusionNFT from the base, watched by all who are not climbed.

base --rollouts, no guidance--> RewardMix --Grpo | Nft--> weights --every few iterations--> Probe: fixed prompts, fixed noise
                                                                                         |
gold judge, gold classifier, the shipped judge, diversity <------------------------------'
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from benchmarks.experiments.drawn import NUM_SHOWN, SIDE, Pixels, shown, spread
from benchmarks.experiments.ground import Ground
from benchmarks.experiments.results import once
from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import read_manifest
from pleinair.cli.places import shipped
from pleinair.cli.progress import ProgressLine
from pleinair.config import config_digest, to_document
from pleinair.evaluation.metrics import vendi_score
from pleinair.evaluation.picture_statistics import high_frequency_share, saturation
from pleinair.evaluation.prompted import Prompted, at_judges_size
from pleinair.model.judge import JudgeScores, judge_pictures, load_judge
from pleinair.pages import GridCell, GridRow, Html, Series, grid, line_plot, table
from pleinair.posttraining.distilling import student_of
from pleinair.records.rewards import RewardContext
from pleinair.rewards.combine import RewardMix
from pleinair.sampling import Sampler, SamplingConfig
from pleinair.training.engine import EngineConfig, Hook, Parent, Phase, Run, train
from pleinair.training.hooks.progress import EachStep
from pleinair.training.hooks.rewards import Earnings
from pleinair.training.mesh import Mesh
from pleinair.training.optimisers import OptimiserConfig
from pleinair.training.records import StepRecord, read_records
from pleinair.training.rollouts.drawing import DrawingConfig
from pleinair.training.rollouts.loader import RolloutBatch, RolloutConfig, Rollouts
from pleinair.training.rollouts.pool import PromptPool
from pleinair.training.stages.grpo import Grpo, GrpoConfig
from pleinair.training.stages.nft import Nft, NftConfig, OldPolicy

Row = dict[str, Any]
Flags = npt.NDArray[np.bool_]
PROBE = "probe/"
UNSOUND_BELOW = 0.5
"""P(sound) under which a picture counts as one with artefacts."""


@dataclass(frozen=True, kw_only=True)
class ClimbPlan:
    """How much is drawn and learned."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    num_iterations: int = 40
    num_groups: int = 8
    group_size: int = 8
    batch_size: int = 32
    drawing_steps: int = 8
    method: Literal["grpo", "nft"] = "grpo"
    """Policy gradients of a few stochastic steps, or DiffusionNFT, which learns from last pictures alone."""
    learning_rate: float = 1e-4
    clip: float | None = None
    kl_weight: float = 0.0
    probe_every: int = 8
    """Iterations between two probes."""
    num_probed: int = 80
    """Held-out prompts of a probe."""
    probe_each: int = 4
    """Pictures of each."""
    probe_steps: int = 16
    threads: int = 1


SMALL_CLIMB = ClimbPlan(
    seeds=(0, 1), num_iterations=2, num_groups=2, group_size=2, batch_size=2, drawing_steps=3, probe_every=1, num_probed=3,
    probe_each=2, probe_steps=2,
)  # fmt: skip


class Probe:
    """Pictures of fixed prompts from fixed noise, and what is said of them by those who are never climbed."""

    def __init__(self, ground: Ground, prompts: Sequence[Prompted], plan: ClimbPlan) -> None:
        """Some of `prompts`, evenly chosen."""
        places = np.linspace(0, len(prompts) - 1, min(plan.num_probed, len(prompts))).round().astype(int)
        self.ground, self.each, self.num_steps = ground, plan.probe_each, plan.probe_steps
        self.prompts = [prompts[place] for place in places for _ in range(self.each)]
        self.judge = load_judge(shipped("judge"))

    def draw(
        self, sampler: Sampler, guidance: float = 0.0, num_steps: int | None = None, rows: Sequence[int] | None = None
    ) -> Pixels:
        """One picture of every row, or of some: a row's noise is its own."""
        config = SamplingConfig(num_steps=num_steps or self.num_steps, guidance=guidance, resolution=SIDE)
        rows = range(len(self.prompts)) if rows is None else rows
        return sampler.sample([self.prompts[row][0] for row in rows], rows, config)

    @property
    def shown(self) -> range:
        """Rows whose pictures a page shows: the first of each of a few prompts."""
        return range(0, len(self.prompts), self.each)[:NUM_SHOWN]

    def values(self, pixels: Pixels) -> dict[str, float]:
        """Everything that is measured of pictures."""
        scores = judge_pictures(self.judge, at_judges_size(pixels))
        style, concept = self._named(scores)
        groups = scores.embedding.astype(np.float64).reshape(len(pixels) // self.each, self.each, -1)
        named = (style & concept).reshape(len(groups), self.each)
        unlike = [
            value for rows, right in zip(groups, named, strict=True) if (value := unlikeness(rows[right])) is not None
        ]
        return {
            "style": float(style.mean()),
            "concept": float(concept.mean()),
            "satisfied": float((style.mean() + concept.mean()) / 2),
            "diversity": float(np.mean([vendi_score(one) for one in groups])),
            "unlikeness": float(np.mean(unlike)) if unlike else 0.0,
            "fine_detail": float(high_frequency_share(pixels).mean()),
            "saturation": float(saturation(pixels).mean()),
            **{
                f"{name}_{key}": value for name in ("reward", "gold") for key, value in self._said(name, pixels).items()
            },
        }

    def by_prompt(self, pixels: Pixels) -> dict[str, list[float]]:
        """`satisfied` and `gold_rubric` of each prompt, the mean of its pictures."""
        style, concept = self._named(judge_pictures(self.judge, at_judges_size(pixels)))
        of_each = {"satisfied": (style + concept.astype(float)) / 2, "gold_rubric": self._rubric("gold", pixels)}
        return {name: told.reshape(-1, self.each).mean(1).tolist() for name, told in of_each.items()}

    def _named(self, scores: JudgeScores) -> tuple[Flags, Flags]:
        """Whose style, and whose thing, the judge names."""
        config = self.judge.config
        style = scores.style_logits.argmax(1) == [config.style_names.index(one) for _, one, _ in self.prompts]
        concept = scores.concept_logits.argmax(1) == [config.concept_names.index(one) for _, _, one in self.prompts]
        return style, concept

    def _rubric(self, name: str, pixels: Pixels) -> npt.NDArray[np.float32]:
        """What the rubric of one of the ground's members says of each picture."""
        context = RewardContext(seeds=(0,) * len(pixels), groups=tuple(range(len(pixels))))
        texts = [prompt for prompt, _, _ in self.prompts]
        return self.ground.fitted[name].rubric().score(texts, pixels, context).values["rubric"]

    def _said(self, name: str, pixels: Pixels) -> dict[str, float]:
        """The rubric's mean, the mean P(sound), and the share of pictures with artefacts, of one of the ground's members."""
        sound = self.ground.fitted[name].artefacts.sound(pixels)
        return {
            "rubric": float(self._rubric(name, pixels).mean()),
            "sound": float(sound.mean()),
            "artefacts": float((sound < UNSOUND_BELOW).mean()),
        }


def unlikeness(embedding_ND: npt.NDArray[np.float64]) -> float | None:
    """1 - cosine of every two pictures, their mean: whatever their number, the same in expectation; None for fewer than two."""
    if len(embedding_ND) < 2:
        return None
    unit = embedding_ND / np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    return float(1 - (unit @ unit.T)[~np.eye(len(unit), dtype=bool)].mean())


class Probing:
    """A hook that measures every few iterations."""

    def __init__(self, probe: Probe, sampler: Sampler, every: int) -> None:
        """`every` is in updates."""
        self.probe, self.sampler, self.every = probe, sampler, every

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """The values, when due."""
        if (record.step + 1) % self.every:
            return {}
        return {f"{PROBE}{name}": value for name, value in self.probe.values(self.probe.draw(self.sampler)).items()}


def climb(
    ground: Ground, start: Path, mix: RewardMix, told: Sequence[Any], plan: ClimbPlan, seed: int, directory: Path,
    probe: Probe | None = None, keep_every: int = 0, prompts: Sequence[str] | None = None,
) -> Path:  # fmt: skip
    """From a checkpoint by the plan's method; gives the last one. `told`: what `mix` is. `prompts`: all that training may see."""
    sampler, pretrain = ground.sampler(start), student_of(start)
    reference = copy.deepcopy(pretrain.model) if plan.kl_weight else None
    stage: Grpo | Nft
    if plan.method == "nft":
        stage = Nft(pretrain, NftConfig(kl_weight=plan.kl_weight), reference)
    else:
        stage = Grpo(pretrain, GrpoConfig(clip=plan.clip, kl_weight=plan.kl_weight), reference)
    sampler = replace(sampler, transformer=stage.model)
    drawn_by = replace(sampler, transformer=stage.old) if isinstance(stage, Nft) else sampler
    window = 0 if isinstance(stage, Nft) else 2
    drawing = DrawingConfig(num_steps=plan.drawing_steps, resolution=SIDE, window_size=window, precision="fp32")
    config = RolloutConfig(num_groups=plan.num_groups, group_size=plan.group_size, drawing=drawing, keep=4)
    prompts = list(dict.fromkeys(prompts or [prompt for prompt, _, _ in ground.trained_prompts]))
    loader = Rollouts(
        drawn_by, mix, PromptPool(prompts), config, directory / "rollouts", batch_size=plan.batch_size, seed=seed, mesh=Mesh()
    )  # fmt: skip
    every, line = loader.steps_per_iteration, ProgressLine(directory.name)
    hooks: list[Hook] = [OldPolicy(stage, every)] if isinstance(stage, Nft) else []
    hooks.append(Earnings(loader))
    if probe is not None:
        hooks.append(Probing(probe, sampler, plan.probe_every * every))
    hooks.append(
        EachStep(lambda record, total: line.update(record.step + 1, total, f"reward {record.metrics['reward']:.3f}"))
    )
    rule = OptimiserConfig(learning_rate=plan.learning_rate, warmup_steps=2, decay_share=0.0, weight_decay=0.0)
    phase: Phase[RolloutBatch] = Phase("rl", plan.num_iterations * every, plan.batch_size, loader)
    all_of_it = [ground.identity, identity(read_manifest(start)), *told, prompts, to_document(plan), seed]
    return train(
        stage, [phase],
        EngineConfig(
            seed=seed, precision="fp32", optimiser=rule, keep_checkpoints=1, keep_every=keep_every, num_threads=plan.threads
        ),
        directory, config_digest=config_digest(all_of_it), hooks=hooks,
        parent=Parent(checkpoint=start), on_message=lambda said: print(f"  {said}", flush=True),
    )  # fmt: skip


def climbed(
    ground: Ground, name: str, mix: RewardMix, told: Sequence[Any], plan: ClimbPlan, probe: Probe, seed: int, home: Path
) -> Row:
    """An arm with one seed, trained and measured or found: its curve from the base on, and a few of its last pictures."""

    def made() -> Row:
        base = once(home / "base.json", lambda: probe.values(probe.draw(ground.sampler())))
        directory = home / f"{name.replace(' ', '-')}-{seed}"
        last = climb(ground, ground.base, mix, told, plan, seed, directory, probe)
        records = read_records(directory / "steps.jsonl")
        points = [{"step": 0, **base}]
        for record in records:
            found = {k.removeprefix(PROBE): v for k, v in record.metrics.items() if k.startswith(PROBE)}
            points += [{"step": record.step + 1, **found}] if found else []
        pixels = probe.draw(ground.sampler(last), rows=probe.shown)
        seconds = sum(plan.batch_size / record.samples_per_second for record in records)
        return {
            "points": points,
            "checkpoint": str(last.relative_to(home)),
            "seconds": seconds,
            "pixels": pixels.tolist(),
        }

    return {"arm": name, "seed": seed, **once(home / f"{name.replace(' ', '-')}-{seed}.json", made)}


def last_of(rows: Sequence[Row], arm: str, key: str) -> list[float]:
    """What an arm ends with, by seed."""
    return [row["points"][-1][key] for row in rows if row["arm"] == arm]


def change_of(rows: Sequence[Row], arm: str, key: str) -> list[float]:
    """What an arm has gained since the base, by seed."""
    return [row["points"][-1][key] - row["points"][0][key] for row in rows if row["arm"] == arm]


def apart(rows: Sequence[Row], first: str, second: str, key: str) -> tuple[float, float]:
    """Mean difference of two arms at the end, seed by seed, and half of its 95% interval."""
    pairs = zip(last_of(rows, first, key), last_of(rows, second, key), strict=True)
    return spread([one - other for one, other in pairs])


def arms_table(rows: Sequence[Row], keys: Mapping[str, str]) -> Html:
    """Base and arms at their ends, means over seeds with intervals; `keys` says what each measure is called."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    base = rows[0]["points"][0]
    cells = [["base", *(f"{base[key]:.3f}" for key in keys), ""]]
    for arm in arms:
        minutes = sum(row["seconds"] for row in rows if row["arm"] == arm) / 60
        cells.append([arm, *(shown(last_of(rows, arm, key)) for key in keys), f"{minutes:.0f}"])
    return table(["arm", *keys.values(), "minutes of training, all seeds"], cells)


def curves(rows: Sequence[Row], key: str, says: str) -> Html:
    """A measure over the updates, the mean of each arm's seeds."""
    series = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        of = [row["points"] for row in rows if row["arm"] == arm]
        x = [float(point["step"]) for point in of[0]]
        series.append(Series(name=arm, x=x, y=np.mean([[p[key] for p in points] for points in of], axis=0).tolist()))
    return line_plot(series, x_label="update", y_label=says)


def last_pictures(rows: Sequence[Row], probe: Probe, base: Pixels) -> Html:
    """The same prompts and noise through the base and one run of each arm."""
    firsts = {row["arm"]: np.array(row["pixels"], np.uint8) for row in reversed(rows)}
    columns = {"base": base, **dict(reversed(firsts.items()))}
    texts = [probe.prompts[row][0] for row in probe.shown]
    listed = [
        GridRow(name=text, cells=[GridCell(picture=pixels[place], alt=text) for pixels in columns.values()])
        for place, text in enumerate(texts)
    ]
    return grid(list(columns), listed)
