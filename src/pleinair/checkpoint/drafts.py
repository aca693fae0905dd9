"""How a checkpoint appears: a hidden directory becomes a listed one in a single rename.

    open_draft -> files, each fsynced -> manifest, fsynced -> rename -> fsync the parent -> `latest` -> prune

A crash at any instruction leaves the old set, or the old set and one whole directory more. What a killed process left is
hidden, and `clear_leftovers` removes it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pleinair.checkpoint.manifests import (
    LATEST,
    MANIFEST,
    free_name,
    list_checkpoints,
    manifest_text,
    read_manifest,
    step_of,
)
from pleinair.checkpoint.retention import steps_to_keep
from pleinair.checkpoint.shards import write_durably
from pleinair.records.checkpoint import CheckpointManifest, FileDigest
from pleinair.records.errors import CheckpointError


def clear_leftovers(root: Path, spare: str | None = None) -> None:
    """Remove what killed processes left, but for drafts of the session `spare`. For the only writer of `root`."""
    for path in root.glob(".step-*"):
        if spare is None or f".{spare}-" not in path.name:
            shutil.rmtree(path, ignore_errors=True)
    (root / f".{LATEST}").unlink(missing_ok=True)


def draft_path(root: Path, step: int, token: str) -> Path:
    """The hidden directory of one attempt to save one step."""
    return root / f".step-{step:08d}.{token}.partial"


def open_draft(root: Path, step: int, token: str) -> Path:
    """Make that directory, `root` too. The other processes of a save may make it first."""
    draft = draft_path(root, step, token)
    draft.mkdir(parents=True, exist_ok=True)
    return draft


def to_json(document: Any) -> bytes:
    """A document as it is stored. Raises TypeError for what JSON cannot hold."""
    return (json.dumps(document, indent=2) + "\n").encode()


def write_documents(draft: Path, documents: Mapping[str, bytes]) -> dict[str, FileDigest]:
    """Write each under its name."""
    return {name: write_durably(draft / name, [memoryview(text)]) for name, text in documents.items()}


def publish(
    draft: Path,
    step: int,
    files: Mapping[str, FileDigest],
    *,
    config_digest: str,
    token: str,
    world_size: int = 1,
    keep: int,
    keep_every: int | None = None,
) -> Path:
    """Make a draft a checkpoint, move `latest` to it, prune; returns its directory. Raises OSError."""
    root = draft.parent
    manifests = readable_manifests(root)
    earlier = [path for path in manifests if step_of(path.name)[0] < step]
    parent = max(earlier, key=lambda path: (manifests[path].sequence, *step_of(path.name)), default=None)
    ancestors = [name for name in manifests[parent].lineage if (root / name).is_dir()] if parent else []
    manifest = CheckpointManifest(
        step=step,
        config_digest=config_digest,
        parent=parent.name if parent else None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sequence=1 + max((found.sequence for found in manifests.values()), default=0),
        lineage=(parent.name, *ancestors) if parent else (),
        world_size=world_size,
        token=token,
        files=dict(files),
    )
    write_durably(draft / MANIFEST, [memoryview(manifest_text(manifest).encode())])
    fsync_directory(draft)
    target = root / free_name(root, step)
    os.rename(draft, target)
    fsync_directory(root)
    try:
        _move_latest(root, target.name)
    except OSError:  # a disk so full that not even a name fits: what pruning frees is enough for it
        prune(root, target.name, manifest, keep=keep, keep_every=keep_every)
        _move_latest(root, target.name)
    prune(root, target.name, manifest, keep=keep, keep_every=keep_every)
    return target


def readable_manifests(root: Path) -> dict[Path, CheckpointManifest]:
    """The checkpoints whose manifest is sound; their files may be damaged."""
    found = {}
    for path in list_checkpoints(root):
        try:
            found[path] = read_manifest(path)
        except CheckpointError:
            continue
    return found


def prune(root: Path, name: str, manifest: CheckpointManifest, *, keep: int, keep_every: int | None) -> None:
    """Remove what the checkpoint `name` makes superfluous: ancestors beyond `keep`, and what no longer leads to it.

    Checkpoints of later steps stay: after a fall back they are damaged or given up, and go when the run has passed them.
    So do directories without a manifest, which nobody here made.
    """
    live = {step_of(each)[0]: each for each in (*reversed(manifest.lineage), name)}
    kept = {live[step] for step in steps_to_keep(list(live), keep, keep_every)}
    for path in list_checkpoints(root):
        if path.name not in kept and step_of(path.name) <= step_of(name) and (path / MANIFEST).exists():
            doomed = path.with_name(f".{path.name}.pruned")  # never half-removed under its own name
            try:
                os.rename(path, doomed)
            except OSError:
                continue
            shutil.rmtree(doomed, ignore_errors=True)


def _move_latest(root: Path, name: str) -> None:
    staging = root / f".{LATEST}"
    staging.unlink(missing_ok=True)
    write_durably(staging, [memoryview(f"{name}\n".encode())])
    os.replace(staging, root / LATEST)
    fsync_directory(root)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
