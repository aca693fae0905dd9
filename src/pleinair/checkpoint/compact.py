"""Models small enough to ship: 8-bit weights and their configuration in one safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pleinair.quantise import dequantise, quantise_rowwise
from pleinair.records.errors import CheckpointError
from pleinair.records.pickles import refuse_pickle
from pleinair.tensor_files import save_tensors


def save_compact(path: Path, state: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write weights (8 bits each, see `quantise`) and a JSON document as one file, which appears by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_tensors(quantise_rowwise(state), unfinished, metadata={"document": json.dumps(document)})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_compact(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Float32 weights and the document written by `save_compact`, whose key `kind` must be there.

    Raises CheckpointError when the file is missing, damaged, a pickle, or holds something else.
    """
    document = read_document(path, kind)
    try:
        with safe_open(path, framework="pt") as file:
            state = dequantise({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError) as problem:
        raise _unreadable(path, problem) from problem
    return state, document


def read_document(path: Path, kind: str) -> dict[str, Any]:
    """The document alone. Raises as `load_compact`."""
    refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            document: dict[str, Any] = json.loads((file.metadata() or {}).get("document", "{}"))
    except (OSError, SafetensorError, json.JSONDecodeError) as problem:
        raise _unreadable(path, problem) from problem
    if kind not in document:
        raise CheckpointError(f"{path} holds {', '.join(document) or 'nothing'}, not a {kind}: give another file")
    return document


def _unreadable(path: Path, problem: Exception) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({problem}): install the package again, or train one")
