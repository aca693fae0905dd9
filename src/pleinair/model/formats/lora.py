"""LoRA files in the four dialects in use, read into and written from pairs of matrices under our layer names.

    native       diffusion_model.blocks.0.attn.wq.lora_A.weight          ComfyUI, the release's own names
    ai-toolkit   base_model.model.blocks.0.attn.wq.lora_A.weight         Ostris' AI-Toolkit
    diffusers    transformer.transformer_blocks.0.attn.to_q.lora_A.weight    diffusers, peft
    kohya        lora_unet_blocks_0_attn_wq.lora_down.weight             kohya's scripts and musubi-tuner, with .alpha

The change of a weight is alpha / rank * up @ down. Only kohya's dialect always stores alpha; for the others it is
folded into `up`, as diffusers refuses a file with alphas in native names. A layer whose change was lost in silence is
the common complaint about LoRA files, so every key is used or the file is refused by name.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pleinair.model.formats.names import NAMED_KEYS, listed, native_name, nearest, pleinair_name
from pleinair.model.formats.weights import appearing, read_json
from pleinair.model.transformer import Transformer, TransformerConfig
from pleinair.records.errors import CheckpointError
from pleinair.records.pickles import refuse_pickle
from pleinair.tensor_files import list_tensors, read_tensors, save_tensors

Dialect = Literal["native", "ai-toolkit", "diffusers", "kohya"]

PREFIXES: dict[Dialect, str] = {
    "native": "diffusion_model.",
    "ai-toolkit": "base_model.model.",
    "diffusers": "transformer.",
    "kohya": "lora_unet_",
}
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""Names that diffusers and peft give a LoRA in a folder."""
ADAPTER_METADATA = "lora_adapter_metadata"
"""Metadata in which diffusers keeps peft's configuration."""
_DOWN, _UP, _ALPHA = "down", "up", "alpha"
_SUFFIXES = (
    (re.compile(r"\.lora_(?:A|down)(?:\.default)?\.weight$"), _DOWN),
    (re.compile(r"\.lora_(?:B|up)(?:\.default)?\.weight$"), _UP),
    (re.compile(r"\.alpha$"), _ALPHA),
)
_OTHER_METHODS = {"dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "lokr_": "LoKr", "hada_": "LoHa"}


@dataclass(frozen=True)
class LoraPair:
    """The change of one linear layer's weight: alpha / rank * up @ down."""

    down: Tensor
    """(rank, inputs)."""
    up: Tensor
    """(outputs, rank)."""
    alpha: float
    """Numerator of the scale."""

    @property
    def rank(self) -> int:
        """Inner size."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank

    def folded(self) -> LoraPair:
        """The same change with a scale of 1; exact where the scale is a power of two."""
        return LoraPair(self.down, (self.up.float() * self.scale).to(self.up.dtype), float(self.rank))


LoraState = dict[str, LoraPair]
"""Pairs by our layer name, `transformer_blocks.0.attn.to_q`."""


def read_lora(path: str | os.PathLike[str]) -> tuple[LoraState, Dialect]:
    """A LoRA file, or the folder that diffusers or peft made, and the dialect it is written in.

    Raises CheckpointError for a pickle, for DoRA, LoKr and LoHa, for keys that belong to no layer of a K2 transformer
    (up to five, and the nearest known one) and for pairs that are incomplete.
    """
    path = Path(path)
    refuse_pickle(path)
    file = _file_in(path) if path.is_dir() else path
    if not file.exists():
        raise CheckpointError(f"{path} does not exist: give a .safetensors file or a folder that holds one")
    _, metadata = list_tensors(file)
    return decode_lora(read_tensors(file), file, _adapter_config(file, metadata))


def is_lora(path: str | os.PathLike[str]) -> bool:
    """Whether a file, or the file in a folder, holds changes of weights rather than weights; pickles stay unopened."""
    path = Path(path)
    if path.is_dir():
        return any((path / name).exists() for name in LORA_FILES)
    if not path.exists():
        return False
    refuse_pickle(path)
    tensors, _ = list_tensors(path)
    return any(mark in name for name in tensors for mark in (".lora_", *_OTHER_METHODS))


def write_lora(
    state: Mapping[str, LoraPair], path: str | os.PathLike[str], dialect: Dialect, *, keep_alpha: bool = False
) -> Path:
    """Write a LoRA as one .safetensors file. Raises CheckpointError if `path` exists already or cannot be written."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} does not end in .safetensors: a LoRA is one file of that kind")
    tensors = encode_lora(state, dialect, keep_alpha=keep_alpha)
    with appearing(path) as partial:
        save_tensors(tensors, partial, {"format": "pt"})
    return path


