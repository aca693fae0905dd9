"""A pack on disk, opened and checked, and its rows by shape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pleinair.config import from_document
from pleinair.packs.order import Ints
from pleinair.packs.shards import Group, Shard, check_size, digest_of
from pleinair.records.errors import ConfigError, PackError
from pleinair.records.packs import PACK_VERSION, PackManifest

SHARDS_OPEN = 64
"""Shards mapped at a time."""
GROUPS_KEPT = 1024
"""Row groups whose addresses are kept, a few kilobytes each."""
VERIFY_BYTES = 2**31
"""Packs up to this size are hashed when they are opened, unless the caller says otherwise."""


class Pack:
    """A pack directory, verified and opened. Raises PackError naming the file that is missing, damaged or too new.

    `verify` compares every file with its hash; by default packs up to 2 GiB. Of larger ones only sizes, columns and places
    are checked, when a shard is opened: call `verify_pack` once where a pack arrives.
    """

    def __init__(self, directory: Path, verify: bool | None = None) -> None:
        self.directory = directory
        self.manifest = read_pack_manifest(directory)
        if verify is None:
            verify = sum(shard.num_bytes for shard in self.manifest.shards) <= VERIFY_BYTES
        (verify_pack if verify else verify_sizes)(directory)
        self.shard = lru_cache(maxsize=SHARDS_OPEN)(self._open_shard)
        self.group = lru_cache(maxsize=GROUPS_KEPT)(self._open_group)

    def _open_shard(self, number: int) -> Shard:
        return Shard(self.directory, self.manifest, self.manifest.shards[number])

    def _open_group(self, shard: int, number: int) -> Group:
        return self.shard(shard).group(number)

    def shapes(self, resolution: int) -> list[tuple[int, ...]]:
        """Shapes of one resolution, in order. Raises PackError when the pack has none."""
        shapes = sorted({shard.shape for shard in self.manifest.shards if shard.resolution == resolution})
        if not shapes:
            known = self.manifest.resolutions
            raise PackError(f"pack {self.directory} has no pictures at {resolution} px, only {known}: pack again")
        return shapes

    def empty_prompt(self) -> npt.NDArray[np.uint8]:
        """The text features of the empty prompt, (tokens, bytes of a token)."""
        tokens = pq.read_table(self.directory / "empty_prompt.parquet")["text_features"][0].as_py()
        return np.frombuffer(b"".join(tokens), np.uint8).reshape(len(tokens), -1)


def read_pack_manifest(directory: Path) -> PackManifest:
    """The manifest alone. Raises PackError when there is none or its version is unknown."""
    try:
        document = json.loads((directory / "pack.json").read_text())
        version = document.get("version")
        if version == PACK_VERSION:
            return from_document(PackManifest, document)
    except (OSError, json.JSONDecodeError, ConfigError, AttributeError) as unreadable:
        raise PackError(f"{directory} is not a pack: pack.json cannot be read ({unreadable})") from unreadable
    remedy = "convert it with pleinair.packs.version1.convert, or pack again" if version == 1 else "pack again"
    raise PackError(f"pack {directory} has format version {version}, this code reads {PACK_VERSION}: {remedy}")


def verify_sizes(directory: Path) -> None:
    """Raises PackError naming the first file that is missing or of another size than its manifest says."""
    for shard in read_pack_manifest(directory).shards:
        try:
            check_size(directory / shard.name, shard.num_bytes)
        except ValueError as wrong:
            raise PackError(f"pack {directory} is damaged: {shard.name}: {wrong}; pack again") from wrong


def verify_pack(directory: Path) -> None:
    """Raises PackError naming the first file that is missing or does not match its hash. Reads all of them."""
    manifest = read_pack_manifest(directory)
    for name, expected in {**manifest.files, **{shard.name: shard.sha256 for shard in manifest.shards}}.items():
        if not (directory / name).exists() or digest_of(directory / name) != expected:
            raise PackError(f"pack {directory} is damaged: {name} is missing or does not match its hash; pack again")


@dataclass(frozen=True)
class ShapeRows:
    """All rows of one resolution and shape, by row group."""

    pack: Pack
    shape: tuple[int, ...]
    shards: Ints
    """Shard of each row group."""
    numbers: Ints
    """Its number there."""
    sizes: Ints
    """Its rows."""

    @property
    def num_rows(self) -> int:
        """Rows of this shape."""
        return int(self.sizes.sum())

    def group(self, group: int) -> Group:
        """One row group."""
        return self.pack.group(int(self.shards[group]), int(self.numbers[group]))


def shape_rows(pack: Pack, resolution: int, shape: tuple[int, ...]) -> ShapeRows:
    """The row groups of one resolution and shape, from the manifest alone."""
    size = pack.manifest.group_rows
    shards, numbers, sizes = [], [], []
    for place, entry in enumerate(pack.manifest.shards):
        if (entry.resolution, entry.shape) == (resolution, shape):
            count = -(-entry.num_rows // size)
            shards.append(np.full(count, place))
            numbers.append(np.arange(count))
            sizes.append(np.minimum(size, entry.num_rows - numbers[-1] * size))
    return ShapeRows(pack, shape, *(np.concatenate(part) for part in (shards, numbers, sizes)))
