"""The training engine: one loop for every training stage.

    loader.batch(step) -> stage.loss(batch, generator) -> backward -> clip -> optimiser -> hooks
                                                                            -> checkpoint (by time)

A stage owns only "batch -> LossOutput"; the engine owns the rest. All randomness is a function of (seed, step): the
loader's order, the noise, the timesteps. So the state of a run is the model, the optimiser and the step, and a run
killed anywhere resumes with the same losses, bit for bit (CPU, same threads).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pleinair.checkpoint.store import newest_checkpoint, read_document, read_manifest, read_tensors, save_checkpoint
from pleinair.records.errors import CheckpointError
from pleinair.training.optimisers import OptimiserConfig, make_optimiser, optimiser_tensors, restore_optimiser

Batch = TypeVar("Batch")
BatchIn = TypeVar("BatchIn", contravariant=True)
BatchOut = TypeVar("BatchOut", covariant=True)


@dataclass(frozen=True)
class LossOutput:
    """What a stage gives for one batch."""

    loss: Tensor
    """Scalar with a graph."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further numbers to log."""


class Stage(Protocol[BatchIn]):
    """One training objective: what is trained, what is stored beside it, and batch -> loss."""

    weights_file: str
    """Name of the model's file in a checkpoint, for example `transformer.safetensors`."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    def documents(self) -> Mapping[str, Any]:
        """JSON documents stored in every checkpoint (the model's configuration)."""
        ...

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Frozen tensors stored in every checkpoint beside the weights (text projection, statistics)."""
        ...

    def loss(self, batch: BatchIn, generator: torch.Generator) -> LossOutput:
        """Loss of one batch; `generator` is the only source of randomness."""
        ...


class Loader(Protocol[BatchOut]):
    """Batches as a function of the step, so that any batch can be had again."""

    def batch(self, step: int) -> BatchOut:
        """The batch of this step, counted from the start of the phase."""
        ...

    def keys(self, step: int) -> list[str]:
        """Keys of the rows in that batch."""
        ...


@dataclass(frozen=True)
class Phase(Generic[Batch]):
    """A stretch of a run with one loader, for example one resolution."""

    name: str
    num_steps: int
    batch_size: int
    loader: Loader[Batch]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of the loop, whatever the stage."""

    seed: int = 0
    """Seed of data order, noise and timesteps."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Autocast dtype of the forward pass; weights and optimiser stay float32."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Update rule and its schedule."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints kept."""
    num_threads: int = 2
    """Threads of the CPU backend; equal numbers are needed for bit-equal losses."""

    def __post_init__(self) -> None:
        for name in ("clip_norm", "checkpoint_seconds", "keep_checkpoints", "num_threads"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")


@dataclass(frozen=True)
class StepRecord:
    """One line of `steps.jsonl`."""

    step: int
    phase: str
    loss: float
    grad_norm: float
    learning_rate: float
    samples_per_second: float
    metrics: Mapping[str, float]


StepHook = Callable[[StepRecord, int], None]
"""Called after every step with its record and the total number of steps."""


def train(
    stage: Stage[Batch],
    phases: Sequence[Phase[Batch]],
    config: EngineConfig,
    run_dir: Path,
    *,
    config_digest: str,
    hooks: Sequence[StepHook] = (),
    on_message: Callable[[str], None] = print,
) -> Path:
    """Train to the end of the last phase, resuming from `run_dir`; returns the final checkpoint's directory.

    Raises CheckpointError when the run there was made with other settings, and FloatingPointError, with the keys of the
    batch, when a loss is not finite.
    """
    torch.set_num_threads(config.num_threads)
    total_steps = sum(phase.num_steps for phase in phases)
    optimiser = make_optimiser(stage.model, config.optimiser, total_steps)
    store = run_dir / "checkpoints"
    first_step = _resume(stage, optimiser, store, config_digest, on_message)
    keep_records_before(run_dir / "steps.jsonl", first_step)
    last_saved, saved_at = first_step, time.monotonic()
    checkpoint = newest_checkpoint(store, on_message) if first_step else None

    with (run_dir / "steps.jsonl").open("a") as log:
        for step, phase, phase_step in _steps(phases, first_step):
            record = _train_step(stage, phase, phase_step, step, optimiser, config)
            log.write(json.dumps(record.__dict__) + "\n")
            for hook in hooks:
                hook(record, total_steps)
            done = step + 1 == total_steps
            if done or time.monotonic() - saved_at >= config.checkpoint_seconds:
                log.flush()
                os.fsync(log.fileno())
                checkpoint = (
                    _save(stage, optimiser, store, step + 1, config, config_digest, on_message, must=done) or checkpoint
                )
                last_saved, saved_at = step + 1, time.monotonic()
    if checkpoint is None or last_saved != total_steps:
        raise CheckpointError(f"the run in {run_dir} has no steps to do: give it at least one")
    return checkpoint


def _steps(phases: Sequence[Phase[Batch]], first_step: int) -> Iterator[tuple[int, Phase[Batch], int]]:
    step = 0
    for phase in phases:
        for phase_step in range(phase.num_steps):
            if step >= first_step:
                yield step, phase, phase_step
            step += 1


def _train_step(
    stage: Stage[Batch], phase: Phase[Batch], phase_step: int, step: int, optimiser: Any, config: EngineConfig
) -> StepRecord:
    started = time.perf_counter()
    learning_rate = optimiser.set_step(step)
    batch = phase.loader.batch(phase_step)
    stage.model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        output = stage.loss(batch, step_generator(config.seed, step))
    loss = output.loss.item()
    if not math.isfinite(loss):
        keys = ", ".join(phase.loader.keys(phase_step)[:8])
        raise FloatingPointError(
            f"the loss is {loss} at step {step}: look at the pictures {keys} ..., or lower the learning rate"
        )
    output.loss.backward()
    grad_norm = nn.utils.clip_grad_norm_(stage.model.parameters(), config.clip_norm).item()
    optimiser.step()
    optimiser.zero_grad()
    rate = phase.batch_size / (time.perf_counter() - started)
    return StepRecord(step, phase.name, loss, grad_norm, learning_rate, rate, dict(output.metrics))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random stream of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (2**63))


def _resume(
    stage: Stage[Batch], optimiser: Any, store: Path, config_digest: str, on_message: Callable[[str], None]
) -> int:
    """Load the newest whole checkpoint into stage and optimiser; returns the step to go on with (0 when fresh)."""
    newest = newest_checkpoint(store, on_message)
    if newest is None:
        return 0
    manifest = read_manifest(newest)
    if manifest.config_digest != config_digest:
        raise CheckpointError(
            f"the checkpoint {newest} was made with other settings or data: give this run another name, or delete {store.parent}"
        )
    stage.model.load_state_dict(read_tensors(newest, stage.weights_file))
    restore_optimiser(optimiser, read_tensors(newest, "optimiser.safetensors"), read_document(newest, "optimiser.json"))
    on_message(f"resuming at step {manifest.step} from {newest.name}")
    return manifest.step


def _save(
    stage: Stage[Batch],
    optimiser: Any,
    store: Path,
    step: int,
    config: EngineConfig,
    config_digest: str,
    on_message: Callable[[str], None],
    *,
    must: bool,
) -> Path | None:
    """Save, or say that the disk refused and train on; the last checkpoint of a run must succeed."""
    moments, layout = optimiser_tensors(optimiser)
    try:
        return save_checkpoint(
            store,
            step,
            {stage.weights_file: stage.model.state_dict(), "optimiser.safetensors": moments, **stage.tensors()},
            {"optimiser.json": layout, **stage.documents()},
            config_digest=config_digest,
            keep=config.keep_checkpoints,
        )
    except OSError as refused:
        if must:
            raise CheckpointError(
                f"the final checkpoint could not be written to {store}: {refused}; free space and run again"
            ) from refused
        on_message(
            f"checkpoint at step {step} could not be written ({refused}); training goes on, the older one is untouched"
        )
        return None


def keep_records_before(path: Path, step: int) -> None:
    """Drop the records of steps that will be done again, and a half-written last line."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return
    staging = path.with_name(path.name + ".partial")
    with path.open() as old, staging.open("w") as new:
        for line in old:
            if line.endswith("\n") and json.loads(line)["step"] < step:
                new.write(line)
    os.replace(staging, path)


def read_records(path: Path) -> list[StepRecord]:
    """All records of a run, in order."""
    if not path.exists():
        return []
    return [StepRecord(**json.loads(line)) for line in path.read_text().splitlines()]
