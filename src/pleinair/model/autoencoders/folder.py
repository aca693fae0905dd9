"""A folder in diffusers' layout as the codec it holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pleinair.model.autoencoder import LatentCodec
from pleinair.model.autoencoders.flux2 import Flux2Codec
from pleinair.model.autoencoders.qwen_image import QwenImageCodec
from pleinair.records.errors import SourceError, require

CODECS: dict[str, Callable[[Any], LatentCodec]] = {
    "AutoencoderKLQwenImage": QwenImageCodec,
    "AutoencoderKLFlux2": Flux2Codec,
}


def load_codec(folder: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> LatentCodec:
    """The autoencoder of a folder, or of the `vae` folder of a pipeline. Raises SourceError for one that holds none of ours."""
    place = folder / "vae" if (folder / "vae").is_dir() else folder
    try:
        name = json.loads((place / "config.json").read_text())["_class_name"]
    except (OSError, ValueError, KeyError) as unreadable:
        raise SourceError(
            f"{place} has no readable config.json ({unreadable}): give the folder of an autoencoder or of a whole pipeline"
        ) from unreadable
    if name not in CODECS:
        raise SourceError(f"{place} holds a {name}: give one of {', '.join(CODECS)}")
    vae = getattr(require("diffusers", "export"), name).from_pretrained(place, torch_dtype=dtype, local_files_only=True)
    return CODECS[name](vae.to(device))
