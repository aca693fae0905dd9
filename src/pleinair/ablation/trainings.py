"""One training of an ablation: an arm at one resolution with one seed, to two horizons.

    steady-short --+-- decayed-short -> validation at the short horizon
                   +-- steady-long --- decayed-long -> validation at the long horizon

The learning rate is constant where it is steady, so the short horizon is a branch of the long one and costs only its decay.
Every leg is a run of the engine in a directory of its own: killed anywhere, the same job goes on. Run as a process
(`python -m pleinair.ablation.trainings DIRECTORY`), it reads `job.json` and leaves `result.json`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pleinair.ablation.results import HORIZONS, RunResult
from pleinair.checkpoint.merge import merge_checkpoints
from pleinair.checkpoint.store import list_checkpoints, read_manifest, read_tensors
from pleinair.cluster.locks import only_one
from pleinair.config import config_digest, from_document, to_document
from pleinair.garbage import look_seldom
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pack import Pack, read_pack_manifest
from pleinair.packs.plan import LoaderConfig
from pleinair.records.errors import PleinairError
from pleinair.sampling.projection import read_projection
from pleinair.training.averaging import MovingAverage
from pleinair.training.engine import EngineConfig, Parent, Phase, Run, StepRecord, read_records, train
from pleinair.training.hooks.spikes import SpikeConfig, Spikes
from pleinair.training.hooks.validation import ValidationConfig, validation_losses
from pleinair.training.mesh import Mesh
from pleinair.training.patch_features import PatchFeatures, WithPatches
from pleinair.training.stages.pretrain import Pretrain, PretrainConfig
from pleinair.training.stages.repa import Repa, RepaConfig

JOB, RESULT = "job.json", "result.json"
VALIDATION_BATCH = 64
VALIDATION_SEED = 7
CPU_SECONDS = "cpu/seconds"
SEEDS_PER_JOB = 10
"""Legs of a job have seeds of their own for noise and timesteps, as each begins at step 0."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that one training depends on."""

    arm: str
    """Its name, for people."""
    resolution: int
    """Pixels."""
    seed: int
    """Of weights, data order, noise and timesteps."""
    transformer: TransformerConfig
    """The model."""
    engine: EngineConfig
    """The loop; its seed and its decay are set by the leg."""
    pretrain: PretrainConfig
    """Timesteps."""
    loader: LoaderConfig
    """Captions; its seed is the job's."""
    batch_size: int
    """Pictures per step."""
    short: int
    """Steps to the short horizon, its decay included."""
    long: int | None
    """Steps to the long horizon; None for the short one alone."""
    decay_share: float
    """Share of a horizon that is decay."""
    repa: RepaConfig | None = None
    """iREPA in the first steps."""
    repa_steps: int = 0
    """How many."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """The grid of timesteps, and batches of unseen pairs."""
    merge_last: int = 0
    """Checkpoints of each steady leg that are averaged; 0 compares no averages."""
    merge_every: int = 20
    """Steps between them."""
    ema_decay: float = 0.98
    """Decay of the moving average beside them."""
    trained: Path
    """Pack that is trained on."""
    unseen: Path
    """Pack that is validated on."""
    patches: Path | None = None
    """Patch features of the trained pictures, for iREPA."""

    @property
    def digest(self) -> str:
        """What the result depends on: neither names nor places."""
        plans = [read_pack_manifest(pack).plan for pack in (self.trained, self.unseen)]
        document = to_document(self)
        settings = {name: document[name] for name in document if name not in ("arm", "trained", "unseen", "patches")}
        return config_digest([settings, plans])

    def horizons(self) -> dict[str, tuple[int, int]]:
        """Horizon -> steps before its decay, and steps of the decay."""
        ends = {"short": self.short, **({} if self.long is None else {"long": self.long})}
        return {
            name: (end - round(end * self.decay_share), round(end * self.decay_share)) for name, end in ends.items()
        }


def train_job(job: Job, directory: Path) -> RunResult:
    """Train what is not trained yet, judge it, and write `result.json`; the checkpoints go when it is there."""
    try:
        result = _trained(job, directory)
    except FloatingPointError as diverged:
        result = _result(job, directory, {}, {}, diverged=str(diverged))
    staging = directory / f".{RESULT}.partial"
    staging.write_text(json.dumps(to_document(result), indent=1) + "\n")
    os.replace(staging, directory / RESULT)
    for leg in directory.glob("*/checkpoints"):
        shutil.rmtree(leg)
    return result


def _trained(job: Job, directory: Path) -> RunResult:
    validation: dict[str, dict[str, float]] = {}
    averages: dict[str, dict[str, float]] = {}
    judge, steady, done = Judge(job), None, 0
    for number, (horizon, (steady_steps, decay_steps)) in enumerate(job.horizons().items()):
        leg = Leg(job, directory, f"steady-{horizon}", 2 * number, done, steady_steps - done, steady)
        stage, steady = leg.train()
        if job.merge_last:
            averages[horizon] = _averaged(job, judge, stage, steady)
        decayed, _ = Leg(
            job, directory, f"decayed-{horizon}", 2 * number + 1, steady_steps, decay_steps, steady
        ).train()
        validation[horizon] = judge.losses(decayed)
        if job.merge_last:
            averages[horizon]["decayed"] = validation[horizon]["loss"]
        done = steady_steps
    return _result(job, directory, validation, averages)


class Leg:
    """One run of the engine: `steps` steps from batch `first` on, from the weights and moments of `parent`."""

    def __init__(
        self, job: Job, directory: Path, name: str, number: int, first: int, steps: int, parent: Path | None
    ) -> None:
        self.job, self.directory, self.name = job, directory / name, name
        self.number, self.first, self.steps, self.parent = number, first, steps, parent

    @property
    def decays(self) -> bool:
        """Whether the rate goes to its end here."""
        return self.name.startswith("decayed")

    def train(self) -> tuple[Pretrain, Path]:
        """The stage with the leg's last weights, and its last checkpoint."""
        job = self.job
        torch.manual_seed(job.seed)
        stage = Pretrain(Transformer(job.transformer), read_projection(job.trained), job.pretrain)
        average = [MovingAverage(job.ema_decay)] if job.merge_last else []
        final = train(
            stage,
            self.phases(stage),
            self.engine(),
            self.directory,
            config_digest=config_digest([job.digest, self.name]),
            hooks=[Spikes(SpikeConfig()), *average, CpuTime()],
            parent=None if self.parent is None else Parent(checkpoint=self.parent, with_optimiser=True),
            on_message=lambda said: print(f"{self.name}: {said}", flush=True),
        )
        return stage, final

    def engine(self) -> EngineConfig:
        """The loop's settings for this leg."""
        job = self.job
        optimiser = replace(job.engine.optimiser, decay_share=float(self.decays))
        if self.parent is not None:
            optimiser = replace(optimiser, warmup_steps=1)
        keep_every = job.merge_every if job.merge_last and not self.decays else 0
        return replace(
            job.engine, seed=SEEDS_PER_JOB * job.seed + self.number, optimiser=optimiser, keep_every=keep_every
        )

    def phases(self, stage: Pretrain) -> list[Phase[Any]]:
        """One, or iREPA's before it."""
        job = self.job
        pack = Pack(job.trained)
        loader = LatentLoader(pack, job.resolution, replace(job.loader, batch_size=job.batch_size, seed=job.seed))
        aligned = min(max(0, job.repa_steps - self.first), self.steps) if job.repa is not None else 0
        phases: list[Phase[Any]] = []
        if aligned:
            assert job.patches is not None
            assert job.repa is not None
            features = PatchFeatures(job.patches)
            repa = Repa(stage, features.width, job.repa)
            with_patches = WithPatches(loader, features, job.transformer.patch_size)
            phases.append(Phase("irepa", aligned, job.batch_size, with_patches, stage=repa, first_batch=self.first))
        if self.steps > aligned:
            rest = self.steps - aligned
            phases.append(Phase(self.name, rest, job.batch_size, loader, first_batch=self.first + aligned))
        return phases