def encode_lora(state: Mapping[str, LoraPair], dialect: Dialect, *, keep_alpha: bool = False) -> dict[str, Tensor]:
    """The tensors of a LoRA file. kohya's dialect always keeps alpha, diffusers' never does.

    `keep_alpha` writes `.alpha` in native names too: ComfyUI reads it, diffusers refuses the file.
    """
    if dialect not in get_args(Dialect):
        raise CheckpointError(f"dialect '{dialect}' is unknown: choose one of {', '.join(get_args(Dialect))}")
    if keep_alpha and dialect == "diffusers":
        raise CheckpointError("diffusers' dialect has no place for alpha: leave it to be folded into the weights")
    keeps = keep_alpha or dialect == "kohya"
    down, up = ("lora_down", "lora_up") if dialect == "kohya" else ("lora_A", "lora_B")
    tensors: dict[str, Tensor] = {}
    for layer, pair in state.items():
        stem = PREFIXES[dialect] + spell_layer(layer, dialect)
        written = pair if keeps or pair.scale == 1 else pair.folded()
        tensors[f"{stem}.{down}.weight"], tensors[f"{stem}.{up}.weight"] = written.down, written.up
        if keeps:
            tensors[f"{stem}.alpha"] = torch.tensor(written.alpha)
    return tensors


def decode_lora(
    tensors: Mapping[str, Tensor], source: Path, adapter: Mapping[str, Any] | None = None
) -> tuple[LoraState, Dialect]:
    """Pairs by layer from the tensors of a LoRA file in any dialect; `adapter` is peft's configuration, if any."""
    _refuse_other_methods(tensors, source)
    parts: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        layer, part = _layer_and_part(key)
        if layer is None:
            unknown.append(key)
        else:
            parts.setdefault(layer, {})[part] = tensor
    if unknown or not parts:
        raise CheckpointError(
            f"{source}: {len(unknown)} of {len(tensors)} keys belong to no layer of a K2 transformer "
            f"({listed(unknown)}{_nearest_key(unknown)}): give a LoRA made for K2"
        )
    state = {layer: _pair(layer, found, source, adapter or {}) for layer, found in parts.items()}
    return state, dialect_of(next(iter(tensors)))


def dialect_of(key: str) -> Dialect:
    """Which dialect a key is written in; a bare layer name is diffusers'."""
    for dialect, prefix in PREFIXES.items():
        if key.startswith(prefix):
            return dialect
    return "diffusers"


def spell_layer(layer: str, dialect: Dialect) -> str:
    """Our layer name as a dialect spells it, without its prefix."""
    if dialect == "diffusers":
        return layer
    native = native_name(f"{layer}.weight").removesuffix(".weight")
    return native.replace(".", "_") if dialect == "kohya" else native


def layer_of(spelling: str) -> str | None:
    """Our layer name of any dialect's spelling without its prefix, or None if a K2 transformer has no such layer."""
    spellings = (spelling, pleinair_name(f"{spelling}.weight").removesuffix(".weight"))
    for layer in spellings:
        if re.sub(r"\.\d+\.", ".{}.", layer) in _layers():
            return layer
    for pattern, layer in _kohya_patterns():
        if found := pattern.fullmatch(spelling):
            return layer.format(*found.groups())
    return None


