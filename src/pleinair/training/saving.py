"""The state of a run as a checkpoint, and back: weights, head, optimiser, hooks, and where all of it came from.

<stage.weights_file>   head.safetensors (only while a phase has one)   optimiser.safetensors + .json
<hook.stored_file> ... what the stage stores beside                    run.json: step, phase, rate, lineage
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pleinair.checkpoint.store import (
    list_checkpoints,
    newest_checkpoint,
    read_document,
    read_manifest,
    read_tensors,
    save_checkpoint,
    verify_checkpoint,
)
from pleinair.records.errors import CheckpointError
from pleinair.training.optimisers import optimiser_tensors, ready_moments

if TYPE_CHECKING:
    from pleinair.training.engine import Run

HEAD_FILE = "head.safetensors"
OPTIMISER_FILE = "optimiser.safetensors"
RUN_DOCUMENT = "run.json"


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The checkpoint that a run starts from, of another run."""

    checkpoint: Path
    """Its directory."""
    with_optimiser: bool = False
    """Go on with its moments too, to continue or to anneal a stable phase; else they start from zero."""


class Writer(Protocol):
    """What writes checkpoints, at once or meanwhile."""

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        documents: Mapping[str, Any],
        *,
        config_digest: str,
    ) -> float:
        """Begin to write a checkpoint; returns for how many seconds training waited."""
        ...

    def finished(self) -> Sequence[Any]:
        """What came of earlier saves since the last call: each has `step`, and `reason` where the disk refused."""
        ...

    def close(self) -> None:
        """Wait for what is being written."""
        ...


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on disk."""

    step: int
    stall_seconds: float
    """What training waited for it."""
    write_seconds: float
    """From the call to `save` until it was durable."""


@dataclass(frozen=True)
class Refused:
    """A checkpoint could not be written; what was there before is untouched."""

    step: int
    reason: str


class SynchronousWriter:
    """Writes while training waits; keeps the newest checkpoints, and for good those at multiples of `keep_every`."""

    def __init__(self, root: Path, *, keep: int, keep_every: int = 0) -> None:
        self.root, self.keep, self.keep_every = root, keep, keep_every
        self._outcomes: list[Saved | Refused] = []

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        documents: Mapping[str, Any],
        *,
        config_digest: str,
    ) -> float:
        """Write one. The file system's refusals are told by `finished`."""
        began = time.monotonic()
        try:
            save_checkpoint(
                self.root,
                step,
                tensors,
                documents,
                config_digest=config_digest,
                keep=len(list_checkpoints(self.root)) + 1,
            )
            self._prune()
            seconds = time.monotonic() - began
            self._outcomes.append(Saved(step, seconds, seconds))
        except OSError as refused:
            self._outcomes.append(Refused(step, str(refused)))
        return time.monotonic() - began

    def _prune(self) -> None:
        for old in list_checkpoints(self.root)[: -self.keep]:
            if not self.keep_every or int(old.name.removeprefix("step-")) % self.keep_every:
                rmtree(old, ignore_errors=True)

    def finished(self) -> list[Saved | Refused]:
        """Outcomes since the last call."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def close(self) -> None:
        """Nothing is under way."""


@runtime_checkable
class OwnWeights(Protocol):
    """A stage that stores something else than its whole model, a LoRA for example."""

    def weights(self) -> Mapping[str, Tensor]:
        """What `weights_file` holds."""
        ...


@runtime_checkable
class StoredHook(Protocol):
    """A hook with a state of its own in every checkpoint."""

    stored_file: str

    def tensors(self) -> Mapping[str, Tensor]:
        """The live state; loading fills these in place."""
        ...


def weights_of(stage: Any) -> Mapping[str, Tensor]:
    """The live tensors that a stage's `weights_file` holds."""
    if isinstance(stage, OwnWeights):
        return stage.weights()
    weights: Mapping[str, Tensor] = stage.model.state_dict()
    return weights


