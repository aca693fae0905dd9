"""The training engine: one loop for every training stage.

    loader.batch(step) -> rows -> stage.loss(micro-batch, random) -> backward -> clip -> optimiser -> hooks -> record
                                                                                                -> checkpoint (`save_clock`)

A stage owns only "batch -> LossOutput"; the engine owns the rest, and hooks watch. All randomness is a function of (seed,
step, row of the global batch): the loader's order, the noise, the timesteps. So the state of a run is the model, the
optimiser and the step; accumulation and ranks change nothing but rounding; and a run killed anywhere resumes with the same
losses, bit for bit (CPU, same threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from pleinair.checkpoint.interval import IntervalConfig, IntervalRule
from pleinair.checkpoint.writer import CheckpointWriter
from pleinair.model.float8 import float8_for
from pleinair.records.checkpoint import Refused, Saved
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.records.run_events import FailureHistory
from pleinair.training.mesh import Mesh
from pleinair.training.optimisers import OptimiserConfig, ScheduledOptimiser
from pleinair.training.random import RowRandom
from pleinair.training.records import RecordLog, StepRecord, read_records
from pleinair.training.reductions import (
    any_rank,
    average_gradients,
    clip_gradients,
    gather_keys,
    hold_gradients,
    mean_metrics,
)
from pleinair.training.rows import num_rows, on_device, part
from pleinair.training.save_clock import SaveClock
from pleinair.training.saving import Parent, restore_hooks, resume, save_run, start_from

__all__ = [
    "EngineConfig",
    "Hook",
    "LossOutput",
    "Parent",
    "Phase",
    "Run",
    "Stage",
    "StepHook",
    "StepRecord",
    "read_records",
    "train",
]

Batch = TypeVar("Batch")
BatchIn = TypeVar("BatchIn", contravariant=True)
BatchOut = TypeVar("BatchOut", covariant=True)


@dataclass(frozen=True)
class LossOutput:
    """What a stage gives for some rows."""

    loss: Tensor
    """Scalar with a graph: a mean over the rows."""
    metrics: Mapping[str, float | Tensor] = field(default_factory=dict)
    """Further means over the rows, to log."""


class Stage(Protocol[BatchIn]):
    """One training objective: what is trained, what is stored beside it, and rows -> loss.

    It may also have `head`, a module that is trained beside the model while a phase uses the stage (`HasHead`), and
    `weights`, what to store instead of the whole model (`saving.OwnWeights`).
    """

    weights_file: str
    """Name of the model's file in a checkpoint, for example `transformer.safetensors`."""

    @property
    def model(self) -> nn.Module:
        """What is trained: its parameters that require gradients."""
        ...

    def documents(self) -> Mapping[str, Any]:
        """JSON documents stored in every checkpoint (the model's configuration)."""
        ...

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Frozen tensors stored in every checkpoint beside the weights (text projection, statistics)."""
        ...

    def loss(self, batch: BatchIn, random: RowRandom) -> LossOutput:
        """Mean loss of the rows; `random` is the only source of randomness."""
        ...


@runtime_checkable
class HasHead(Protocol):
    """A stage that trains a module beside the model, which goes when the phase ends."""

    @property
    def head(self) -> nn.Module:
        """That module."""
        ...


class Loader(Protocol[BatchOut]):
    """Batches as a function of the step, so that any batch can be had again; of several ranks, this rank's rows."""

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
    """Rows of a step, over all ranks."""
    loader: Loader[Batch]
    stage: Stage[Batch] | None = None
    """Another objective for the same model during this phase; None for the run's."""
    decays: bool = False
    """The learning rate decays from the first phase that says so to the end; if none does, `decay_share` tells."""
    first_batch: int = 0
    """The loader's batch to begin with: a run that continues another goes on in its data."""
    resolution: int | None = None
    """Pixels per side, which 8-bit precision follows; None where the rows are no pictures of one size."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of the loop, whatever the stage."""

    seed: int = 0
    """Seed of data order, noise and timesteps."""
    precision: Literal["bf16", "fp32", "fp8"] = "bf16"
    """Autocast dtype of the forward pass, or 8-bit products within bfloat16, scaled by the phase's resolution and emulated
    where there is no hardware for them; weights and optimiser stay float32."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """Update rule and its schedule."""
    clip_norm: float = 1.0
    """Largest gradient norm, of the model and of a stage's head each by itself."""
    num_micro_batches: int = 1
    """Equal slices that each rank's rows of a step are computed in: memory of one slice, gradient of all."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints where it is affordable; never shorter."""
    checkpoint_budget: float = 0.02
    """Share of the time that they may cost then, stall and slowed steps together."""
    checkpoint_by: IntervalRule = "affordable"
    """`affordable`: by time within the budget, else by failures. `failures`: where the least time is lost, from the run's
    own failures and costs. `time`: whatever it costs."""
    keep_checkpoints: int = 2
    """Checkpoints kept."""
    keep_every: int = 0
    """A checkpoint every so many steps is kept for good, to be merged later; 0 for none."""
    asynchronous_checkpoints: bool = True
    """Write checkpoints beside the next steps, from a copy in host memory."""
    num_threads: int = 2
    """Threads of the CPU backend; equal numbers are needed for bit-equal losses."""

    def __post_init__(self) -> None:
        for name in ("clip_norm", "checkpoint_seconds", "keep_checkpoints", "num_threads", "num_micro_batches"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be positive")
        if self.keep_every < 0:
            raise ConfigError(f"keep_every is {self.keep_every}: give a number of steps, or 0 for none")
        if not 0 < self.checkpoint_budget < 1:
            raise ConfigError(f"checkpoint_budget is {self.checkpoint_budget}: give a share between 0 and 1")

    @property
    def checkpoint_interval(self) -> IntervalConfig:
        """How the time between checkpoints is chosen."""
        return IntervalConfig(by=self.checkpoint_by, seconds=self.checkpoint_seconds, budget=self.checkpoint_budget)


class Hook(Protocol):
    """Watches a run. It may also be any of `Begins`, `Ends`, `Guard`, `Stops`, `SeesStops`, `SeesSaves`, `saving.StoredHook`.

    Hooks run on every rank, in their order; those that write come after those that measure.
    """

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """Called when a step is done; what it returns is added to the step's metrics."""
        ...


@runtime_checkable
class Begins(Protocol):
    """A hook that prepares itself."""

    def begin(self, run: Run[Any]) -> None:
        """Called once, with the model's weights loaded; the hook's own state is loaded after."""
        ...


@runtime_checkable
class Ends(Protocol):
    """A hook that cleans up."""

    def end(self) -> None:
        """Called once, also when training fails."""
        ...


@runtime_checkable
class Guard(Protocol):
    """A hook that may refuse an update."""

    def allows_update(self, run: Run[Any], loss: float, grad_norm: float) -> bool:
        """Called with the whole gradient there, equal on all ranks; raises to stop the run before the update."""
        ...


@runtime_checkable
class Stops(Protocol):
    """A hook that may end a run before its last step, for good: a checkpoint is written, and starting again finds it over.

    Decide by records and settings alone, so that a run that was killed on the way decides the same again.
    """

    def stop_reason(self, run: Run[Any], record: StepRecord) -> str | None:
        """A sentence to end after this step, None to go on; called when all hooks have measured it."""
        ...


@runtime_checkable
class SeesStops(Protocol):
    """A hook that hears that a run ended early."""

    def stopped_early(self, step: int, reason: str) -> None:
        """Called on every rank after `step` steps."""
        ...


@runtime_checkable
class SeesSaves(Protocol):
    """A hook that hears how checkpoints ended."""

    def save_ended(self, outcome: Saved | Refused) -> None:
        """Called on every rank, some steps after the one that was saved."""
        ...


StepHook = Callable[[StepRecord, int], None]
"""A plain function of a step's record and the total number of steps; `hooks.progress.EachStep` makes a hook of it."""


class Run(Generic[Batch]):
    """A run at a step: what hooks see."""

    def __init__(
        self,
        stage: Stage[Batch],
        phases: Sequence[Phase[Batch]],
        config: EngineConfig,
        run_dir: Path,
        config_digest: str,
        mesh: Mesh,
        hooks: Sequence[Hook],
        on_message: Callable[[str], None],
        failures: FailureHistory,
        documents: Mapping[str, Any],
    ) -> None:
        self.documents = documents
        self.main_stage, self.phases, self.config, self.run_dir = stage, phases, config, run_dir
        self.config_digest, self.mesh, self.hooks, self._on_message = config_digest, mesh, hooks, on_message
        self.total_steps = sum(phase.num_steps for phase in phases)
        self.optimiser = ScheduledOptimiser(
            stage.model, config.optimiser, self.total_steps, decay_steps(phases, config)
        )
        self.saves = SaveClock(config.checkpoint_interval, failures)
        self.step, self.learning_rate = 0, config.optimiser.learning_rate
        self.lineage: list[dict[str, Any]] = []
        self.stopped: str | None = None
        """Why the run is over before its last step, if it is."""
        self.batch: Batch | None = None
        """This rank's rows of the step that is being done."""
        self.compute_seconds = 0.0
        """What forward and backward of the step took here, before anything waited for other ranks' numbers."""
        self.head: nn.Module | None = None
        self._in_float8: Phase[Batch] | None = None
        self.go_to(0)

    def go_to(self, step: int) -> None:
        """Be at a step: its phase, stage and head. A head whose phase is over is forgotten, moments included."""
        self.step = step
        self.phase, self.phase_step = phase_at(self.phases, step)
        if self.phase_step == 0:
            self.saves.forget_steps()
        self.stage: Stage[Batch] = (self.phase.stage if self.phase else None) or self.main_stage
        if self.config.precision == "fp8" and self.phase is not None and self.phase is not self._in_float8:
            self._use_float8(self.phase)
        head = self.stage.head if isinstance(self.stage, HasHead) else None
        if head is not self.head:
            self.head = head
            self.optimiser.set_head(head)

    def _use_float8(self, phase: Phase[Batch]) -> None:
        """Multiply as a phase does. Raises ConfigError when its resolution is unknown or no layer qualifies."""
        if phase.resolution is None:
            raise ConfigError(f"precision is fp8 and phase {phase.name} tells no resolution: use bf16, or tell it")
        self._in_float8 = phase
        self.say(float8_for(self.main_stage.model, phase.resolution))

    @property
    def is_over(self) -> bool:
        """Whether no step is left to do."""
        return self.stopped is not None or self.step >= self.total_steps

    def say(self, message: str) -> None:
        """Tell the person who runs this, once over all ranks."""
        if self.mesh.rank == 0:
            self._on_message(message)

    def modules(self) -> list[nn.Module]:
        """What is trained at this step."""
        return [self.stage.model, *([] if self.head is None else [self.head])]

    def keys(self) -> list[str]:
        """Keys of this rank's rows of the step."""
        assert self.phase is not None
        return self.phase.loader.keys(self.phase.first_batch + self.phase_step)

    def all_keys(self) -> list[str]:
        """Keys of the step's rows on all ranks; every rank must call it."""
        return gather_keys(self.keys(), self.mesh)

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass."""
        return torch.autocast(self.mesh.device.type, torch.bfloat16, enabled=self.config.precision != "fp32")


def phase_at(phases: Sequence[Phase[Batch]], step: int) -> tuple[Phase[Batch] | None, int]:
    """The phase of a step and the step within it; None once all phases are done."""
    for phase in phases:
        if step < phase.num_steps:
            return phase, step
        step -= phase.num_steps
    return None, step


def decay_steps(phases: Sequence[Phase[Batch]], config: EngineConfig) -> float:
    """Steps over which the learning rate decays, at the end of a run."""
    first = next((place for place, phase in enumerate(phases) if phase.decays), None)
    if first is None:
        return config.optimiser.decay_share * sum(phase.num_steps for phase in phases)
    return sum(phase.num_steps for phase in phases[first:])


def train(
    stage: Stage[Batch],
    phases: Sequence[Phase[Batch]],
    config: EngineConfig,
    run_dir: Path,
    *,
    config_digest: str,
    mesh: Mesh | None = None,
    hooks: Sequence[Hook] = (),
    parent: Parent | None = None,
    failures: FailureHistory | None = None,
    documents: Mapping[str, Any] | None = None,
    on_message: Callable[[str], None] = print,
) -> Path:
    """Train to the end of the last phase, or until a hook stops it; resumes from `run_dir`; returns the final checkpoint.

    A fresh run starts from `parent` when given. With a `mesh` every rank calls this, with its part of one parallelised model
    and with loaders of its rows. `failures`, those of the run so far, have a part in how often it is saved.

    Raises CheckpointError when the run there was made with other settings, and FloatingPointError, with the keys of the
    batch, when a loss is not finite.
    """
    torch.set_num_threads(config.num_threads)
    so_far = failures or FailureHistory()
    told = documents or {}
    run = Run(stage, phases, config, run_dir, config_digest, mesh or Mesh(), hooks, on_message, so_far, told)
    _refuse_uneven_rows(phases, config, run.mesh)
    if not run.total_steps:
        raise CheckpointError(f"the run in {run_dir} has no steps to do: give it at least one")
    resumed = resume(run)
    if resumed is None and parent is not None:
        start_from(run, parent)
    final = resumed
    with _hooks_open(run, resumed), _writer_open(run) as writer:
        run.saves.training_began()
        with RecordLog(run_dir / "steps.jsonl", run.step, writes=run.mesh.rank == 0) as log:
            while not run.is_over:
                record = _train_step(run, writer).with_metrics(run.saves.take_report())
                for hook in hooks:
                    record = record.with_metrics(hook.after_step(run, record))
                log.append(record)
                run.go_to(run.step + 1)
                _stop_if_asked(run, record)
                final = _tell_of_saves(run, writer) or final
                if _checkpoint_is_due(run):
                    log.sync()
                    run.saves.save_began()
                    save_run(run, writer)
        writer.wait()
        final = _tell_of_saves(run, writer) or final
    assert final is not None
    return final


def _refuse_uneven_rows(phases: Sequence[Phase[Any]], config: EngineConfig, mesh: Mesh) -> None:
    """Before the first step of the first phase, what would end the last one midway."""
    for phase in phases:
        rows = phase.batch_size // mesh.num_data_ranks
        if phase.batch_size % mesh.num_data_ranks:
            raise ConfigError(
                f"phase {phase.name} has {phase.batch_size} rows a step, which {mesh.num_data_ranks} ranks cannot share "
                "equally: give a multiple"
            )
        if rows % config.num_micro_batches:
            raise ConfigError(
                f"num_micro_batches is {config.num_micro_batches} and a rank has {rows} rows of a step of phase "
                f"{phase.name}: give a divisor of its rows"
            )


@contextmanager
def _writer_open(run: Run[Any]) -> Iterator[CheckpointWriter]:
    """What writes checkpoints beside the steps; whatever ends training, the one that is being written is finished."""
    config, mesh = run.config, run.mesh
    writer = CheckpointWriter(
        run.run_dir / "checkpoints",
        keep=config.keep_checkpoints,
        keep_every=config.keep_every or None,
        asynchronous=config.asynchronous_checkpoints,
        staging="update",
        rank=mesh.rank,
        world_size=mesh.world_size,
    )
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def _hooks_open(run: Run[Any], resumed: Path | None) -> Iterator[None]:
    """Hooks begun, with their states from the checkpoint, and ended whatever happens."""
    with ExitStack() as stack:
        for hook in run.hooks:
            if isinstance(hook, Ends):
                stack.callback(hook.end)
            if isinstance(hook, Begins):
                hook.begin(run)
        if resumed is not None:
            restore_hooks(run, resumed)
        yield


def _train_step(run: Run[Any], writer: CheckpointWriter) -> StepRecord:
    """One step: the rate, the rows, the gradient, whether it may be used, the update."""
    assert run.phase is not None
    started, phase, config = time.monotonic(), run.phase, run.config
    run.learning_rate = run.optimiser.set_step(run.step)
    run.batch = on_device(phase.loader.batch(phase.first_batch + run.phase_step), run.mesh.device)
    loss, metrics = _accumulate_gradient(run)
    average_gradients(run.modules(), run.mesh)
    # Each by its own: what the head learns is no measure of what the model does.
    norms = [clip_gradients(module.parameters(), config.clip_norm) for module in run.modules()]
    grad_norm = math.hypot(*norms)
    _refuse_what_is_not_finite(run, loss, grad_norm)
    guards = [hook for hook in run.hooks if isinstance(hook, Guard)]
    verdicts = [guard.allows_update(run, loss, grad_norm) for guard in guards]
    waited = writer.wait_until_staged()
    if all(verdicts):
        run.optimiser.step()
    else:
        metrics["skipped"] = 1.0
    run.optimiser.zero_grad()
    ended = time.monotonic()
    run.saves.step_done(started + waited, ended)
    rate = phase.batch_size / (ended - started)
    return StepRecord(run.step, phase.name, loss, grad_norm, run.learning_rate, rate, metrics)


def _accumulate_gradient(run: Run[Any]) -> tuple[float, dict[str, float]]:
    """Leave the gradient of the mean loss of this rank's rows in the parameters; loss and metrics are of all ranks."""
    assert run.phase is not None
    count, pieces, mesh = num_rows(run.batch), run.config.num_micro_batches, run.mesh
    if count % pieces:
        raise ConfigError(
            f"num_micro_batches is {pieces} and a rank has {count} rows of step {run.step}: give a divisor of its rows"
        )
    first_row = run.phase.batch_size * mesh.data_rank // mesh.num_data_ranks
    random = RowRandom(run.config.seed, run.step, range(first_row, first_row + count), mesh.device)
    totals: dict[str, float | Tensor] = {"loss": 0.0}
    began = time.perf_counter()
    run.stage.model.train()
    for piece in range(pieces):
        rows = (piece * count // pieces, (piece + 1) * count // pieces)
        hold_gradients(run.stage.model, piece + 1 < pieces)
        with run.autocast():
            output = run.stage.loss(part(run.batch, *rows) if pieces > 1 else run.batch, random.part(*rows))
        (output.loss / pieces).backward()
        for name, value in {"loss": output.loss.detach(), **output.metrics}.items():
            totals[name] = totals.get(name, 0.0) + value / pieces
    run.compute_seconds = time.perf_counter() - began
    means = mean_metrics(totals, mesh)
    return means.pop("loss"), means


def _stop_if_asked(run: Run[Any], record: StepRecord) -> None:
    """End the run where a hook says so, on all ranks with the first reason given, unless the step was its last."""
    stoppers = [hook for hook in run.hooks if isinstance(hook, Stops)]
    if not stoppers or run.is_over:
        return
    reasons = [reason for hook in stoppers if (reason := hook.stop_reason(run, record)) is not None]
    if not any_rank(bool(reasons), run.mesh):
        return
    run.stopped = gather_keys(reasons, run.mesh)[0]
    run.say(f"the run ends early, after {run.step} of {run.total_steps} steps: {run.stopped}")
    for hook in run.hooks:
        if isinstance(hook, SeesStops):
            hook.stopped_early(run.step, run.stopped)


def _refuse_what_is_not_finite(run: Run[Any], loss: float, grad_norm: float) -> None:
    """Raises FloatingPointError, on all ranks, before anything of it reaches the weights."""
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    what = f"the gradient's norm is {grad_norm}" if math.isfinite(loss) else f"the loss is {loss}"
    keys = ", ".join(run.all_keys()[:8])
    raise FloatingPointError(f"{what} at step {run.step}: look at the pictures {keys} ..., or lower the learning rate")


def _checkpoint_is_due(run: Run[Any]) -> bool:
    """One answer for all ranks, of rank 0's clock and costs."""
    at_fixed_step = bool(run.config.keep_every) and run.step % run.config.keep_every == 0
    if at_fixed_step or run.is_over:
        return True
    return any_rank(run.mesh.rank == 0 and run.saves.is_due(), run.mesh)


def _tell_of_saves(run: Run[Any], writer: CheckpointWriter) -> Path | None:
    """Tell hooks how saves ended; the newest that is whole. Training goes on after a refusal, but the last save must succeed."""
    newest, store = None, run.run_dir / "checkpoints"
    for ended in writer.finished():
        outcome = run.saves.save_ended(ended) if isinstance(ended, Saved) else ended
        for hook in run.hooks:
            if isinstance(hook, SeesSaves):
                hook.save_ended(outcome)
        if isinstance(outcome, Saved):
            newest = store / outcome.directory
            if news := run.saves.news():
                run.say(news)
        elif run.is_over and outcome.step == run.step:
            raise CheckpointError(f"the final checkpoint is not there: {outcome.reason}; then run again")
        else:
            run.say(f"{outcome.reason}; training goes on")
    return newest