@functools.cache
def _layers() -> tuple[str, ...]:
    """Every linear layer of a transformer, with {} for the number of a block."""
    one_of_each = TransformerConfig(num_layers=1, num_layerwise_text_blocks=1, num_refiner_text_blocks=1)
    with torch.device("meta"):
        model = Transformer(one_of_each)
    linears = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return tuple(re.sub(r"\.0\.", ".{}.", name) for name in linears)


@functools.cache
def _kohya_patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    """Both spellings with underscores, native and ours, of every layer."""
    return tuple(
        (re.compile(spelling.replace(".", "_").replace("{}", r"(\d+)")), layer)
        for layer in _layers()
        for spelling in (spell_layer(layer, "native"), layer)
    )


def _layer_and_part(key: str) -> tuple[str | None, str]:
    for pattern, part in _SUFFIXES:
        if found := pattern.search(key):
            stem = key[: found.start()]
            for prefix in ("base_model.model.", "diffusion_model.", "transformer.", "lora_unet_"):
                stem = stem.removeprefix(prefix)
            return layer_of(stem), part
    return None, ""


def _pair(layer: str, found: Mapping[str, Tensor], source: Path, adapter: Mapping[str, Any]) -> LoraPair:
    if _DOWN not in found or _UP not in found:
        raise CheckpointError(f"{source} holds only a part of the LoRA of '{layer}': fetch the whole file again")
    down, up = found[_DOWN], found[_UP]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{source} holds for '{layer}' matrices {tuple(down.shape)} and {tuple(up.shape)}, which share no rank: "
            "fetch the file again"
        )
    rank = down.shape[0]
    if _ALPHA in found:
        return LoraPair(down, up, float(found[_ALPHA]))
    patterns = adapter.get("alpha_pattern") or {}
    alpha = patterns.get(layer, patterns.get(spell_layer(layer, "native"), adapter.get("lora_alpha", rank)))
    return LoraPair(down, up, float(alpha) * (math.sqrt(rank) if adapter.get("use_rslora") else 1.0))


def _refuse_other_methods(tensors: Mapping[str, Tensor], source: Path) -> None:
    for key in tensors:
        for mark, method in _OTHER_METHODS.items():
            if mark in key:
                raise CheckpointError(
                    f"{source} is a {method} ('{key}'), which is not a product of two matrices and is not read here: "
                    "merge it into the weights with the program that made it, or train a plain LoRA"
                )


def _nearest_key(keys: Sequence[str]) -> str:
    """A hint in the dialect the keys are written in, for the blocks they name."""
    if not keys:
        return ""
    dialect = dialect_of(keys[0])
    numbers = {number for key in keys[:NAMED_KEYS] for number in re.findall(r"\d+", key)[:1]} or {"0"}
    suffixes = ("lora_down.weight", "lora_up.weight") if dialect == "kohya" else ("lora_A.weight", "lora_B.weight")
    layers = {layer.format(number) for layer in _layers() for number in numbers}
    known = [f"{PREFIXES[dialect]}{spell_layer(layer, dialect)}.{end}" for layer in sorted(layers) for end in suffixes]
    return nearest(keys, known)


def _file_in(folder: Path) -> Path:
    for name in LORA_FILES:
        if (folder / name).exists():
            return folder / name
    raise CheckpointError(f"{folder} holds no LoRA ({' or '.join(LORA_FILES)}): give the .safetensors file itself")


def _adapter_config(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """peft's configuration, from diffusers' metadata or the file that peft writes beside the weights."""
    if ADAPTER_METADATA in metadata:
        document = json.loads(metadata[ADAPTER_METADATA])
        return {key.removeprefix(PREFIXES["diffusers"]): value for key, value in document.items()}
    beside = file.with_name("adapter_config.json")
    return read_json(beside) if beside.exists() else {}
