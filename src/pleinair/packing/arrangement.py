"""From a list of keys to the rows of a pack in their final order, shape by shape."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pleinair.config import config_digest
from pleinair.packing.buckets import Bucket, BucketConfig, aspect_buckets, assign
from pleinair.packs.order import permutation
from pleinair.records.errors import PackError

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Listed:
    """The pictures that are to be packed, N of them with V captions each."""

    keys: pa.ChunkedArray
    """Distinct."""
    repeats_N: Ints
    """How often each comes in one pass."""
    widths_N: Ints
    """Of the pictures, in pixels."""
    heights_N: Ints
    caption_weights_NV: npt.NDArray[np.float32]
    """Chance of each caption."""

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, chosen: npt.NDArray[np.bool_]) -> Listed:
        """The chosen ones."""
        numbers = self.repeats_N[chosen], self.widths_N[chosen], self.heights_N[chosen]
        return Listed(self.keys.filter(pa.array(chosen)), *numbers, self.caption_weights_NV[chosen])


def read_list(path: Path) -> Listed:
    """The list of a mix: a Parquet file of key, repeats, width, height and caption_weights.

    Raises PackError naming the column or the value that is missing or wrong.
    """
    wanted = ["key", "repeats", "width", "height", "caption_weights"]
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as unreadable:
        raise PackError(f"{path} is not a list of pictures: {unreadable}; make one from a mix") from unreadable
    if missing := [name for name in wanted if name not in table.column_names]:
        raise PackError(
            f"the list {path} has no column {missing[0]}, only {', '.join(table.column_names)}: make it again"
        )
    weights = table["caption_weights"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    repeats, widths, heights = (table[name].to_numpy().astype(np.int64) for name in wanted[1:4])
    by_caption = weights.astype(np.float32).reshape(len(table), -1) if len(table) else np.zeros((0, 1), np.float32)
    return checked(Listed(table["key"], repeats, widths, heights, by_caption), f"the list {path}")


def checked(listed: Listed, name: str) -> Listed:
    """The same. Raises PackError for none at all, a key that comes twice, and numbers that cannot be."""
    if not len(listed):
        raise PackError(f"there is nothing to pack: {name} is empty; run 'pleinair report' to see why")
    if len(listed.keys.unique()) != len(listed):
        raise PackError(f"{name} has a key twice: use repeats")
    numbers = {"width": listed.widths_N, "height": listed.heights_N, "repeats": listed.repeats_N}
    for what, values in numbers.items():
        if (wrong := np.flatnonzero(values < 1)).size:
            raise PackError(
                f"{what} of {listed.keys[int(wrong[0])]} in {name} is {values[wrong[0]]}: at least 1 is needed"
            )
    weights = listed.caption_weights_NV
    if (wrong := np.flatnonzero(~((weights >= 0).all(1) & (weights.sum(1) > 0)))).size:
        key = listed.keys[int(wrong[0])]
        raise PackError(
            f"caption_weights of {key} in {name} are {weights[wrong[0]]}: give chances from 0 on, not all 0"
        )
    return listed


@dataclass(frozen=True)
class ShapeRows:
    """The rows of one shape in the order they are packed."""

    bucket: Bucket
    selected: Ints
    """Number of each in the list."""
    copies: Ints
    """Which of its repeats."""


@dataclass(frozen=True)
class Arrangement:
    """A whole pack in order."""

    listed: Listed
    shapes: tuple[ShapeRows, ...]
    left_out: dict[str, int]
    digest: str
    """Of all of it."""

    def keys(self, selected: Ints) -> list[str]:
        """Keys of some of the listed pictures."""
        keys: list[str] = self.listed.keys.take(pa.array(selected)).to_pylist()
        return keys


def arrange(listed: Listed, stages: Sequence[BucketConfig], seed: int) -> Arrangement:
    """Each picture in the nearest bucket of each stage, and the rows of each bucket shuffled by `seed`."""
    shapes: list[ShapeRows] = []
    left_out: dict[str, int] = {}
    for config in stages:
        buckets = aspect_buckets(config)
        assigned = assign(listed.widths_N, listed.heights_N, buckets, config)
        left_out |= {f"{config.resolution} px: {reason}": n for reason, n in assigned.left_out.items() if n}
        for number, bucket in enumerate(buckets):
            if (rows := np.flatnonzero(assigned.bucket_N == number)).size:
                shapes.append(shuffled(bucket, rows, listed, seed))
    return Arrangement(listed, tuple(shapes), left_out, _digest(listed, stages, seed))


def shuffled(bucket: Bucket, rows: Ints, listed: Listed, seed: int) -> ShapeRows:
    """The rows, each as often as it repeats, in an order that depends on the seed and the bucket."""
    repeats = listed.repeats_N[rows]
    selected = np.repeat(rows, repeats)
    copies = np.arange(len(selected)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    order = permutation(len(selected), seed, bucket.resolution, bucket.height, bucket.width)
    return ShapeRows(bucket, selected[order], copies[order])


def _digest(listed: Listed, stages: Sequence[BucketConfig], seed: int) -> str:
    told = hashlib.sha256(config_digest([list(stages), seed]).encode())
    for chunk in listed.keys.chunks:
        told.update("\0".join(chunk.to_pylist()).encode())
    for values in (listed.repeats_N, listed.widths_N, listed.heights_N, listed.caption_weights_NV):
        told.update(values.tobytes())
    return told.hexdigest()
