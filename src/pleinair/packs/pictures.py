"""Sets of small pictures held in memory: what the autoencoder and the judge are trained on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pleinair.records.errors import PackError


@dataclass(frozen=True)
class PictureSet:
    """Labelled pictures of one size."""

    keys: list[str]
    pixels_NHWC: npt.NDArray[np.uint8]
    styles: list[str]
    concepts: list[str]
    held_out: npt.NDArray[np.bool_]
    """True where the (concept, style) pair is never trained on."""

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, chosen: npt.NDArray[np.bool_]) -> PictureSet:
        """The chosen pictures."""
        index = np.flatnonzero(chosen)
        pick = [self.keys, self.styles, self.concepts]
        keys, styles, concepts = ([values[i] for i in index] for values in pick)
        return PictureSet(keys, self.pixels_NHWC[index], styles, concepts, self.held_out[index])


def save_pictures(pictures: PictureSet, path: Path) -> None:
    """Write the set as one file, by rename."""
    staging = path.with_name(f".{path.name}.partial")
    with staging.open("wb") as file:
        np.savez(
            file,
            keys=np.array(pictures.keys),
            pixels=pictures.pixels_NHWC,
            styles=np.array(pictures.styles),
            concepts=np.array(pictures.concepts),
            held_out=pictures.held_out,
        )
    os.replace(staging, path)


def load_pictures(path: Path) -> PictureSet:
    """The set written by `save_pictures`. Raises PackError when the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return PictureSet(
                file["keys"].tolist(),
                file["pixels"],
                file["styles"].tolist(),
                file["concepts"].tolist(),
                file["held_out"],
            )
    except (OSError, ValueError, KeyError) as damaged:
        raise PackError(f"{path} is not a picture set ({damaged}): delete it and run again") from damaged


class PictureLoader:
    """Batches of pictures in [-1, 1], one in `half_every` at half size; a function of (seed, step)."""

    def __init__(self, pictures: PictureSet, batch_size: int, seed: int, half_every: int = 4) -> None:
        if len(pictures) < batch_size:
            raise PackError(f"{len(pictures)} pictures do not fill a batch of {batch_size}: lower the batch size")
        self.pictures, self.batch_size, self.seed, self.half_every = pictures, batch_size, seed, half_every

    def batch(self, step: int) -> Tensor:
        """Pictures (B, 3, H, W) float32, channels last in memory."""
        pixels_BHWC = self.pictures.pixels_NHWC[self._rows(step)]
        pictures_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        if self.half_every and step % self.half_every == 0:
            pictures_BCHW = torch.nn.functional.avg_pool2d(pictures_BCHW, 2)
        return pictures_BCHW.contiguous(memory_format=torch.channels_last)

    def keys(self, step: int) -> list[str]:
        """Keys of the pictures of a step."""
        return [self.pictures.keys[row] for row in self._rows(step)]

    def _rows(self, step: int) -> npt.NDArray[np.int64]:
        per_epoch = len(self.pictures) // self.batch_size
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pictures))
        return order[position * self.batch_size : (position + 1) * self.batch_size]
