"""Checkpoints on disk: directories that appear whole, are verified when read, and fall back to the one before.

    save:  a hidden directory, every file written, hashed and fsynced  ->  manifest.json  ->  rename  ->  prune   (drafts)
    load:  the newest directory whose every file has the size and hash of its manifest

A crash at any instruction leaves either the old set or the old set plus one whole directory. Tensors are safetensors,
everything else is JSON; nothing pickled is ever written or read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pleinair.checkpoint.drafts import clear_leftovers, open_draft, publish, to_json, write_documents
from pleinair.checkpoint.manifests import (
    MANIFEST,
    latest_name,
    list_checkpoints,
    read_manifest,
    refuse_pickled,
    step_of,
)
from pleinair.checkpoint.pieces import fill, read_index
from pleinair.checkpoint.shards import plan_shard, write_shard
from pleinair.records.checkpoint import CheckpointManifest, FileDigest
from pleinair.records.errors import CheckpointError
from pleinair.records.pickles import refuse_pickle
from pleinair.tensor_files import LazyTensor, tensor_bytes, write_tensors

__all__ = [
    "MANIFEST",
    "digest_file",
    "list_checkpoints",
    "load_into",
    "newest_checkpoint",
    "read_document",
    "read_manifest",
    "read_tensors",
    "save_checkpoint",
    "save_streamed",
    "verify_checkpoint",
]

NUM_VERIFIERS = min(8, os.cpu_count() or 1)


def save_checkpoint(
    root: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Any],
    *,
    config_digest: str,
    keep: int = 2,
    keep_every: int | None = None,
) -> Path:
    """Write `root/step-XXXXXXXX` with one safetensors file per entry of `tensors` and one JSON per document.

    For one process, which waits until it is durable; `CheckpointWriter` is for several, or for not waiting. Older
    checkpoints beyond the newest `keep`, and beyond one every `keep_every` steps, are removed afterwards. Raises OSError (a
    full disk, for example) with the older checkpoints untouched and nothing half-written left.
    """
    clear_leftovers(root)
    token = uuid.uuid4().hex[:12]
    draft = open_draft(root, step, token)
    try:
        files = write_documents(draft, {name: to_json(document) for name, document in documents.items()})
        for name, state in tensors.items():
            held = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
            layout = plan_shard(held)
            files[name] = write_shard(draft / name, layout, [tensor_bytes(held[key]) for key in layout.spans])
        return publish(draft, step, files, config_digest=config_digest, token=token, keep=keep, keep_every=keep_every)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def save_streamed(
    root: Path,
    tensors: Mapping[str, Mapping[str, LazyTensor]],
    documents: Mapping[str, Any],
    *,
    config_digest: str,
) -> Path:
    """Write `root/step-00000000` of tensors that are read one at a time, so that they may be larger than memory.

    For weights that come from elsewhere. Raises OSError as `save_checkpoint`.
    """
    clear_leftovers(root)
    token = uuid.uuid4().hex[:12]
    draft = open_draft(root, 0, token)
    try:
        files = write_documents(draft, {name: to_json(document) for name, document in documents.items()})
        for name, state in tensors.items():
            write_tensors(draft / name, state)
            files[name] = digest_file(draft / name)
        return publish(draft, 0, files, config_digest=config_digest, token=token, keep=2)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def newest_checkpoint(root: Path, on_damage: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint that verifies, or None when there is none; each damaged one on the way is reported.

    The newest is the one saved last, which `latest` names too; that file is not needed, and wrong or gone changes nothing.
    """
    candidates: list[tuple[tuple[int, ...], Path]] = []
    for path in list_checkpoints(root):
        try:
            candidates.append(((read_manifest(path).sequence, *step_of(path.name)), path))
        except CheckpointError as damage:
            on_damage(f"{damage}; falling back to the checkpoint before it")
    named = latest_name(root)
    if named is not None and not (root / named).is_dir():
        on_damage(f"{root / 'latest'} names {named}, which is not there; falling back to the checkpoint before it")
    for _, candidate in sorted(candidates, reverse=True):
        try:
            verify_checkpoint(candidate)
        except CheckpointError as damage:
            on_damage(f"{damage}; falling back to the checkpoint before it")
            continue
        return candidate
    return None


