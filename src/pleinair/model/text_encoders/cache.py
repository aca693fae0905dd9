"""Any text encoder, each distinct prompt encoded once and kept on disk.

    directory/<digest of the encoder>/<2 hex>/<SHA-256 of the prompt>.safetensors      features_TLD

A file appears by rename, so it is whole or absent; one that a failing disk has damaged is made again. Processes may share
a directory: at worst two encode the same prompt. Another encoder, layer or template has another digest, so nothing is
ever mixed up; delete a digest's folder to free its space.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pleinair.model.text_encoder import EncodedText, TextEncoder, padded

ENCODE_PROMPTS = 256
"""Prompts encoded between writes: what a kill costs."""


class CachedTextEncoder:
    """`encoder`, with everything it has encoded kept under `directory`. Features are on the CPU."""

    def __init__(self, encoder: TextEncoder, directory: Path) -> None:
        self.encoder, self.directory = encoder, directory / encoder.digest
        self.name, self.digest, self.layers = encoder.name, encoder.digest, encoder.layers
        self.num_layers, self.width = encoder.num_layers, encoder.width

    def encode(self, prompts: Sequence[str]) -> EncodedText:
        """Equal to what `encoder` gives, to the last bit."""
        found = {prompt: self._read(prompt) for prompt in dict.fromkeys(prompts)}
        # Sorted by length, so that a chunk has few distinct lengths and the encoder's batches are full.
        missing = sorted((prompt for prompt, features in found.items() if features is None), key=len)
        for start in range(0, len(missing), ENCODE_PROMPTS):
            chunk = missing[start : start + ENCODE_PROMPTS]
            encoded = self.encoder.encode(chunk)
            for prompt, row_TLD, mask_T in zip(chunk, encoded.features_BTLD, encoded.mask_BT, strict=True):
                found[prompt] = features_TLD = row_TLD[mask_T].cpu()
                self._write(prompt, features_TLD)
        return padded([features for features in (found[prompt] for prompt in prompts) if features is not None])

    def path(self, prompt: str) -> Path:
        """Where a prompt's features are kept."""
        name = hashlib.sha256(prompt.encode()).hexdigest()
        return self.directory / name[:2] / f"{name}.safetensors"

    def _read(self, prompt: str) -> Tensor | None:
        try:
            features_TLD = load(self.path(prompt).read_bytes())["features_TLD"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None
        return features_TLD if features_TLD.shape[1:] == (self.num_layers, self.width) else None

    def _write(self, prompt: str, features_TLD: Tensor) -> None:
        path = self.path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as staging:
            staging.write(save({"features_TLD": features_TLD.contiguous()}))
        os.replace(staging.name, path)
