"""Merging checkpoints offline, tensor by tensor in float32: averages of one run, and specialists of one parent.

    average      theta = sum w_i theta_i            the last checkpoints of a stable phase (PMA, in place of an EMA)
    combine      theta = theta_0 + sum a_i (theta_i - theta_0)       models fine-tuned from one parent, per domain

Nothing but the tensor at hand is in memory: inputs are mapped, the output is written in order. What must not be averaged is
refused: other settings, other tensors, other learning rates, another parent.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pleinair.checkpoint.drafts import fsync_directory, to_json, write_documents
from pleinair.checkpoint.manifests import MANIFEST, identity, manifest_text
from pleinair.checkpoint.pieces import INDEX, TensorPieces, fill, read_index, tensor_files
from pleinair.checkpoint.store import digest_file, read_document, verify_checkpoint
from pleinair.records.checkpoint import CheckpointManifest
from pleinair.records.errors import CheckpointError
from pleinair.tensor_files import LazyTensor, write_tensors

Weighting = Literal["uniform", "linear", "ema"]
RUN_DOCUMENT, CONFIG_DOCUMENT, ORIGIN_DOCUMENT = "run.json", "config.json", "origin.json"
TRAINING_FILES = frozenset(
    {"optimiser.safetensors", "optimiser.json", "head.safetensors", "ema.safetensors", RUN_DOCUMENT, ORIGIN_DOCUMENT}
)
"""What a merged checkpoint does not take over: it is for use or for a new run, not to resume from, and has its own origin."""
EMA_RATIO = 0.8
"""With `ema`, each checkpoint's weight over that of the one after it."""
Merge = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Source:
    """A verified checkpoint and what it tells of its run."""

    directory: Path
    manifest: CheckpointManifest
    run: dict[str, Any]

    @property
    def tensor_files(self) -> list[str]:
        """Files of tensors to merge."""
        return [name for name in tensor_files(self.directory, self.manifest.files) if name not in TRAINING_FILES]


def merge_checkpoints(paths: Sequence[Path], weights: Weighting = "uniform", *, out: Path) -> Path:
    """Average checkpoints of one run into the new directory `out`; `linear` and `ema` weigh later steps more.

    Raises CheckpointError when they are not of one run at one learning rate, or one is damaged.
    """
    sources = sorted((open_source(path) for path in paths), key=lambda source: source.manifest.step)
    if len(sources) < 2:
        raise CheckpointError(f"{len(sources)} checkpoint given: an average needs at least two")
    _check_one_run(sources)
    shares = shares_of(len(sources), weights)
    inputs = [
        {"checkpoint": str(source.directory), "step": source.manifest.step, "share": share}
        for source, share in zip(sources, shares, strict=True)
    ]
    return _write(
        sources,
        lambda tensors: weighted_sum(tensors, shares),
        out,
        {"merge": weights, "inputs": inputs},
        sources[-1].run,
        {},
    )


def combine_checkpoints(
    parent: Path,
    children: Sequence[Path],
    amounts: Sequence[float],
    *,
    out: Path,
    documents: Mapping[str, Any] | None = None,
) -> Path:
    """The parent plus `amounts[i]` of what changed from it to each child, into the new directory `out`.

    `documents` are JSON that it holds beside the last child's, or in the place of those.

    Raises CheckpointError when a child does not descend from this parent's weights, or one is damaged.
    """
    if not children or len(children) != len(amounts):
        raise CheckpointError(f"{len(children)} checkpoints and {len(amounts)} amounts: give one amount for each")
    origin, sources = open_source(parent), [open_source(path) for path in children]
    for source in sources:
        _check_descent(origin, source)
        _check_tensors(origin, source)
    inputs = [{"checkpoint": str(path), "amount": amount} for path, amount in zip(children, amounts, strict=True)]

    def combined(tensors: Sequence[Tensor]) -> Tensor:
        base, total = tensors[0].float(), tensors[0].float().clone()
        for amount, tensor in zip(amounts, tensors[1:], strict=True):
            total.add_(tensor.float() - base, alpha=amount)
        return total

    document = {"merge": "combine", "parent": str(parent), "inputs": inputs}
    return _write([origin, *sources], combined, out, document, origin.run, documents or {})


def shares_of(count: int, weights: Weighting) -> list[float]:
    """Shares that add up to 1, oldest first."""
    rule: dict[str, Callable[[int], float]] = {
        "uniform": lambda place: 1.0,
        "linear": lambda place: place + 1.0,
        "ema": lambda place: EMA_RATIO ** (count - 1 - place),
    }
    if weights not in rule:
        raise CheckpointError(f"weights is {weights!r}: give uniform, linear or ema")
    raw = [rule[weights](place) for place in range(count)]
    return [value / sum(raw) for value in raw]


