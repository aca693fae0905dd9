"""The text projection as it is stored beside text features and weights: what a prompt must go through to mean the same."""

from __future__ import annotations

from pathlib import Path

from pleinair.checkpoint.store import read_manifest, read_tensors
from pleinair.model.text_encoder import FeatureProjection

PROJECTION_FILE = "feature_projection.safetensors"


def read_projection(directory: Path) -> FeatureProjection:
    """The text projection of a pack, a checkpoint or a folder of weights."""
    return FeatureProjection.of(read_tensors(directory, PROJECTION_FILE))


def projection_of(parent: Path | None) -> FeatureProjection | None:
    """The text projection that a parent was trained on, if there is one."""
    if parent is None or PROJECTION_FILE not in read_manifest(parent).files:
        return None
    return read_projection(parent)
