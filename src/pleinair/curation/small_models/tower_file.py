"""The trained two-tower model as a file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pleinair.model.two_tower import TwoTower, TwoTowerConfig
from pleinair.records.errors import CheckpointError
from pleinair.tensor_files import save_tensors


@dataclass(frozen=True)
class ClaimCalibration:
    """What makes evidence for one kind of claim a probability: sigmoid(slope * evidence + offset)."""

    rivals: tuple[str, ...]
    """Texts that a claim's text is compared with."""
    slope: float
    offset: float


def save_two_tower(model: TwoTower, path: Path, claims: Mapping[str, ClaimCalibration] | None = None) -> None:
    """Write the model as one safetensors file in half precision, which appears by rename.

    `claims` are calibrations by kind of claim, where there are any.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    try:
        documents = {
            "two_tower": dataclasses.asdict(model.config),
            "claims": {kind: dataclasses.asdict(found) for kind, found in (claims or {}).items()},
        }
        save_tensors(state, unfinished, metadata={name: json.dumps(value) for name, value in documents.items()})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_two_tower(path: Path) -> TwoTower:
    """Read a model that `save_two_tower` wrote, in evaluation mode. Raises CheckpointError for anything else."""
    try:
        with safe_open(path, framework="pt") as file:
            config = TwoTowerConfig(**json.loads((file.metadata() or {})["two_tower"]))
            names: list[str] = file.keys()
            state = {name: file.get_tensor(name).float() for name in names}
        model = TwoTower(config)
        model.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as problem:
        raise CheckpointError(f"'{path}' holds no two-tower model ({problem}): run 'pleinair tower'") from problem
    return model.eval()


def load_claims(path: Path) -> dict[str, ClaimCalibration]:
    """The calibrations saved with a model, by kind of claim; none where there are none. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            stored = json.loads((file.metadata() or {}).get("claims", "{}"))
        return {
            kind: ClaimCalibration(tuple(one["rivals"]), one["slope"], one["offset"]) for kind, one in stored.items()
        }
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise CheckpointError(f"'{path}' holds no two-tower model ({problem}): run 'pleinair tower'") from problem
