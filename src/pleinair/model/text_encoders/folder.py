"""A model folder, as the transformers library writes it, as the text encoder it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pleinair.model.text_encoder import TextEncoder
from pleinair.model.text_encoders.causal import CausalTextEncoder
from pleinair.model.text_encoders.qwen3_vl import qwen3_vl
from pleinair.model.text_encoders.smollm2 import SMOLLM2_LAYERS, TEMPLATE
from pleinair.model.text_encoders.t5 import T5TextEncoder
from pleinair.records.errors import SourceError, require

T5_CLASSES = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel", "t5gemma": "T5GemmaEncoderModel"}
"""`model_type` of a folder to the class that loads its encoder alone."""


def load_text_encoder(
    folder: Path,
    *,
    layers: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    tokenizer: Path | None = None,
) -> TextEncoder:
    """Qwen3-VL with K2's layers and template, an encoder of the T5 family, or SmolLM2, by the folder's `model_type`.

    Of a pipeline's folder it is the one in `text_encoder`, with its `tokenizer`. `tokenizer` is another folder where the
    model's has none. Raises SourceError for a folder that holds none of these,
    ValueError for layers that the model does not have, or for layers of Qwen3-VL, whose are fixed.
    """
    whole, folder = folder, model_folder(folder)
    if tokenizer is None and (whole / "tokenizer").is_dir():
        tokenizer = whole / "tokenizer"
    kind = _model_type(folder)
    transformers = require("transformers", "train")
    words = transformers.AutoTokenizer.from_pretrained(tokenizer or folder, local_files_only=True)

    def load(name: str) -> Any:
        loaded = getattr(transformers, name).from_pretrained(folder, dtype=dtype, local_files_only=True)
        return loaded.to(device)

    if kind == "qwen3_vl":
        if layers is not None:
            raise ValueError(f"layers are {layers} and Qwen3-VL is read as K2 does, by 12 fixed ones: leave them out")
        return qwen3_vl(load("AutoModel"), words, name=folder.name)
    if kind in T5_CLASSES:
        return T5TextEncoder(load(T5_CLASSES[kind]), words, name=folder.name, layers=layers)
    if kind == "llama":
        return CausalTextEncoder(
            load("LlamaModel"), words, TEMPLATE, name=folder.name, layers=SMOLLM2_LAYERS if layers is None else layers
        )
    known = ", ".join(["qwen3_vl", *T5_CLASSES, "llama"])
    raise SourceError(f"{folder} holds a model of type {kind!r}: give a folder of one of {known}")


def model_folder(folder: Path) -> Path:
    """Where the model itself lies: `text_encoder` in a pipeline's folder, else the folder."""
    return folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError) as unreadable:
        raise SourceError(
            f"{folder} has no readable config.json ({unreadable}): give a model folder as the transformers library writes it"
        ) from unreadable