def weighted_sum(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """sum w_i theta_i in float32."""
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor, share in zip(tensors, shares, strict=True):
        total.add_(tensor.float(), alpha=share)
    return total


def open_source(directory: Path) -> Source:
    """A checkpoint with every file verified. Raises CheckpointError."""
    manifest = verify_checkpoint(directory)
    run = read_document(directory, RUN_DOCUMENT) if RUN_DOCUMENT in manifest.files else {}
    return Source(directory, manifest, run)


def _check_one_run(sources: Sequence[Source]) -> None:
    first = sources[0]
    for other in sources[1:]:
        _check_tensors(first, other)
        pair = f"{first.directory.name} and {other.directory.name}"
        if other.manifest.config_digest != first.manifest.config_digest:
            raise CheckpointError(f"{pair} were trained with other settings or data: average checkpoints of one run")
        if other.run.get("learning_rate") != first.run.get("learning_rate"):
            raise CheckpointError(
                f"{pair} were trained at learning rates {first.run.get('learning_rate')} and "
                f"{other.run.get('learning_rate')}: average checkpoints of the stable phase"
            )
        if other.run.get("has_head") != first.run.get("has_head"):
            raise CheckpointError(f"only one of {pair} was trained beside a head: average checkpoints of one phase")


def _check_descent(origin: Source, child: Source) -> None:
    lineage = child.run.get("lineage", [])
    if not any(ancestor["identity"] == identity(origin.manifest) for ancestor in lineage):
        came_from = lineage[-1]["checkpoint"] if lineage else "random weights"
        raise CheckpointError(
            f"{child.directory} does not descend from {origin.directory} but from {came_from}: combine models of one parent"
        )


def _check_tensors(first: Source, other: Source) -> None:
    if first.tensor_files != other.tensor_files:
        differing = sorted(set(first.tensor_files) ^ set(other.tensor_files))
        raise CheckpointError(f"{differing[0]} is only in one of {first.directory} and {other.directory}")
    for name in first.tensor_files:
        shapes = [_shapes(source.directory, name) for source in (first, other)]
        if shapes[0] != shapes[1]:
            keys = sorted(
                key for key in shapes[0].keys() | shapes[1].keys() if shapes[0].get(key) != shapes[1].get(key)
            )
            raise CheckpointError(
                f"{name} has another {keys[0]} in {first.directory} than in {other.directory}: merge models of one shape"
            )
    if _configuration(first, other) != _configuration(other, first):
        raise CheckpointError(f"{first.directory} and {other.directory} hold models of other configurations")


def _configuration(source: Source, other: Source) -> dict[str, Any]:
    """What a source says its model is; a checkpoint that is older than the name of its latents fits those of any.

    At which timesteps it was trained makes it no other model.
    """
    documents, theirs = (
        {name: read_document(one.directory, name) for name in _kept_documents(one)} for one in (source, other)
    )
    config, left_out = documents.get(CONFIG_DOCUMENT, {}), {"timesteps"}
    if not (config.get("latent_space") and theirs.get(CONFIG_DOCUMENT, {}).get("latent_space")):
        left_out.add("latent_space")
    documents[CONFIG_DOCUMENT] = {name: value for name, value in config.items() if name not in left_out}
    return documents


def _kept_documents(source: Source) -> list[str]:
    left_out = TRAINING_FILES | {INDEX}
    return sorted(name for name in source.manifest.files if name.endswith(".json") and name not in left_out)


def _shapes(directory: Path, name: str) -> dict[str, tuple[int, ...]]:
    return {key: pieces.shape for key, pieces in read_index(directory, name).items()}


def _write(
    sources: Sequence[Source],
    merge: Merge,
    out: Path,
    document: dict[str, Any],
    run: dict[str, Any],
    more: Mapping[str, Any],
) -> Path:
    """A checkpoint directory that appears by rename, with the last source's step and other documents."""
    if out.exists():
        raise CheckpointError(f"{out} exists already: remove it or name another place")
    last = sources[-1]
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        for name in last.tensor_files:
            stream_tensors([source.directory for source in sources], name, merge, staging / name)
        kept = {"seed": run.get("seed"), "lineage": run.get("lineage", []), **document}
        documents = {name: (last.directory / name).read_bytes() for name in _kept_documents(last)}
        told = {name: to_json(one) for name, one in more.items()}
        write_documents(staging, {**documents, **told, RUN_DOCUMENT: to_json(kept)})
        manifest = CheckpointManifest(
            step=last.manifest.step,
            config_digest=last.manifest.config_digest,
            parent=None,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files={path.name: digest_file(path) for path in sorted(staging.iterdir())},
        )
        write_documents(staging, {MANIFEST: manifest_text(manifest).encode()})
        fsync_directory(staging)
        os.replace(staging, out)
        fsync_directory(out.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return out


def stream_tensors(directories: Sequence[Path], name: str, merge: Merge, output: Path) -> None:
    """Write a safetensors file whose every tensor is merged from the inputs', one tensor in memory at a time.

    The inputs may be in pieces. Floating tensors are written as float32; others must be equal and are copied. Frozen ones
    that are equal stay equal.
    """
    indices = [read_index(directory, name) for directory in directories]

    def merged(key: str) -> Tensor:
        return _merged(key, [_read(*place, key) for place in zip(directories, indices, strict=True)], merge)

    write_tensors(
        output,
        {
            key: LazyTensor(
                torch.float32 if pieces.dtype.is_floating_point else pieces.dtype,
                pieces.shape,
                functools.partial(merged, key),
            )
            for key, pieces in indices[0].items()
        },
    )


def _read(directory: Path, index: Mapping[str, TensorPieces], key: str) -> Tensor:
    tensor = torch.empty(index[key].shape, dtype=index[key].dtype)
    fill(directory, index, {key: tensor})
    return tensor


def _merged(key: str, tensors: Sequence[Tensor], merge: Merge) -> Tensor:
    equal = all(torch.equal(a, b) for a, b in itertools.pairwise(tensors))
    if not tensors[0].is_floating_point():
        if not equal:
            raise CheckpointError(f"{key} holds whole numbers that differ: such tensors have no average")
        return tensors[0]
    return tensors[0].float() if equal else merge(tensors)
