"""Reading packs: latents and text features, or pictures, as batches, each a function of (pack, seed, step).

    step --Planner--> rows and captions of the global batch --part of this rank--> Shard views --copy--> batch

Nothing is remembered between steps: the state of a loader is the step. So resuming, with another number of ranks too, and
finding the pictures behind a loss spike are the same call. Only addresses are held in memory; the rows stay in the files.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pleinair.packs.pack import Pack, shape_rows
from pleinair.packs.plan import EMPTY_PROMPT, Chosen, LoaderConfig, Planner, runs
from pleinair.packs.shards import Bytes, Group
from pleinair.records.errors import PackError
from pleinair.records.packs import Kind

Batch = TypeVar("Batch")
BatchOut = TypeVar("BatchOut", covariant=True)


@dataclass(frozen=True)
class LatentBatch:
    """One training batch, or a rank's part of it."""

    keys: list[str]
    latents_BCHW: Tensor
    """Standardised."""
    text_features_BTLD: Tensor
    """Projected, padded on the right to the longest of the global batch, so that all ranks have one shape."""
    text_mask_BT: Tensor
    """Bool, true where real."""


class _Rows:
    """What loaders of latents and of pictures share: the plan, this rank's part of it, and keys."""

    def __init__(
        self,
        pack: Pack,
        resolution: int,
        config: LoaderConfig,
        kinds: tuple[Kind, ...],
        rank: int,
        num_ranks: int,
        *,
        levelled: bool = False,
    ) -> None:
        self.pack, self.config, self.rank, self.num_ranks = pack, config, rank, num_ranks
        if pack.manifest.kind not in kinds:
            raise PackError(f"pack {pack.directory} holds {pack.manifest.kind}, not {' or '.join(kinds)}: name another")
        shapes = [shape_rows(pack, resolution, shape) for shape in pack.shapes(resolution)]
        self.empty_prompt = pack.empty_prompt() if pack.manifest.text_dim else np.zeros((0, 0), np.uint8)
        self.plan = Planner(shapes, config, len(self.empty_prompt), levelled=levelled)
        self._check(resolution)

    def _check(self, resolution: int) -> None:
        names, weights, size = self.pack.manifest.caption_names, self.config.caption_weights, self.config.batch_size
        if weights is not None and len(weights) != len(names):
            raise PackError(
                f"caption_weights has {len(weights)} entries and the pack {self.pack.directory} has {len(names)} "
                f"captions a row: give one weight for each of {', '.join(names)}"
            )
        if not self.plan.num_batches:
            most = max(rows.num_rows for rows in self.plan.shapes)
            raise PackError(f"{most} pictures at {resolution} px do not fill a batch of {size}: lower batch_size")
        if not 0 <= self.rank < self.num_ranks <= size:
            raise PackError(
                f"rank {self.rank} of {self.num_ranks} has no part of a batch of {size}: count ranks from 0, "
                "and give every rank at least one picture"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.plan.num_batches

    def keys(self, step: int) -> list[str]:
        """Keys of the pictures of a step, those of this rank; nothing else of them is read."""
        return self._keys(self._mine(self.plan.chosen(step)))

    def _mine(self, chosen: Chosen) -> Chosen:
        return chosen.part(self.rank, self.num_ranks)

    def _keys(self, mine: Chosen) -> list[str]:
        keys: list[str] = []
        for group, run in _groups(mine):
            keys += [key.decode() for key in group.variable("key", mine.places[run])]
        return keys

    def _values(self, mine: Chosen) -> Bytes:
        """Latents or raw pixels, a row each."""
        kind = self.pack.manifest.kind
        width = self.pack.manifest.row_bytes(mine.rows.shape)
        values_BW = np.empty((len(mine.groups), width), np.uint8)
        for group, run in _groups(mine):
            np.take(
                group.values(kind, width), mine.places[run], axis=0, out=values_BW[run], mode="clip"
            )  # "raise" copies twice
        return values_BW


def _groups(mine: Chosen) -> Iterator[tuple[Group, slice]]:
    """The row groups of a batch, with the slice of the batch that comes from each."""
    for run in runs(mine.groups):
        yield mine.rows.group(int(mine.groups[run.start])), run


class LatentRows(_Rows):
    """What loaders of latents share, whether their text is padded or packed: values and captions as tensors."""

    def __init__(
        self, pack: Pack, resolution: int, config: LoaderConfig, rank: int, num_ranks: int, *, levelled: bool = False
    ) -> None:
        super().__init__(pack, resolution, config, ("latents",), rank, num_ranks, levelled=levelled)
        self._dtype = getattr(torch, pack.manifest.dtype)

    def _latents(self, mine: Chosen) -> Tensor:
        """(B, C, H, W)."""
        return self._tensor(self._values(mine), mine.rows.shape)

    def _captions(self, mine: Chosen) -> Iterator[Bytes]:
        """The tokens of each row's caption, (tokens, bytes of a token)."""
        for group, run in _groups(mine):
            tokens_NW, starts = group.tokens(self.empty_prompt.shape[1], len(self.pack.manifest.caption_names))
            captions = mine.captions[run]
            firsts = starts[mine.places[run], captions].tolist()
            for caption, first, length in zip(captions.tolist(), firsts, mine.lengths[run].tolist(), strict=True):
                yield self.empty_prompt if caption == EMPTY_PROMPT else tokens_NW[first : first + length]

    def _tensor(self, values: Bytes, shape: tuple[int, ...]) -> Tensor:
        stored: Tensor = torch.from_numpy(values).view(self._dtype).unflatten(-1, shape)
        return stored.float() if self.config.dtype == "float32" else stored


class LatentLoader(LatentRows):
    """Batches of one resolution of a pack, one shape per batch; rank `rank` of `num_ranks` gets its part of each."""

    def __init__(self, pack: Pack, resolution: int, config: LoaderConfig, *, rank: int = 0, num_ranks: int = 1) -> None:
        super().__init__(pack, resolution, config, rank, num_ranks)

    def batch(self, step: int) -> LatentBatch:
        """The batch of a step, counted from 0 over all epochs."""
        chosen = self.plan.chosen(step)
        mine = self._mine(chosen)
        features_BTLD = self._tensor(self._text(mine, int(chosen.lengths.max())), self.pack.manifest.token_shape)
        mask_BT = np.arange(features_BTLD.shape[1])[None] < mine.lengths[:, None]
        return LatentBatch(self._keys(mine), self._latents(mine), features_BTLD, torch.from_numpy(mask_BT))

    def _text(self, mine: Chosen, longest: int) -> Bytes:
        """Tokens (B, T, bytes of a token), zero where a caption is shorter than the longest."""
        tokens_BTW = np.empty((len(mine.groups), longest, self.empty_prompt.shape[1]), np.uint8)
        for row_TW, caption_TW in zip(tokens_BTW, self._captions(mine), strict=True):
            row_TW[: len(caption_TW)] = caption_TW
            row_TW[len(caption_TW) :] = 0
        return tokens_BTW


class PixelLoader(_Rows):
    """Batches of pictures in [-1, 1], for autoencoders and judges, from a pack of raw or of encoded pictures."""

    def __init__(self, pack: Pack, resolution: int, config: LoaderConfig, *, rank: int = 0, num_ranks: int = 1) -> None:
        super().__init__(pack, resolution, config, ("pixels", "encoded"), rank, num_ranks)

    def batch(self, step: int) -> Tensor:
        """Pictures (B, 3, H, W) float32, channels last in memory."""
        pixels_BHWC = torch.from_numpy(self.pixels(step))
        pictures_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float().div(127.5).sub(1)
        return pictures_BCHW.contiguous(memory_format=torch.channels_last)

    def pixels(self, step: int) -> Bytes:
        """The same as bytes (B, H, W, 3)."""
        mine = self._mine(self.plan.chosen(step))
        channels, height, width = mine.rows.shape
        if self.pack.manifest.kind == "encoded":
            return self._decoded(mine)
        return self._values(mine).reshape(-1, height, width, channels)

    def _decoded(self, mine: Chosen) -> npt.NDArray[np.uint8]:
        pictures = []
        for group, run in _groups(mine):
            for encoded in group.variable("encoded", mine.places[run]):
                pictures.append(np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")))
        return np.stack(pictures)


class Loader(Protocol[BatchOut]):
    """Batches and keys by step."""

    def batch(self, step: int) -> BatchOut:
        """The batch of a step."""
        ...

    def keys(self, step: int) -> list[str]:
        """Keys of its pictures."""
        ...


class Prefetched(Generic[Batch]):
    """The same batches, the next `depth` of them read by a thread meanwhile. Any step may be asked for at any time."""

    def __init__(self, loader: Loader[Batch], depth: int = 2) -> None:
        self.loader, self.depth = loader, depth
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pack-reader")
        self._ahead: dict[int, Future[Batch]] = {}

    def batch(self, step: int) -> Batch:
        """The batch of a step; the thread goes on with those after it. An error of reading is raised here."""
        wanted = range(step, step + 1 + self.depth)
        for other in [known for known in self._ahead if known not in wanted]:
            self._ahead.pop(other).cancel()
        for other in wanted:
            if other not in self._ahead:
                self._ahead[other] = self._thread.submit(self.loader.batch, other)
        return self._ahead.pop(step).result()

    def keys(self, step: int) -> list[str]:
        """Keys of the pictures of a step."""
        return self.loader.keys(step)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)