def verify_checkpoint(directory: Path) -> CheckpointManifest:
    """The manifest, once every file has been found with its size and hash. Raises CheckpointError naming the file.

    Sizes first, then the hashes in parallel.
    """
    manifest = read_manifest(directory)
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.exists():
            raise CheckpointError(f"checkpoint {directory} is damaged: {name} is missing")
        if (size := path.stat().st_size) != expected.num_bytes:
            raise CheckpointError(f"checkpoint {directory} is damaged: {name} has {size} of {expected.num_bytes} bytes")
    with ThreadPoolExecutor(NUM_VERIFIERS, "verify") as pool:
        for name, found in zip(
            manifest.files, pool.map(_digest_of, (directory / n for n in manifest.files)), strict=True
        ):
            if found != manifest.files[name]:
                raise CheckpointError(f"checkpoint {directory} is damaged: {name} does not match its hash")
    return manifest


def load_into(directory: Path, name: str, state: Mapping[str, Tensor], *, strict: bool = True) -> int:
    """Fill tensors in place from `name` of a checkpoint, bit for bit; returns the bytes read.

    They may be DTensors of any sharding on any number of ranks, whatever wrote the file: each process reads the byte ranges
    of its own part. Hashes are not checked here (`newest_checkpoint` has). With `strict` the names must be those of the
    file, without it the file may hold more. Raises CheckpointError for names, shapes and dtypes that differ, before
    anything is changed, and for a file that cannot be read, with some tensors filled.
    """
    refuse_pickle(Path(name))
    index = read_index(directory, name)
    where = f"{name} of checkpoint {directory}"
    if missing := sorted(set(state) - set(index)):
        raise CheckpointError(f"{where} lacks '{missing[0]}' ({len(missing)} missing): it belongs to another model")
    if strict and (more := sorted(set(index) - set(state))):
        raise CheckpointError(f"{where} also holds '{more[0]}' ({len(more)} more): it belongs to another model")
    for key, tensor in state.items():
        if (found := (index[key].dtype, index[key].shape)) != (tensor.dtype, tuple(tensor.shape)):
            raise CheckpointError(
                f"'{key}' is {found[0]} {list(found[1])} in {where}, not {tensor.dtype} {list(tensor.shape)}: "
                "it belongs to another model"
            )
    return fill(directory, index, state)


def read_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """Whole tensors of one file name of a checkpoint, put together where several ranks wrote it.

    Raises CheckpointError when it is missing or unreadable.
    """
    refuse_pickled(directory)
    refuse_pickle(Path(name))
    index = read_index(directory, name)
    state = {key: torch.empty(tensor.shape, dtype=tensor.dtype) for key, tensor in index.items()}
    fill(directory, index, state)
    return state


def read_document(directory: Path, name: str) -> Any:
    """One JSON document of a checkpoint. Raises CheckpointError when it is missing or unreadable."""
    refuse_pickled(directory)
    try:
        return json.loads((directory / name).read_text())
    except (OSError, json.JSONDecodeError) as unreadable:
        raise CheckpointError(f"checkpoint {directory} has no readable {name} ({unreadable})") from unreadable


def digest_file(path: Path) -> FileDigest:
    """Size and SHA-256, read in chunks."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileDigest(num_bytes=os.fstat(file.fileno()).st_size, sha256=digest.hexdigest())


def _digest_of(path: Path) -> FileDigest | None:
    """As `digest_file`; None where the disk cannot read it."""
    try:
        return digest_file(path)
    except OSError:
        return None
