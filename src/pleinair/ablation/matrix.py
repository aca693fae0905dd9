"""The trainings of an ablation: which there are, and how long each is.

    switches --sides--> arms --x resolutions x seeds--> jobs --digest--> runs/DIGEST/{job.json, result.json}

Arms with equal settings are one arm, so all switches share the baseline. A job whose result is there is not done again, so a
matrix that was stopped goes on, and one with another switch trains only what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pleinair.ablation.results import ArmCost, RunResult
from pleinair.ablation.switches import Side, Switch, overrides_of
from pleinair.ablation.trainings import Job, read_result
from pleinair.config import config_digest, override
from pleinair.recipes.recipe import Recipe
from pleinair.records.errors import ConfigError
from pleinair.training.hooks.validation import ValidationConfig
from pleinair.training.stages.repa import RepaConfig

BASELINE = "baseline"
SWEEP_SEED = 1000
"""A seed that no judged training has, so that choosing a rate does not favour a side."""
STILL_TRAINS = 1.1


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """How much is trained, and how it is judged."""

    seeds: int = 3
    """Trainings of each arm at each resolution; equal seeds share data order, noise and timesteps."""
    short: int = 400
    """Steps of the short horizon, its decay included."""
    long: int = 1200
    """Steps of the long horizon, its decay included."""
    decay_share: float = 0.25
    """Share of a horizon over which the learning rate decays."""
    equal: Literal["flops", "steps"] = "flops"
    """What both sides get the same of: a side whose step costs more does fewer, or as many."""
    repa_share: float = 0.5
    """Share of the short horizon that iREPA is on."""
    merge_last: int = 5
    """Checkpoints that PMA averages."""
    merge_every: int = 20
    """Steps between them."""
    ema_decay: float = 0.98
    """Decay of the moving average: about as long a memory as PMA's checkpoints span."""
    unseen_share: float = 0.1
    """Share of the pack's (concept, style) pairs that no arm trains on."""
    validation_batches: int = 6
    """Batches of unseen pairs that a model is judged on, each at every timestep of the grid."""
    rate_multiples: tuple[float, ...] = (1.0, 4.0, 16.0)
    """Multiples of each arm's learning rate that it is tried at, at the lowest resolution and short horizon; may be empty."""
    cost_rounds: int = 12
    """Rounds in which the cost of a step is measured, all arms in each."""
    margin: float = 0.01
    """Relative difference that counts as none."""

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ConfigError(f"seeds is {self.seeds}: an interval needs at least 2, give 3 or more")
        if not 8 <= self.short < self.long:
            raise ConfigError(f"short is {self.short} and long {self.long}: give two horizons, the short one first")
        if self.repa_share > 0.8 * (1 - self.decay_share):
            raise ConfigError(
                f"repa_share is {self.repa_share} and decay_share {self.decay_share}: iREPA must end well before the decay, "
                f"give at most {0.8 * (1 - self.decay_share):.2f}"
            )
        if self.rate_multiples and (
            self.rate_multiples[0] != 1 or list(self.rate_multiples) != sorted(self.rate_multiples)
        ):
            raise ConfigError(
                f"rate_multiples is {self.rate_multiples}: begin with 1, which the others are compared with, and rise"
            )
        if self.cost_rounds < 2:
            raise ConfigError(f"cost_rounds is {self.cost_rounds}: an interval needs at least 2")
        for name in ("decay_share", "repa_share", "unseen_share", "margin", "ema_decay"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it is a share, give one between 0 and 1")
        if self.merge_last < 2 or self.merge_last * self.merge_every > self.short * (1 - self.decay_share):
            raise ConfigError(
                f"merge_last is {self.merge_last} and merge_every {self.merge_every}: give at least 2 checkpoints that fit "
                f"into the {self.short * (1 - self.decay_share):.0f} steady steps of the short horizon"
            )


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train: the recipe with a side's overrides."""

    name: str
    recipe: Recipe
    repa: RepaConfig | None = None

    def __post_init__(self) -> None:
        if self.recipe.pack_text or self.recipe.engine.precision == "fp8":
            raise ConfigError(
                f"the arm {self.name} has pack_text {self.recipe.pack_text} and engine.precision "
                f"{self.recipe.engine.precision}: the bench trains on padded text in bf16 or fp32, set those"
            )

    @property
    def key(self) -> str:
        """Equal for arms with equal settings."""
        return config_digest([self.recipe.training_part(), self.repa])

    @property
    def cost_key(self) -> str:
        """Equal for arms whose steps cost the same: all but the learning rate."""
        recipe = override(self.recipe, ["engine.optimiser.learning_rate=1.0"])
        return config_digest([recipe.training_part(), self.repa])


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where an ablation's files are."""

    directory: Path
    """Of the whole bench."""
    trained: Path
    """Pack of the pairs that are trained on."""
    unseen: Path
    """Pack of the pairs that are judged on."""
    patches: Path
    """Patch features of the trained pictures, where iREPA is compared."""

    def of(self, job: Job) -> Path:
        """The directory of a training."""
        return self.directory / "runs" / job.digest[:16]


@dataclass(frozen=True)
class Matrix:
    """All that is compared. `costs` are by cost key and resolution; `rates` by the key of an arm whose rate is swept."""

    recipe: Recipe
    config: AblationConfig
    places: Places
    switches: Sequence[Switch]
    costs: dict[tuple[str, int], ArmCost] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def baseline(self) -> Arm:
        """The recipe as it is."""
        return Arm(name=BASELINE, recipe=self.recipe)

    @property
    def resolutions(self) -> list[int]:
        """Ascending."""
        return sorted(set(self.recipe.resolutions))

    def arm(self, switch: Switch, side: Side, rate: float | None = None) -> Arm:
        """The arm of a side; with a rate, or the one that was chosen for it, where it has rates to choose from."""
        recipe = override(self.recipe, overrides_of(side, self.recipe))
        arm = Arm(name=f"{switch.name}: {side.name}", recipe=recipe, repa=side.repa)
        chosen = self.rates.get(arm.key) if rate is None and side.rates else rate
        if chosen is not None:
            recipe = override(recipe, [f"engine.optimiser.learning_rate={chosen!r}"])
        arm = replace(arm, recipe=recipe)
        return self.baseline if arm.key == self.baseline.key else arm

    def sides(self) -> list[tuple[Switch, Side]]:
        """All sides that are trained."""
        return [(switch, side) for switch in self.switches if switch.trains for side in (switch.first, switch.second)]

    def arms(self) -> list[Arm]:
        """Distinct arms, the baseline first, with the rates chosen so far."""
        arms = {self.baseline.key: self.baseline}
        for switch, side in self.sides():
            arm = self.arm(switch, side)
            arms.setdefault(arm.key, arm)
        return list(arms.values())

    def cost(self, arm: Arm, resolution: int) -> ArmCost:
        """What a step of an arm costs."""
        return self.costs[arm.cost_key, resolution]

    def steps(self, arm: Arm, resolution: int, horizon: int) -> int:
        """Steps that cost an arm what `horizon` steps cost the baseline, or as many."""
        if self.config.equal == "steps":
            return horizon
        base, own = (self.cost(one, resolution) for one in (self.baseline, arm))
        extra = own.extra_flops_per_step * min(self.repa_steps, horizon)
        return round((horizon * base.flops_per_step - extra) / own.flops_per_step)

    @property
    def repa_steps(self) -> int:
        """Steps that iREPA is on."""
        return round(self.config.short * self.config.repa_share)

    def job(self, arm: Arm, resolution: int, seed: int, short: int, long: int | None) -> Job:
        """A training of an arm to these horizons, in its own steps."""
        recipe, config = arm.recipe, self.config
        averaged = arm.key == self.baseline.key and long is not None
        return Job(
            arm=arm.name,
            resolution=resolution,
            seed=seed,
            transformer=recipe.transformer,
            engine=recipe.engine,
            pretrain=recipe.pretrain,
            loader=recipe.loader,
            batch_size=next(phase.batch_size for phase in recipe.phases if phase.resolution == resolution),
            short=short,
            long=long,
            decay_share=config.decay_share,
            repa=arm.repa,
            repa_steps=self.repa_steps if arm.repa is not None else 0,
            validation=ValidationConfig(num_batches=config.validation_batches),
            merge_last=config.merge_last if averaged else 0,
            merge_every=config.merge_every if averaged else 1,
            ema_decay=config.ema_decay if averaged else 0.5,
            trained=self.places.trained,
            unseen=self.places.unseen,
            patches=self.places.patches if arm.repa is not None else None,
        )

    def judged(self, arm: Arm, resolution: int, seed: int) -> Job:
        """A training that verdicts rest on."""
        short, long = (self.steps(arm, resolution, horizon) for horizon in (self.config.short, self.config.long))
        return self.job(arm, resolution, seed, short, long)

    def jobs(self) -> list[Job]:
        """All trainings that verdicts rest on: seed by seed, so that an unfinished matrix has whole pairs."""
        return [
            self.judged(arm, resolution, seed)
            for seed in range(self.config.seeds)
            for resolution in self.resolutions
            for arm in self.arms()
        ]

    def sweep(self, switch: Switch, side: Side) -> dict[float, Job]:
        """The trainings that choose a side's learning rate: lowest resolution, short horizon, a seed of their own."""
        arms = {rate: self.arm(switch, side, rate) for rate in side.rates}
        return {
            rate: self.job(arm, self.resolutions[0], SWEEP_SEED, self.config.short, None) for rate, arm in arms.items()
        }

    def probe(self, arm: Arm) -> dict[float, Job]:
        """The trainings that tell how large a learning rate an arm bears, as multiples of its own."""
        return {
            multiple: self.job(_faster(arm, multiple), self.resolutions[0], SWEEP_SEED, self.config.short, None)
            for multiple in self.config.rate_multiples
        }

    def largest_multiple(self, arm: Arm) -> float | None:
        """The largest multiple of its learning rate at which an arm still trains; None while that is not known.

        It trains where its error is finite and no more than `STILL_TRAINS` times that at its own rate.
        """
        results = {multiple: self.result(job) for multiple, job in self.probe(arm).items()}
        losses = {multiple: short_loss(result) for multiple, result in results.items() if result is not None}
        if not losses or len(losses) < len(results):
            return None
        return max(multiple for multiple, loss in losses.items() if loss <= STILL_TRAINS * losses[1.0] or multiple == 1)

    def with_rates(self) -> Matrix:
        """The matrix with the best rate of every side whose sweep is done."""
        rates = dict(self.rates)
        for switch, side in self.sides():
            results = {rate: self.result(job) for rate, job in self.sweep(switch, side).items()}
            losses = {rate: short_loss(result) for rate, result in results.items() if result is not None}
            if losses and len(losses) == len(side.rates):
                plain = Arm(name="", recipe=override(self.recipe, overrides_of(side, self.recipe)), repa=side.repa)
                rates[plain.key] = min(losses, key=lambda rate: losses[rate])
        return replace(self, rates=rates)

    def result(self, job: Job) -> RunResult | None:
        """What a training gave, or None while it is not done."""
        return read_result(self.places.of(job))

    def results(self, arm: Arm) -> list[RunResult]:
        """All that is done of an arm's trainings."""
        jobs = (
            self.judged(arm, resolution, seed) for resolution in self.resolutions for seed in range(self.config.seeds)
        )
        return [result for job in jobs if (result := self.result(job)) is not None]


def _faster(arm: Arm, multiple: float) -> Arm:
    rate = arm.recipe.engine.optimiser.learning_rate * multiple
    return replace(arm, recipe=override(arm.recipe, [f"engine.optimiser.learning_rate={rate!r}"]))


def short_loss(result: RunResult) -> float:
    """The error at the short horizon; infinite for a training that diverged."""
    return float("inf") if result.diverged else result.validation["short"]["loss"]
