"""The text encoder and the autoencoder that a recipe or a command names: our small ones, or folders of large models.

    text_encoder   None: SmolLM2, through a fitted projection      FOLDER: Qwen3-VL as K2 reads it, T5 ..., as they are
    autoencoder    None: the run's own                             FOLDER: Qwen-Image's or FLUX.2's     NAME: a shipped one

Large ones run on a GPU where there is one.
"""

from __future__ import annotations

from pathlib import Path

import torch

from pleinair.cli.places import shipped, text_encoder_dir
from pleinair.config import config_digest
from pleinair.model.autoencoder import LatentCodec
from pleinair.model.autoencoders.folder import load_codec
from pleinair.model.text_encoder import FeatureProjection, TextEncoder
from pleinair.model.text_encoders.folder import load_text_encoder
from pleinair.model.text_encoders.smollm2 import fetch_smollm2, open_smollm2
from pleinair.records.errors import SourceError
from pleinair.sampling.shipped import load_autoencoder


def open_text_encoder(folder: str | None = None) -> TextEncoder:
    """The text encoder of a folder, a pipeline's too; None for SmolLM2, fetched first where needed."""
    if folder is None:
        fetch_smollm2(text_encoder_dir(), on_progress=lambda message: print(f"  {message}"))
        return open_smollm2(text_encoder_dir())
    return load_text_encoder(Path(folder), device=_device())


def open_codec(place: str) -> LatentCodec:
    """The autoencoder at a place: a folder in diffusers' layout, a packaged file, or the name of a shipped one."""
    path = Path(place)
    if path.is_dir():
        return load_codec(path, device=_device())
    file = shipped(place) if not path.exists() and path.name == place else path
    if not file.exists():
        raise SourceError(f"there is no autoencoder at {place}: give a folder in diffusers' layout, or `autoencoder`")
    return load_autoencoder(file)


def as_they_are(encoder: TextEncoder) -> FeatureProjection:
    """What a text encoder's features go through for a model that reads them itself: nothing."""
    return FeatureProjection(encoder.num_layers, encoder.width, 0)


def stamp(folder: str | None) -> list[str]:
    """What tells one named folder from another without reading its weights: names, sizes and times of its files."""
    if folder is None:
        return []
    files = [(path, path.stat()) for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return [config_digest([[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in files])]


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
