"""The trained two-tower model as a file."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pleinair.checkpoint.tensors import save_tensors
from pleinair.model.two_tower import TwoTower, TwoTowerConfig
from pleinair.records.errors import CheckpointError


def save_two_tower(model: TwoTower, path: Path) -> None:
    """Write the model as one safetensors file in half precision, which appears by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    try:
        save_tensors(state, unfinished, metadata={"two_tower": json.dumps(dataclasses.asdict(model.config))})
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
