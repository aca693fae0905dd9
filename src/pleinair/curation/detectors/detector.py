"""A trained detector: a linear probe over named features, a threshold, and a manifest that says where it comes from.

<folder>/<name>/v<k>/manifest.json, probe.safetensors        appears by rename, is never written again
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pleinair.config import from_document, to_document
from pleinair.curation.detectors.features import Array, features_of
from pleinair.curation.detectors.logistic import LinearProbe
from pleinair.curation.detectors.measures import Measure
from pleinair.curation.pictures import Pixels
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.tensor_files import save_tensors

_NAME = re.compile(r"[a-z][a-z0-9_]{0,29}")
_PARTS = ("mean_D", "std_D", "weights_D")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a detector is, as its JSON file says."""

    name: str
    """Lower-case letters, digits and underscores: it is part of column names."""
    version: int
    prompt: str
    """What a picture must show, in words."""
    features: tuple[str, ...]
    """Feature sets, in the order they are put side by side."""
    threshold: float
    """A score over it drops a picture."""
    parent: int | None = None
    """The version this one follows."""
    labels: dict[str, int] = field(default_factory=dict)
    """`planted yes` -> number of examples it was fitted on; by origin, so that no label passes for a person's."""
    labelled_by: str = ""
    """The plant, the model or the text that labelled."""
    sources: tuple[str, ...] = ()
    """Sources of the pictures it was fitted on."""
    measures: tuple[Measure, ...] = ()
    """On pictures it never saw."""
    candidates: dict[str, float] = field(default_factory=dict)
    """Feature sets that were tried -> recall on held-out folds at the allowed false rate."""
    max_false_rate: float = 0.005
    """Share of good pictures it may drop, by which the threshold was chosen on held-out folds."""
    penalty: float = 0.0
    reads_provenance: bool = False
    """Whether what a file says of itself decides first (pleinair.curation.detectors.provenance)."""
    slope: float = 1.0
    offset: float = 0.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        check_name(self.name)
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"the threshold is {self.threshold}: give 0 to 1")

    @property
    def label(self) -> str:
        """`frame v1`."""
        return f"{self.name} v{self.version}"


@dataclass(frozen=True)
class Detector:
    """A manifest with its probe."""

    manifest: Manifest
    probe: LinearProbe

    def scores(self, pictures: Sequence[Pixels], cache: Path) -> Array:
        """(N,) in 0..1. Raises ConfigError for features this version does not know."""
        return self.probe.scores(features_of(pictures, self.manifest.features, cache))


def check_name(name: str) -> None:
    """Raises ConfigError for a name that cannot be part of a column's."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"the detector name {name!r} is no name: use up to 30 of a-z, 0-9 and _, a letter first")


def versions(folder: Path, name: str) -> list[int]:
    """The versions there are, ascending."""
    check_name(name)
    found = (re.fullmatch(r"v(\d+)", path.name) for path in (folder / name).glob("v*"))
    return sorted(int(match[1]) for match in found if match)


def names(folder: Path) -> list[str]:
    """Detectors in a folder, by name."""
    return sorted(path.name for path in folder.glob("*") if _NAME.fullmatch(path.name) and versions(folder, path.name))


def save_detector(detector: Detector, folder: Path) -> Path:
    """Write it under its name and version. Raises ConfigError when that version is there: it is never overwritten."""
    target = folder / detector.manifest.name / f"v{detector.manifest.version}"
    if target.exists():
        raise ConfigError(f"{target} is there already: a version is never overwritten, make the next one")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    try:
        staging.chmod(0o755)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(detector.probe, name))) for name in _PARTS}
        save_tensors(tensors, staging / "probe.safetensors")
        (staging / "manifest.json").write_text(json.dumps(to_document(detector.manifest), indent=1) + "\n")
        os.replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def load_detector(folder: Path, name: str, version: int | None = None) -> Detector:
    """A version, or the newest. Raises ConfigError when there is none, CheckpointError when it is damaged."""
    known = versions(folder, name)
    chosen = version if version is not None else next(iter(known[::-1]), None)
    if chosen is None or chosen not in known:
        told = ", ".join(map(str, known)) or "none"
        raise ConfigError(f"no detector {name!r} of version {chosen or 1} in {folder} (there: {told}): make it first")
    place = folder / name / f"v{chosen}"
    try:
        manifest = from_document(Manifest, json.loads((place / "manifest.json").read_text()))
        parts: Mapping[str, torch.Tensor] = load_file(place / "probe.safetensors")
        arrays = {part: parts[part].numpy().astype(np.float32) for part in _PARTS}
    except (OSError, ValueError, KeyError, SafetensorError) as damaged:
        raise CheckpointError(f"{place} is damaged ({damaged}): remove it and make the detector again") from damaged
    if (manifest.name, manifest.version) != (name, chosen) or len({array.shape for array in arrays.values()}) != 1:
        raise CheckpointError(f"{place} holds {manifest.label} or parts that do not fit: remove it and make it again")
    probe = LinearProbe(**arrays, bias=manifest.bias, slope=manifest.slope, offset=manifest.offset)
    return Detector(manifest, probe)