@torch.no_grad()
def fill(state: Mapping[str, Tensor], directory: Path, name: str) -> None:
    """Fill tensors in place from a file of a checkpoint. Raises CheckpointError when names or shapes differ."""
    saved = read_tensors(directory, name)
    if missing := sorted(set(state) ^ set(saved)):
        raise CheckpointError(f"{directory / name} does not fit this model: {missing[0]} is only in one of them")
    for key, values in state.items():
        if values.shape != saved[key].shape:
            raise CheckpointError(
                f"{directory / name} does not fit this model: {key} has shape {tuple(saved[key].shape)} there and "
                f"{tuple(values.shape)} here"
            )
        values.copy_(saved[key])


def save_run(run: Run[Any], writer: Writer) -> float:
    """Hand the whole state after `run.step` steps to the writer; returns the seconds that training waited."""
    moments, layout = optimiser_tensors(run.optimiser)
    tensors = {run.stage.weights_file: weights_of(run.stage), OPTIMISER_FILE: moments, **run.stage.tensors()}
    if run.head is not None:
        tensors[HEAD_FILE] = run.head.state_dict()
    for hook in run.hooks:
        if isinstance(hook, StoredHook):
            tensors[hook.stored_file] = hook.tensors()
    documents = {"optimiser.json": layout, RUN_DOCUMENT: run_document(run), **run.stage.documents()}
    return writer.save(run.step, tensors, documents, config_digest=run.config_digest)


def run_document(run: Run[Any]) -> dict[str, Any]:
    """What a checkpoint tells of its run: `merge` and whoever continues it read this."""
    return {
        "step": run.step,
        "seed": run.config.seed,
        "learning_rate": run.learning_rate,
        "has_head": run.head is not None,
        "lineage": run.lineage,
    }


def resume(run: Run[Any]) -> Path | None:
    """Load the newest whole checkpoint of the run and move it to its step; None when there is none."""
    newest = newest_checkpoint(run.run_dir / "checkpoints", run.say)
    if newest is None:
        return None
    manifest = read_manifest(newest)
    if manifest.config_digest != run.config_digest:
        raise CheckpointError(
            f"the checkpoint {newest} was made with other settings or data: give this run another name, or delete "
            f"{run.run_dir}"
        )
    run.go_to(manifest.step)
    fill(weights_of(run.stage), newest, run.stage.weights_file)
    if run.head is not None:
        fill(run.head.state_dict(), newest, HEAD_FILE)
    fill(ready_moments(run.optimiser, read_document(newest, "optimiser.json")), newest, OPTIMISER_FILE)
    run.lineage = read_document(newest, RUN_DOCUMENT)["lineage"]
    run.say(f"resuming at step {manifest.step} from {newest.name}")
    return newest


def restore_hooks(run: Run[Any], checkpoint: Path) -> None:
    """Load the hooks' states; one that was not there when the checkpoint was written keeps what it began with."""
    files = read_manifest(checkpoint).files
    for hook in run.hooks:
        if isinstance(hook, StoredHook):
            if hook.stored_file in files:
                fill(hook.tensors(), checkpoint, hook.stored_file)
            else:
                run.say(f"{checkpoint.name} has no {hook.stored_file}: it begins with the weights of this step")


def start_from(run: Run[Any], parent: Parent) -> None:
    """Load a parent's weights into a fresh run, with its moments if asked, and note the descent.

    Raises CheckpointError when the parent is damaged or does not fit.
    """
    manifest = verify_checkpoint(parent.checkpoint)
    fill(weights_of(run.stage), parent.checkpoint, run.stage.weights_file)
    if parent.with_optimiser:
        moments = ready_moments(run.optimiser, read_document(parent.checkpoint, "optimiser.json"))
        fill(moments, parent.checkpoint, OPTIMISER_FILE)
    before = read_document(parent.checkpoint, RUN_DOCUMENT)["lineage"] if RUN_DOCUMENT in manifest.files else []
    run.lineage = [
        *before,
        {
            "checkpoint": str(parent.checkpoint),
            "step": manifest.step,
            "config_digest": manifest.config_digest,
            "weights_sha256": manifest.files[run.stage.weights_file].sha256,
            "with_optimiser": parent.with_optimiser,
        },
    ]
    run.say(f"starting from {parent.checkpoint}, step {manifest.step}")
