"""Text encoders behind one protocol: prompts to hidden states of chosen layers of a frozen language model.

    prompts --tokenise--> ids --batches of one length--> language model --> hidden states of `layers`
            --EncodedText: padded on the right--> FeatureProjection (standardise, project)--> text features_BTLD

    text_encoders/causal.py       language models with a template around the prompt; `qwen3_vl.py` and `smollm2.py` are two
    text_encoders/t5.py           T5, UMT5, T5Gemma
    text_encoders/cache.py        any of them, each distinct prompt encoded once and kept on disk
    text_encoders/folder.py       the right one for a model folder

No padded token is ever encoded: prompts of one length share a batch, which costs nothing and needs no mask.
`FeatureProjection` holds the statistics and travels with the transformer trained on them.

B batch, T text tokens, L layers, D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

MAX_PROMPT_TOKENS = 512
"""Longest prompt that is encoded, in tokens, as in K2."""


@dataclass(frozen=True)
class EncodedText:
    """Features of a batch of prompts, padded on the right."""

    features_BTLD: Tensor
    """(B, T, L, D), in the language model's dtype, zero where padded."""
    mask_BT: Tensor
    """(B, T) bool, true where a token is real."""


class TextEncoder(Protocol):
    """What sampling and packing need from a language model."""

    @property
    def name(self) -> str:
        """What people call it."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the features: weights, tokenizer, template, layers."""
        ...

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the hidden states that are given; 0 is the embedding."""
        ...

    @property
    def num_layers(self) -> int:
        """How many those are."""
        ...

    @property
    def width(self) -> int:
        """Dimensions of a hidden state."""
        ...

    def encode(self, prompts: Sequence[str]) -> EncodedText:
        """Raw hidden states of `layers`, template prefix dropped. Raises ValueError for a prompt that is too long."""
        ...


def padded(rows_TLD: Sequence[Tensor]) -> EncodedText:
    """Features of single prompts, (T, L, D) each, as one batch."""
    lengths = torch.tensor([len(row) for row in rows_TLD], device=rows_TLD[0].device)
    mask_BT = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    return EncodedText(nn.utils.rnn.pad_sequence(list(rows_TLD), batch_first=True), mask_BT)


def encode_alike(
    ids: Sequence[list[int]],
    kinds: Sequence[Hashable],
    states: Callable[[list[list[int]]], Tensor],
    batch_size: int,
) -> EncodedText:
    """Run `states` on batches of one kind and one length; it gives (B, T, L, D) without padding."""
    rows: list[Tensor | None] = [None] * len(ids)
    for chosen in _alike([(kind, len(of_row)) for kind, of_row in zip(kinds, ids, strict=True)], batch_size):
        for row, features_TLD in zip(chosen, states([ids[row] for row in chosen]), strict=True):
            rows[row] = features_TLD
    return padded([row for row in rows if row is not None])


def _alike(keys: Sequence[Hashable], batch_size: int) -> Iterator[list[int]]:
    rows_of: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        rows_of.setdefault(key, []).append(row)
    for rows in rows_of.values():
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]


def require_length(prompt: str, num_tokens: int, most: int) -> None:
    """Raise ValueError with the length of a prompt that has more than `most` tokens."""
    if num_tokens > most:
        raise ValueError(
            f"the prompt has {len(prompt)} characters, {num_tokens} tokens, and the most is {most}: "
            f"shorten it ('{prompt[:40]}...')"
        )


def require_layers(layers: Sequence[int], num_hidden: int, name: str) -> None:
    """Raise ValueError when `name`, with states 0..num_hidden, has no such layers."""
    if not layers or min(layers) < 0 or max(layers) > num_hidden:
        raise ValueError(f"layers are {tuple(layers)} and {name} has 0 to {num_hidden}: choose some of these")


class FeatureProjection(nn.Module):
    """Standardises each layer and dimension over the data, then projects onto the leading directions of each layer.

    With `dim` 0 it has no directions and features pass as they are, for models that read the language model's own (K2).
    Otherwise the projection is fixed (a principal component analysis of the training captions), so features are cached once and
    the trained text fusion works at a fraction of the language model's width.
    """

    mean_LD: Tensor
    std_LD: Tensor
    basis_LDK: Tensor

    def __init__(self, num_layers: int, width: int, dim: int) -> None:
        super().__init__()
        self.num_layers, self.width, self.dim = num_layers, width, dim or width
        self.register_buffer("mean_LD", torch.zeros(num_layers, width))
        self.register_buffer("std_LD", torch.ones(num_layers, width))
        self.register_buffer("basis_LDK", torch.eye(width)[:, :dim].repeat(num_layers, 1, 1))

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> FeatureProjection:
        """The projection that a stored state is."""
        projection = cls(*state["basis_LDK"].shape)
        projection.load_state_dict(state)
        return projection

    @property
    def passes_on(self) -> bool:
        """Whether features pass as they are."""
        return self.basis_LDK.shape[-1] == 0

    def forward(self, raw_BTLD: Tensor) -> Tensor:
        """(B, T, L, width) to (B, T, L, dim), float32, each layer with mean square 1 over the fitted data."""
        if self.passes_on:
            return raw_BTLD.float()
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