class CpuTime:
    """A hook: CPU time from the end of one step to the end of the next, checkpoints included."""

    def __init__(self) -> None:
        self._before = 0.0

    def begin(self, run: Run[Any]) -> None:
        """Start the clock."""
        self._before = time.process_time()

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Read it and wind it again."""
        before, self._before = self._before, time.process_time()
        return {CPU_SECONDS: self._before - before}


class Judge:
    """The error of a model on unseen pairs: always the same rows, captions, timesteps and noise."""

    def __init__(self, job: Job) -> None:
        self.config, self.precision = job.validation, job.engine.precision
        pack = Pack(job.unseen)
        rows = sum(shard.num_rows for shard in pack.manifest.shards if shard.resolution == job.resolution)
        config = replace(
            job.loader, batch_size=max(1, min(VALIDATION_BATCH, rows)), seed=VALIDATION_SEED, drop_caption=0.0
        )
        loader = LatentLoader(pack, job.resolution, config)
        self.batches = [loader.batch(number) for number in range(self.config.num_batches)]

    def losses(self, stage: Pretrain) -> dict[str, float]:
        """`t0.1` ... and their mean, `loss`."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            found = validation_losses(stage, self.batches, self.config.timesteps, self.config.seed, Mesh())
        return {**{f"t{t:g}": loss for t, loss in found.items()}, "loss": sum(found.values()) / len(found)}


