"""Patch features of a frozen image encoder, computed once and kept beside a pack: what iREPA aligns to.

    FEATURES/  features.json   encoder, width, hashes     004x006.npy (N, D, 4, 6) float16, mapped   004x006.json   keys

A pack holds latents, not pictures, so features are made where the pictures are. A picture takes 2 D bytes per image token:
with EfficientNet's 112 channels 14 kB at 64 tokens, seven times its latents; with a large encoder at 1024 px, where iREPA is
off anyway, it would be megabytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pleinair.config import config_digest
from pleinair.model.efficientnet import EfficientNetLite0
from pleinair.model.image_encoder import Picture
from pleinair.packs.loader import LatentBatch
from pleinair.packs.pack import VERIFY_BYTES
from pleinair.packs.packed_loader import PackedLatentBatch
from pleinair.packs.shards import digest_of
from pleinair.records.errors import PackError
from pleinair.training.engine import Loader

Grid = tuple[int, int]
"""Rows and columns of image tokens."""


class PatchEncoder(Protocol):
    """A frozen network that gives one vector per cell of a grid laid over a picture."""

    name: str
    width: int

    def patches(self, pictures: Sequence[Picture], grid: Grid) -> npt.NDArray[np.float16]:
        """(B, width, rows, columns) of pictures of one aspect ratio."""
        ...


class EfficientNetPatches:
    """EfficientNet-Lite0 up to its last stage of stride 16: pictures are resized so that a cell is 16 pixels."""

    name = "efficientnet-lite0-stride16-v1"
    width = 112
    stride = 16
    _num_blocks = 11

    def __init__(self, network: EfficientNetLite0) -> None:
        self.network = network

    @torch.inference_mode()
    def patches(self, pictures: Sequence[Picture], grid: Grid) -> npt.NDArray[np.float16]:
        """(B, 112, rows, columns)."""
        pixels_BCHW = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
        size = [self.stride * side for side in grid]
        resized_BCHW = F.interpolate(pixels_BCHW, size, mode="bicubic", antialias=True).clamp(0, 255)
        x_BCHW = F.relu6(self.network.stem((resized_BCHW - 127.0) / 128.0))
        features: npt.NDArray[np.float16] = self.network.blocks[: self._num_blocks](x_BCHW).half().numpy()
        return features


def write_patch_features(
    directory: Path, encoder: PatchEncoder, pictures: Iterable[tuple[Grid, Sequence[str], Sequence[Picture]]]
) -> Path:
    """Encode batches of (grid, keys, pictures) into `directory`, which appears by rename. Raises PackError if it exists."""
    if directory.exists():
        raise PackError(f"{directory} exists already: remove it or name another place")
    staging = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    keys: dict[Grid, list[str]] = {}
    for grid, names, of_grid in pictures:
        with (staging / f"{_name(grid)}.raw").open("ab") as raw:
            raw.write(encoder.patches(of_grid, grid).tobytes())
        keys.setdefault(grid, []).extend(names)
    for grid, names in keys.items():
        _finish_grid(staging, grid, names, encoder.width)
    document = {"encoder": encoder.name, "width": encoder.width, "files": _hashes(staging)}
    (staging / "features.json").write_text(json.dumps(document) + "\n")
    os.replace(staging, directory)
    return directory


def _finish_grid(staging: Path, grid: Grid, keys: list[str], width: int) -> None:
    """Put the header of an array before the rows that were streamed out."""
    header = {"descr": "<f2", "fortran_order": False, "shape": (len(keys), width, *grid)}
    raw = staging / f"{_name(grid)}.raw"
    with (staging / f"{_name(grid)}.npy").open("wb") as array, raw.open("rb") as rows:
        np.lib.format.write_array_header_1_0(array, header)
        shutil.copyfileobj(rows, array, 1 << 20)
    raw.unlink()
    (staging / f"{_name(grid)}.json").write_text(json.dumps(keys) + "\n")


def _name(grid: Grid) -> str:
    return f"{grid[0]:03d}x{grid[1]:03d}"


def _hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of the arrays and their keys."""
    return {path.name: digest_of(path) for path in sorted(directory.glob("*x*.*"))}


class PatchFeatures:
    """A directory of features, opened. Raises PackError when it is none, or damaged.

    Up to 2 GiB are hashed and compared, as with packs.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            document = json.loads((directory / "features.json").read_text())
        except (OSError, json.JSONDecodeError) as unreadable:
            raise PackError(f"{directory} holds no patch features ({unreadable}): write them first") from unreadable
        self.encoder, self.width = str(document["encoder"]), int(document["width"])
        self._verify(document)
        self._open = lru_cache(maxsize=64)(self._opened)

    def _verify(self, document: dict[str, Any]) -> None:
        size = sum(path.stat().st_size for path in self.directory.iterdir())
        told: dict[str, str] | None = document.get("files")
        found = _hashes(self.directory) if size <= VERIFY_BYTES or told is None else told
        if told is not None and found != told:
            name = min(name for name in {*told, *found} if told.get(name) != found.get(name))
            raise PackError(f"{self.directory} is damaged: {name} does not match its hash; write the features again")
        self.digest = config_digest([self.encoder, self.width, found])

    def of(self, keys: Sequence[str], grid: Grid) -> Tensor:
        """(B, width, rows, columns) float32 of pictures by key. Raises PackError naming one that has none."""
        rows, index = self._open(grid)
        try:
            places = [index[key] for key in keys]
        except KeyError as missing:
            raise PackError(
                f"{self.directory} has no features of {missing} on a {grid} grid: write them again"
            ) from missing
        return torch.from_numpy(rows[places].astype(np.float32))

    def _opened(self, grid: Grid) -> tuple[Any, dict[str, int]]:
        place = self.directory / f"{_name(grid)}.npy"
        if not place.exists():
            raise PackError(
                f"{self.directory} has no features on a {grid[0]} x {grid[1]} grid: write them for this size"
            )
        keys = json.loads(place.with_suffix(".json").read_text())
        return np.load(place, mmap_mode="r"), {key: row for row, key in enumerate(keys)}


@dataclass(frozen=True)
class PatchBatch(LatentBatch):
    """A batch of latents with what the encoder saw in their pictures."""

    patches_BDHW: Tensor
    """One vector per image token."""


@dataclass(frozen=True)
class PackedPatchBatch(PackedLatentBatch):
    """The same with packed text."""

    patches_BDHW: Tensor
    """One vector per image token."""


class WithPatches:
    """A loader of latents that also gives the patch features of its rows."""

    def __init__(
        self, loader: Loader[LatentBatch | PackedLatentBatch], features: PatchFeatures, patch_size: int
    ) -> None:
        self.loader, self.features, self.patch_size = loader, features, patch_size

    def batch(self, step: int) -> PatchBatch | PackedPatchBatch:
        """The loader's batch of this step, and the features."""
        batch = self.loader.batch(step)
        height, width = batch.latents_BCHW.shape[-2:]
        grid = (height // self.patch_size, width // self.patch_size)
        kind = PackedPatchBatch if isinstance(batch, PackedLatentBatch) else PatchBatch
        return kind(**vars(batch), patches_BDHW=self.features.of(batch.keys, grid))

    def keys(self, step: int) -> list[str]:
        """The loader's keys."""
        return self.loader.keys(step)
