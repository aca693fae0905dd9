"""SHA-256 of frozen parts, so that features and latents are known by what made them, wherever the files lie."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn


def part_digest(module: nn.Module, *described: object) -> str:
    """Digest of a module's tensors (name, dtype, shape, bytes) and of JSON-able facts; some seconds for 10 GB."""
    hashed = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, value in sorted(module.state_dict().items()):
        hashed.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        plain = value.detach().cpu().contiguous().reshape(-1)
        hashed.update(plain.view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of a transformers tokenizer: the whole pipeline of a fast one, the vocabulary of another."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        whole: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()}
    else:
        whole = json.loads(fast.to_str())
        # Left behind by whoever called it last; what decides tokens is the rest.
        whole = {name: value for name, value in whole.items() if name not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
