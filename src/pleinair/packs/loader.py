"""Reading packs: latents and text features as batches, each a function of (seed, step).

    rows of one resolution --permute by (seed, epoch)--> draw one caption each --sort by length inside a window-->
    batches of near-equal text length --shuffle--> batch(step)

Nothing is remembered between steps, so any batch can be had again: resuming and finding the pictures behind a loss
spike are the same call. The whole pack is held in memory, float16.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pleinair.config import from_document
from pleinair.records.errors import ConfigError, PackError
from pleinair.records.packs import PACK_VERSION, PackManifest

SORT_WINDOW_BATCHES = 16
"""Batches among which rows are sorted by text length: enough to leave almost no padding, few enough to stay shuffled."""


@dataclass(frozen=True)
class LatentBatch:
    """One training batch."""

    keys: list[str]
    latents_BCHW: Tensor
    """Float32, standardised."""
    text_features_BTLD: Tensor
    """Float32, projected."""
    text_mask_BT: Tensor
    """Bool, true where real."""


@dataclass(frozen=True)
class Captions:
    """All distinct captions of a pack, features in one flat array."""

    texts: list[str]
    offsets: npt.NDArray[np.int64]
    """Token offsets into `features_NLD`, one more than captions; caption 0 is the empty prompt."""
    features_NLD: npt.NDArray[np.float16]

    def lengths(self, caption_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """Token counts."""
        return self.offsets[caption_ids + 1] - self.offsets[caption_ids]

    def padded(self, caption_ids: npt.NDArray[np.int32]) -> tuple[Tensor, Tensor]:
        """Features (B, T, L, D) float32 padded on the right, and their mask (B, T)."""
        lengths = self.lengths(caption_ids)
        features_BTLD = np.zeros((len(caption_ids), int(lengths.max()), *self.features_NLD.shape[1:]), np.float32)
        for row, (caption_id, length) in enumerate(zip(caption_ids, lengths, strict=True)):
            start = self.offsets[caption_id]
            features_BTLD[row, :length] = self.features_NLD[start : start + length]
        mask_BT = np.arange(features_BTLD.shape[1])[None] < lengths[:, None]
        return torch.from_numpy(features_BTLD), torch.from_numpy(mask_BT)


@dataclass(frozen=True)
class Rows:
    """All rows of one resolution."""

    keys: list[str]
    styles: list[str | None]
    concepts: list[str | None]
    latents_NCHW: npt.NDArray[np.float16]
    caption_ids_NV: npt.NDArray[np.int32]


class Pack:
    """A pack directory, verified and opened. Raises PackError naming the file that is missing, damaged or too new."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = read_pack_manifest(directory)
        for name, expected in self.manifest.files.items():
            path = directory / name
            if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
                raise PackError(
                    f"pack {directory} is damaged: {name} is missing or does not match its hash; pack again"
                )
        self.captions = self._read_captions()

    def rows(self, resolution: int) -> Rows:
        """Rows of one resolution. Raises PackError when the pack has none."""
        manifest = self.manifest
        if resolution not in manifest.resolutions:
            raise PackError(
                f"pack {self.directory} has no pictures at {resolution} px, only {manifest.resolutions}: pack again"
            )
        table = pq.read_table(self.directory / "rows.parquet", filters=[("resolution", "=", resolution)])
        side = resolution // manifest.downscale
        shape = (len(table), manifest.latent_channels, side, side)
        latents = np.frombuffer(b"".join(table["latents"].to_pylist()), np.float16).reshape(shape)
        caption_ids = np.asarray(table["caption_ids"].to_pylist(), np.int32)
        labels = (table["style"].to_pylist(), table["concept"].to_pylist())
        return Rows(table["key"].to_pylist(), *labels, latents, caption_ids)

    def _read_captions(self) -> Captions:
        table = pq.read_table(self.directory / "captions.parquet")
        counts = table["num_tokens"].to_numpy()
        shape = (int(counts.sum()), len(self.manifest.text_layers), self.manifest.text_dim)
        features = np.frombuffer(b"".join(table["features"].to_pylist()), np.float16).reshape(shape)
        return Captions(table["caption"].to_pylist(), np.concatenate([[0], np.cumsum(counts)]), features)


