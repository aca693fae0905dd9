"""Checkpoint directories by name, and the manifest in each.

    ROOT/latest                        name of the newest one, for people and tools; moved last, by rename
         step-00000120/                whole: it appeared by rename
         step-00000120.1/              the same step, saved again after the run went back: no directory is used twice
         .step-00000240.<word>.partial/    being written, or left by a killed process

A manifest is sealed: its own SHA-256 stands in it, so that an edited one is damage like any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from pleinair.config import from_document, to_document
from pleinair.records.checkpoint import CheckpointManifest
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.records.pickles import refuse_pickle

MANIFEST = "manifest.json"
LATEST = "latest"
NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")


def list_checkpoints(root: Path) -> list[Path]:
    """Checkpoint directories, earliest step first; half-written ones are never among them."""
    found = [path for path in root.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: step_of(path.name))


def step_of(name: str) -> tuple[int, int]:
    """Step and generation that a directory's name says. Raises ValueError for another name."""
    if (match := NAME.fullmatch(name)) is None:
        raise ValueError(f"'{name}' is no name of a checkpoint: step-00000120 is one")
    return int(match[1]), int(match[2] or 0)


def free_name(root: Path, step: int) -> str:
    """A name that no checkpoint of this step has had, as far as the directory knows."""
    taken = [step_of(path.name)[1] for path in list_checkpoints(root) if step_of(path.name)[0] == step]
    return f"step-{step:08d}" + (f".{max(taken) + 1}" if taken else "")


def latest_name(root: Path) -> str | None:
    """What `latest` says; None when there is none, or it cannot be read. The directory may be damaged or gone."""
    try:
        return (root / LATEST).read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def read_manifest(directory: Path) -> CheckpointManifest:
    """The manifest alone, files unverified. Raises CheckpointError when it is missing, unreadable or was edited."""
    refuse_pickled(directory)
    try:
        document = json.loads((directory / MANIFEST).read_text())
        seal = document.pop("seal", None)
        manifest = from_document(CheckpointManifest, document)
    except (OSError, ValueError, AttributeError, TypeError, ConfigError) as unreadable:
        raise CheckpointError(
            f"{directory} is not a checkpoint: its {MANIFEST} cannot be read ({unreadable})"
        ) from unreadable
    if seal != _seal(document) and (seal is not None or "sequence" in document):  # earlier layouts had neither
        raise CheckpointError(f"checkpoint {directory} is damaged: {MANIFEST} does not match its seal")
    for name in manifest.files:
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise CheckpointError(
                f"checkpoint {directory} is damaged: {MANIFEST} names the file '{name}' outside of it"
            )
    return manifest


def manifest_text(manifest: CheckpointManifest) -> str:
    """The contents of `manifest.json`, sealed."""
    document = to_document(manifest)
    return json.dumps({**document, "seal": _seal(document)}, indent=2) + "\n"


def identity(manifest: CheckpointManifest) -> str:
    """A word that no other checkpoint has: its manifest's seal, which covers the hash of every file."""
    return _seal(to_document(manifest))


def _seal(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def refuse_pickled(path: Path) -> None:
    """Raises CheckpointError, unopened, for a pickle, or for a directory that another tool filled with pickles."""
    refuse_pickle(path)
    if path.is_dir() and not (path / MANIFEST).exists():
        for inside in sorted(path.iterdir()):
            refuse_pickle(inside)
