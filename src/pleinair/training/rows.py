"""Batches as rows: a batch is a tensor, or a dataclass whose tensors, lists and packed prompts have one entry per row."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from pleinair.packs.packed_loader import PackedPrompts

Batch = TypeVar("Batch")


def num_rows(batch: Any) -> int:
    """Rows of a batch."""
    return len(batch if isinstance(batch, Tensor) else next(iter(_columns(batch).values())))


def part(batch: Batch, first: int, last: int) -> Batch:
    """Rows `first` to `last` as a batch of the same kind; views where there can be."""
    if isinstance(batch, Tensor):
        return cast(Batch, batch[first:last])
    changed = {name: value[first:last] for name, value in _columns(batch).items()}
    return dataclasses.replace(batch, **changed)  # type: ignore[type-var]


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device; itself when they are there."""
    if device.type == "cpu":
        return batch
    if isinstance(batch, Tensor):
        return cast(Batch, batch.to(device, non_blocking=True))
    tensors = {name: value for name, value in _columns(batch).items() if not isinstance(value, list)}
    moved = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
    return dataclasses.replace(batch, **moved)  # type: ignore[type-var]


def _columns(batch: Any) -> dict[str, Any]:
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, (Tensor, list, PackedPrompts))}