def read_pack_manifest(directory: Path) -> PackManifest:
    """The manifest alone. Raises PackError when there is none or its version is unknown."""
    try:
        document = json.loads((directory / "pack.json").read_text())
        manifest = from_document(PackManifest, document)
    except (OSError, json.JSONDecodeError, ConfigError) as unreadable:
        raise PackError(f"{directory} is not a pack: pack.json cannot be read ({unreadable})") from unreadable
    if manifest.version != PACK_VERSION:
        raise PackError(
            f"pack {directory} has format version {manifest.version}, this code reads {PACK_VERSION}: pack again"
        )
    return manifest


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How rows become batches."""

    batch_size: int = 64
    """Pictures per batch."""
    seed: int = 0
    """Seed of order and caption choice."""
    caption_weights: tuple[float, ...] = (0.5, 0.25, 0.25)
    """Chance of each caption of a row, in the pack's order (long, medium, short): mostly long, always some short."""
    drop_caption: float = 0.1
    """Chance of the empty prompt, for guidance."""


class LatentLoader:
    """Batches of one resolution of a pack."""

    def __init__(self, pack: Pack, resolution: int, config: LoaderConfig) -> None:
        self.rows = pack.rows(resolution)
        self.captions = pack.captions
        self.config = config
        if len(config.caption_weights) != self.rows.caption_ids_NV.shape[1]:
            raise PackError(
                f"caption_weights has {len(config.caption_weights)} entries and the pack {pack.directory} has "
                f"{self.rows.caption_ids_NV.shape[1]} captions a row: give one weight for each of "
                f"{', '.join(pack.manifest.caption_names)}"
            )
        if len(self.rows.keys) < config.batch_size:
            raise PackError(
                f"{len(self.rows.keys)} pictures at {resolution} px do not fill a batch of {config.batch_size}: lower batch_size"
            )
        self._plan = lru_cache(maxsize=2)(self._plan_epoch)

    def __len__(self) -> int:
        """Batches per epoch; a remainder smaller than a batch waits for a later epoch's order."""
        return len(self.rows.keys) // self.config.batch_size

    def batch(self, step: int) -> LatentBatch:
        """The batch of a step, counted from 0 over all epochs."""
        rows, caption_ids = self._rows_of(step)
        features_BTLD, mask_BT = self.captions.padded(caption_ids)
        latents_BCHW = torch.from_numpy(self.rows.latents_NCHW[rows].astype(np.float32))
        return LatentBatch([self.rows.keys[row] for row in rows], latents_BCHW, features_BTLD, mask_BT)

    def keys(self, step: int) -> list[str]:
        """Keys of the pictures of a step."""
        return [self.rows.keys[row] for row in self._rows_of(step)[0]]

    def _rows_of(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        epoch, position = divmod(step, len(self))
        rows_SB, caption_ids_SB = self._plan(epoch)
        return rows_SB[position], caption_ids_SB[position]

    def _plan_epoch(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Rows and captions of every batch of an epoch, (batches, batch size) each."""
        random = np.random.default_rng([self.config.seed, epoch])
        order = random.permutation(len(self.rows.keys))[: len(self) * self.config.batch_size]
        caption_ids = self._draw_captions(order, random)
        lengths = self.captions.lengths(caption_ids)
        window = SORT_WINDOW_BATCHES * self.config.batch_size
        by_length = np.lexsort((lengths, np.arange(len(order)) // window))
        batches = random.permutation(len(self))
        shape = (len(self), self.config.batch_size)
        return order[by_length].reshape(shape)[batches], caption_ids[by_length].reshape(shape)[batches]

    def _draw_captions(self, order: npt.NDArray[np.int64], random: np.random.Generator) -> npt.NDArray[np.int32]:
        weights = np.asarray(self.config.caption_weights) / sum(self.config.caption_weights)
        choice = random.choice(len(weights), size=len(order), p=weights)
        caption_ids = self.rows.caption_ids_NV[order, choice]
        caption_ids[random.random(len(order)) < self.config.drop_caption] = 0
        return caption_ids