def _averaged(job: Job, judge: Judge, stage: Pretrain, steady: Path) -> dict[str, float]:
    """Errors of the last weights of a steady leg, their moving average, and the mean of its last checkpoints."""
    kept = [path for path in list_checkpoints(steady.parent) if read_manifest(path).step % job.merge_every == 0]
    merged = steady.parent.parent / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merge_checkpoints(kept[-job.merge_last :], out=merged)
    weights = {
        "last": read_tensors(steady, stage.weights_file),
        "ema": read_tensors(steady, MovingAverage.stored_file),
        "pma": read_tensors(merged, stage.weights_file),
    }
    shutil.rmtree(merged)
    return {name: judge.losses(_with(stage, state))["loss"] for name, state in weights.items()}


def _with(stage: Pretrain, weights: Mapping[str, Tensor]) -> Pretrain:
    stage.model.load_state_dict({**stage.model.state_dict(), **weights})
    return stage


def _result(
    job: Job,
    directory: Path,
    validation: dict[str, dict[str, float]],
    averages: dict[str, dict[str, float]],
    diverged: str | None = None,
) -> RunResult:
    records = {leg.parent.name: read_records(leg) for leg in sorted(directory.glob("*/steps.jsonl"))}
    steady = [record for name, of_leg in records.items() if name.startswith("steady") for record in of_leg]
    warmup = job.engine.optimiser.warmup_steps
    norms = [record.grad_norm for record in steady if record.learning_rate == job.engine.optimiser.learning_rate]
    norms = norms or [record.grad_norm for record in steady[min(warmup, len(steady) - 1) :]]
    spikes = [line for path in directory.glob("*/spikes.jsonl") for line in path.read_text().splitlines()]
    return RunResult(
        arm=job.arm,
        resolution=job.resolution,
        seed=job.seed,
        steps={"short": job.short, **({} if job.long is None else {"long": job.long})},
        validation=validation,
        cpu_seconds={horizon: seconds for horizon in validation if (seconds := _cpu_seconds(records, horizon))},
        averages=averages,
        num_spikes=len(spikes),
        num_steps=sum(len(of_leg) for of_leg in records.values()),
        gradient_ratio=float(np.quantile(norms, 0.99) / np.median(norms)) if norms else float("nan"),
        diverged=diverged,
    )


def _cpu_seconds(records: Mapping[str, Sequence[StepRecord]], horizon: str) -> float:
    """CPU time of all steps to a horizon; 0 where a step was not timed, as in a training that an older version began."""
    legs = [f"steady-{one}" for one in HORIZONS[: HORIZONS.index(horizon) + 1]] + [f"decayed-{horizon}"]
    timed = [record.metrics.get(CPU_SECONDS) for leg in legs for record in records[leg]]
    return 0.0 if None in timed else math.fsum(seconds for seconds in timed if seconds is not None)


def read_job(directory: Path) -> Job:
    """The job that was written there."""
    return from_document(Job, json.loads((directory / JOB).read_text()))


def read_result(directory: Path) -> RunResult | None:
    """The result of a job that is done, or None."""
    path = directory / RESULT
    return from_document(RunResult, json.loads(path.read_text())) if path.exists() else None


def main() -> int:
    """Do the job of a directory."""
    look_seldom()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    directory = Path(sys.argv[1])
    try:
        with only_one(directory):
            train_job(read_job(directory), directory)
    except PleinairError as refused:
        print(f"pleinair: {refused}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
