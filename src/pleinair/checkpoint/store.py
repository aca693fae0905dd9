"""Checkpoints on disk: directories that appear whole, are verified when read, and fall back to the one before.

    save:  .step-00000120.partial/  write, fsync, hash  ->  manifest.json  ->  rename to step-00000120/  ->  prune
    load:  newest step-*/ whose every file has the size and hash of its manifest

A crash at any instruction leaves either the old set or the old set plus one whole directory. Tensors are safetensors,
everything else is JSON; nothing pickled is ever written or read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pleinair.checkpoint.tensors import save_tensors
from pleinair.config import from_document, to_document
from pleinair.records.checkpoint import CheckpointManifest, FileDigest
from pleinair.records.errors import CheckpointError, ConfigError

MANIFEST = "manifest.json"


def save_checkpoint(
    root: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    documents: Mapping[str, Any],
    *,
    config_digest: str,
    keep: int = 2,
) -> Path:
    """Write `root/step-XXXXXXXX` with one safetensors file per entry of `tensors` and one JSON per document.

    Older checkpoints beyond the newest `keep` are removed afterwards. Raises OSError (a full disk, for example) with
    the older checkpoints untouched and nothing half-written left.
    """
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"step-{step:08d}"
    staging = root / f".{target.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    earlier = list_checkpoints(root)
    try:
        staging.mkdir()
        for name, state in tensors.items():
            save_tensors({key: value.contiguous() for key, value in state.items()}, staging / name)
        for name, document in documents.items():
            (staging / name).write_text(json.dumps(document, indent=2) + "\n")
        manifest = CheckpointManifest(
            step=step,
            config_digest=config_digest,
            parent=earlier[-1].name if earlier else None,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            files={path.name: digest_file(path) for path in sorted(staging.iterdir())},
        )
        (staging / MANIFEST).write_text(json.dumps(to_document(manifest), indent=2) + "\n")
        for path in staging.iterdir():
            _fsync(path)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staging, target)
        _fsync(root)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    for old in list_checkpoints(root)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(root: Path) -> list[Path]:
    """Checkpoint directories, oldest first; half-written ones are never among them."""
    return sorted(root.glob("step-*")) if root.exists() else []


def newest_checkpoint(root: Path, on_damage: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint that verifies, or None when there is none; each damaged one on the way is reported."""
    for candidate in reversed(list_checkpoints(root)):
        try:
            verify_checkpoint(candidate)
        except CheckpointError as damage:
            on_damage(f"{damage}; falling back to the checkpoint before it")
            continue
        return candidate
    return None


def verify_checkpoint(directory: Path) -> CheckpointManifest:
    """The manifest, once every file has been found with its size and hash. Raises CheckpointError naming the file."""
    manifest = read_manifest(directory)
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.exists():
            raise CheckpointError(f"checkpoint {directory} is damaged: {name} is missing")
        if digest_file(path) != expected:
            raise CheckpointError(f"checkpoint {directory} is damaged: {name} does not match its hash")
    return manifest


def read_manifest(directory: Path) -> CheckpointManifest:
    """The manifest alone, files unverified. Raises CheckpointError when it is missing or unreadable."""
    try:
        return from_document(CheckpointManifest, json.loads((directory / MANIFEST).read_text()))
    except (OSError, json.JSONDecodeError, ConfigError, UnicodeDecodeError) as unreadable:
        raise CheckpointError(
            f"{directory} is not a checkpoint: its {MANIFEST} cannot be read ({unreadable})"
        ) from unreadable


def read_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """Tensors of one safetensors file of a checkpoint. Raises CheckpointError when the file is missing."""
    if not (directory / name).exists():
        raise CheckpointError(f"checkpoint {directory} has no {name}: it belongs to another kind of training")
    tensors: dict[str, Tensor] = load_file(directory / name)
    return tensors


def read_document(directory: Path, name: str) -> Any:
    """One JSON document of a checkpoint."""
    try:
        return json.loads((directory / name).read_text())
    except (OSError, json.JSONDecodeError) as unreadable:
        raise CheckpointError(f"checkpoint {directory} has no readable {name} ({unreadable})") from unreadable


def digest_file(path: Path) -> FileDigest:
    """Size and SHA-256, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return FileDigest(num_bytes=path.stat().st_size, sha256=digest.hexdigest())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
