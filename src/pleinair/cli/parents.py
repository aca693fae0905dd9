"""Where a run starts from: a checkpoint, a run, weights of other programs or a packaged model, all as one checkpoint.

    parent = "runs/demo"  |  ".../step-00001300"  |  "raw.safetensors"  |  "k2/"  |  "drawings-64"
                 newest --^     as it is --^            written once below runs/parents --^

What is no checkpoint yet becomes one, named by what is in it: all runs that start there share one ancestor, so `merge`
knows them as children of one parent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pleinair.checkpoint.manifests import MANIFEST, identity
from pleinair.checkpoint.store import (
    digest_file,
    newest_checkpoint,
    read_document,
    read_manifest,
    save_streamed,
)
from pleinair.cli.latents import SAID, latents_beside, latents_of_package
from pleinair.cli.places import shipped
from pleinair.cli.workspace import Workspace
from pleinair.cluster.locks import only_one
from pleinair.config import config_digest, from_document, to_document
from pleinair.model.formats.configs import resolved
from pleinair.model.text_encoder import FeatureProjection
from pleinair.model.transformer import TransformerConfig
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.records.pickles import refuse_pickle
from pleinair.sampling.checkpoints import WEIGHTS_FILE
from pleinair.sampling.projection import PROJECTION_FILE, projection_of, read_projection
from pleinair.tensor_files import LazyTensor, in_memory

IMPORT_SECONDS = 600.0
"""How long one process waits for another that is importing the same weights."""


def parent_of(work: Workspace) -> Path | None:
    """The checkpoint that the recipe starts from, or None; it fits the recipe's transformer.

    Raises CheckpointError when nothing is there, ConfigError naming the size that differs.
    """
    if work.recipe.parent is None:
        return None
    checkpoint = find_checkpoint(work.recipe.parent, work.run_dir.parent)
    theirs, ours = (to_document(resolved(one)) for one in (config_of(checkpoint), work.recipe.transformer))
    for name, value in ours.items():
        if theirs[name] != value:
            raise ConfigError(
                f"the parent {checkpoint} has {name} {theirs[name]} and the recipe {value}: "
                f"set transformer.{name}={theirs[name]}, or name another parent"
            )
    return checkpoint


def config_of(checkpoint: Path) -> TransformerConfig:
    """The transformer's configuration as a checkpoint tells it."""
    return from_document(TransformerConfig, read_document(checkpoint, "config.json")["transformer"])


def find_checkpoint(place: str, runs: Path) -> Path:
    """The checkpoint at a place; weights in other layouts are imported below `runs`. Raises CheckpointError.

    A pickle is refused first: nothing is read, hashed or written.
    """
    path = Path(place)
    refuse_pickle(path)
    if not path.exists() and path.name == place and shipped(place).exists():
        path = shipped(place)
    if (path / MANIFEST).exists():
        return path.resolve()
    if (path / "checkpoints").is_dir():
        newest = newest_checkpoint(path / "checkpoints")
        if newest is None:
            raise CheckpointError(f"the run {path} has no checkpoint yet: train it first, or name another parent")
        return newest.resolve()
    if not path.exists():
        raise CheckpointError(f"there is no model at {place}: give a checkpoint, a run, weights, or drawings-64")
    return _imported(path, runs / "parents")


def _imported(path: Path, parents: Path) -> Path:
    """Weights as a checkpoint, written once for all runs that start from them; refused before they are hashed."""
    latents = _latents_told(path)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    content = config_digest([latents, *[[file.name, to_document(digest_file(file))] for file in files]])
    root = parents / f"{path.stem}-{content[:12]}"
    root.mkdir(parents=True, exist_ok=True)
    with only_one(root, patience_seconds=IMPORT_SECONDS):
        found = newest_checkpoint(root)
        if found is None:
            config, weights, projection = _open_weights(path)
            tensors = {WEIGHTS_FILE: {name: values.to(torch.float32) for name, values in weights.items()}}
            if projection is not None:
                tensors[PROJECTION_FILE] = _in_memory_state(projection)
            documents = {"config.json": {"transformer": to_document(config), SAID: latents}}
            found = save_streamed(root, tensors, documents, config_digest=content)
    return found.resolve()


def _latents_told(path: Path) -> str:
    """Whose latents weights have learned, as far as they tell. Raises CheckpointError for what is no transformer."""
    from pleinair.model.formats import open_weights

    if path.is_file() and _is_package(path):
        return latents_of_package(path)
    weights = open_weights(path)
    return weights.latent_space or (latents_beside(path) if path.is_dir() else "")


def _open_weights(path: Path) -> tuple[TransformerConfig, dict[str, LazyTensor], FeatureProjection | None]:
    """Weights in any layout, those of a file still unread, and the text projection where one is stored with them."""
    from pleinair.model.formats import open_weights
    from pleinair.sampling.shipped import load_model

    if path.is_file() and _is_package(path):
        model, projection, _ = load_model(path)
        return model.config, _in_memory_state(model), projection
    beside = path / PROJECTION_FILE if path.is_dir() else path.with_name(PROJECTION_FILE)
    opened = open_weights(path)
    return opened.config, opened.tensors, read_projection(beside.parent) if beside.exists() else None


def _in_memory_state(module: nn.Module) -> dict[str, LazyTensor]:
    """A module's tensors, which are here already."""
    return {name: in_memory(values) for name, values in module.state_dict().items()}


def _is_package(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return "document" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def require_same_projection(parent: Path | None, pack: Path, packed: FeatureProjection) -> None:
    """Raise ConfigError when a pack's text features mean something else than those the parent was trained on."""
    theirs = projection_of(parent)
    if theirs is None:
        return
    pairs = zip(theirs.state_dict().values(), packed.state_dict().values(), strict=True)
    if not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs):
        raise ConfigError(
            f"the pack {pack} holds text features of another projection than the parent {parent} was trained on: "
            "pack again, naming the same parent"
        )


def parent_words(parent: Path | None) -> list[Any]:
    """What a run's digest says of its parent: another one is another run."""
    return [] if parent is None else [identity(read_manifest(parent))]
