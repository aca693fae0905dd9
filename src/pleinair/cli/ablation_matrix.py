"""The trainings of an ablation: which there are, how long each is, and running them side by side.

    switches --sides--> arms --x resolutions x seeds--> jobs --digest--> runs/DIGEST/{job.json, result.json}

Arms with equal settings are one arm, so all switches share the baseline. A job whose result is there is not done again, so a
matrix that was stopped goes on, and one with another switch trains only what is new.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pleinair.cli.ablation_run import JOB, Job, read_result, train_job
from pleinair.cluster.processes import end_with_parent
from pleinair.config import config_digest, override, to_document
from pleinair.evaluation.ablation import ArmCost, RunResult
from pleinair.recipes.ablations import AblationConfig, Side, Switch, overrides_of
from pleinair.recipes.recipe import Recipe
from pleinair.records.errors import PleinairError
from pleinair.training.hooks.validation import ValidationConfig
from pleinair.training.stages.repa import RepaConfig

BASELINE = "baseline"
SWEEP_SEED = 1000
"""A seed that no judged training has, so that choosing a rate does not favour a side."""
STILL_TRAINS = 1.1
_POLL_SECONDS = 0.5
Progress = Callable[[float, float, str], None]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train: the recipe with a side's overrides."""

    name: str
    recipe: Recipe
    repa: RepaConfig | None = None

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


def total_steps(job: Job) -> int:
    """Steps of all legs of a job."""
    steady = [before for before, _ in job.horizons().values()]
    return steady[-1] + sum(decay for _, decay in job.horizons().values())


def run_jobs(
    jobs: Sequence[Job], places: Places, weights: Mapping[str, float], num_processes: int, on_progress: Progress
) -> None:
    """Run the jobs that have no result, so many processes at a time; with 0, one after the other in this process.

    `weights` is the work of a job by its digest, for progress. On Ctrl-C the processes are ended, and what they did stays.
    Raises PleinairError when a job fails, after the others are done.
    """
    todo = [job for job in {job.digest: job for job in jobs}.values() if read_result(places.of(job)) is None]
    whole, finished = sum(weights[job.digest] for job in todo), 0.0
    if num_processes == 0:
        for job in todo:
            train_job(job, _written(job, places.of(job)))
            finished += weights[job.digest]
            on_progress(finished, whole, job.arm)
        return
    failed = _run_side_by_side(todo, places, weights, num_processes, on_progress)
    if failed:
        raise PleinairError(f"{len(failed)} trainings failed, the first in {failed[0]}: see {failed[0] / 'log.txt'}")


def _run_side_by_side(
    todo: list[Job], places: Places, weights: Mapping[str, float], num_processes: int, on_progress: Progress
) -> list[Path]:
    """Run jobs as processes; the directories of those that failed."""
    whole, running, failed = sum(weights[job.digest] for job in todo), dict[str, _Running](), list[Path]()
    finished = 0.0
    with _all_ended(running):
        while todo or running:
            while todo and len(running) < num_processes:
                job = todo.pop(0)
                running[job.digest] = _Running(job, places.of(job))
            time.sleep(_POLL_SECONDS)
            for digest, one in list(running.items()):
                if one.process.poll() is not None:
                    del running[digest]
                    finished += weights[digest]
                    if read_result(one.directory) is None:
                        failed.append(one.directory)
            done = finished + sum(weights[digest] * one.share_done() for digest, one in running.items())
            on_progress(done, whole, f"{len(todo) + len(running)} trainings left")
    return failed


def _written(job: Job, directory: Path) -> Path:
    """The job's directory, with its settings in it."""
    directory.mkdir(parents=True, exist_ok=True)
    staging = directory / f".{JOB}.partial"
    staging.write_text(json.dumps(to_document(job), indent=1) + "\n")
    os.replace(staging, directory / JOB)
    return directory


class _Running:
    """A training in a process of its own, one thread for what torch starts by itself."""

    def __init__(self, job: Job, directory: Path) -> None:
        self.job, self.directory = job, _written(job, directory)
        with (directory / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pleinair.cli.ablation_run", str(directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(job.engine.num_threads)},
                start_new_session=True,
                preexec_fn=end_with_parent(signal.SIGTERM),
            )

    def share_done(self) -> float:
        """Share of its steps that are done."""
        lines = sum(path.read_bytes().count(b"\n") for path in self.directory.glob("*/steps.jsonl"))
        return min(1.0, lines / total_steps(self.job))


@contextmanager
def _all_ended(running: Mapping[str, _Running]) -> Iterator[None]:
    """Whatever ends the block, no training goes on without it."""
    try:
        yield
    finally:
        for one in running.values():
            one.process.terminate()
        for one in running.values():
            one.process.wait()
