"""The state of a run as a checkpoint, and back: weights, head, optimiser, hooks, and where all of it came from.

<stage.weights_file>   head.safetensors (only while a phase has one)   optimiser.safetensors + .json
<hook.stored_file> ... what the stage stores beside                    run.json: step, rate, lineage, and why it ended early
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import load_into, newest_checkpoint, read_document, read_manifest, verify_checkpoint
from pleinair.records.errors import CheckpointError
from pleinair.training.optimisers import optimiser_tensors, ready_moments
from pleinair.training.reductions import from_rank_zero

if TYPE_CHECKING:
    from pleinair.checkpoint.writer import CheckpointWriter
    from pleinair.training.engine import Run

HEAD_FILE = "head.safetensors"
OPTIMISER_FILE = "optimiser.safetensors"
RUN_DOCUMENT = "run.json"
CONFIG_DOCUMENT = "config.json"


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The checkpoint that a run starts from, of another run."""

    checkpoint: Path
    """Its directory."""
    with_optimiser: bool = False
    """Go on with its moments too, to continue or to anneal a stable phase; else they start from zero."""


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


def save_run(run: Run[Any], writer: CheckpointWriter) -> float:
    """Hand the whole state after `run.step` steps to the writer; returns the seconds that training waited."""
    moments, layout = optimiser_tensors(run.optimiser)
    tensors = {run.stage.weights_file: weights_of(run.stage), OPTIMISER_FILE: moments, **run.stage.tensors()}
    if run.head is not None:
        tensors[HEAD_FILE] = run.head.state_dict()
    for hook in run.hooks:
        if isinstance(hook, StoredHook):
            tensors[hook.stored_file] = hook.tensors()
    documents = {"optimiser.json": layout, RUN_DOCUMENT: run_document(run), **run.documents, **run.stage.documents()}
    return writer.save(run.step, tensors, documents, config_digest=run.config_digest)


def run_document(run: Run[Any]) -> dict[str, Any]:
    """What a checkpoint tells of its run: `merge` and whoever continues it read this."""
    return {
        "step": run.step,
        "seed": run.config.seed,
        "learning_rate": run.learning_rate,
        "has_head": run.head is not None,
        "lineage": run.lineage,
        "stopped": run.stopped,
    }


def resume(run: Run[Any]) -> Path | None:
    """Load the newest whole checkpoint of the run and move it to its step; None when there is none."""
    newest = from_rank_zero(lambda: newest_checkpoint(run.run_dir / "checkpoints", run.say), run.mesh)
    if newest is None:
        return None
    manifest = read_manifest(newest)
    if manifest.config_digest != run.config_digest:
        raise CheckpointError(
            f"the checkpoint {newest} was made with other settings or data: give this run another name, or delete "
            f"{run.run_dir}"
        )
    run.go_to(manifest.step)
    load_into(newest, run.stage.weights_file, weights_of(run.stage))
    if run.head is not None:
        load_into(newest, HEAD_FILE, run.head.state_dict())
    load_into(newest, OPTIMISER_FILE, ready_moments(run.optimiser, read_document(newest, "optimiser.json")))
    told = read_document(newest, RUN_DOCUMENT)
    run.lineage, run.stopped = told["lineage"], told.get("stopped")
    if run.stopped is None:
        run.say(f"resuming at step {manifest.step} from {newest.name}")
    else:
        run.say(
            f"the run ended at step {manifest.step}: {run.stopped}; to go on all the same, start another run from {newest}"
        )
    return newest


def restore_hooks(run: Run[Any], checkpoint: Path) -> None:
    """Load the hooks' states; one that was not there when the checkpoint was written keeps what it began with."""
    files = read_manifest(checkpoint).files
    for hook in run.hooks:
        if isinstance(hook, StoredHook):
            if hook.stored_file in files:
                load_into(checkpoint, hook.stored_file, hook.tensors())
            else:
                run.say(f"{checkpoint.name} has no {hook.stored_file}: it begins with the weights of this step")


def start_from(run: Run[Any], parent: Parent) -> None:
    """Load a parent's weights into a fresh run, with its moments if asked, and note the descent.

    Raises CheckpointError when the parent is damaged, does not fit or has learned other latents.
    """
    manifest = verify_checkpoint(parent.checkpoint)
    if CONFIG_DOCUMENT in manifest.files:
        _require_same_latents(read_document(parent.checkpoint, CONFIG_DOCUMENT), run, parent.checkpoint)
    load_into(parent.checkpoint, run.stage.weights_file, weights_of(run.stage))
    if parent.with_optimiser:
        moments = ready_moments(run.optimiser, read_document(parent.checkpoint, "optimiser.json"))
        load_into(parent.checkpoint, OPTIMISER_FILE, moments)
    before = read_document(parent.checkpoint, RUN_DOCUMENT)["lineage"] if RUN_DOCUMENT in manifest.files else []
    run.lineage = [
        *before,
        {
            "checkpoint": str(parent.checkpoint),
            "step": manifest.step,
            "config_digest": manifest.config_digest,
            "identity": identity(manifest),
            "with_optimiser": parent.with_optimiser,
        },
    ]
    run.say(f"starting from {parent.checkpoint}, step {manifest.step}")


def _require_same_latents(parents: Mapping[str, Any], run: Run[Any], parent: Path) -> None:
    """Weights mean nothing in another latent space. Checkpoints and packs that are older than its name pass."""
    theirs, own = (one.get("latent_space") for one in (parents, run.stage.documents().get(CONFIG_DOCUMENT, {})))
    if theirs and own and theirs != own:
        raise CheckpointError(
            f"{parent} has learned latents of {theirs!r} and this run's pack holds {own!r}: pack the pictures with the "
            "autoencoder of the parent (weights and latent statistics), or train from random weights"
        )
