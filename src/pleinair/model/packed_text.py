"""Prompts of different lengths end to end in one row, so that padding costs nothing and every rank has one shape.

    features (B, T, L, D), valid rows of each prompt     pack_text    (budget, L, D): prompt 0 | prompt 1 | ... | zeros
    tokens (budget, D), image (B, I, D)                  interleave   (1, budget + B I, D): text 0 | image 0 | text 1 | ...

A batch of B prompts is padded once, at its end, to a budget of text rows that every rank and step shares: all tensors
but attention's own slices have one shape, so nothing is compiled twice and no rank waits for another's longer prompts.
Shapes: B samples, T text rows, L text-encoder layers, I image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pleinair.records.text_budget import BUDGET_STEP, text_budget

__all__ = ["PackedText", "RankSkew", "images_of", "interleave", "pack_text", "rank_skew", "text_budget"]


@dataclass(frozen=True, eq=False)
class PackedText:
    """A batch of prompts' features in one row, what `Transformer.encode_text` takes in place of padded ones."""

    features_RLD: Tensor
    """Rows of all prompts end to end, zeros after them up to the budget."""
    lengths: tuple[int, ...]
    """Rows of each prompt."""


def pack_text(features_BTLD: Tensor, mask_BT: Tensor, budget: int) -> PackedText:
    """The valid rows of padded features, in order. Call it where the batch is made: it reads the mask on the host.

    Raises ValueError if the budget is no multiple of 64 or the rows do not fit.
    """
    lengths = tuple(mask_BT.sum(dim=1).tolist())
    if budget <= 0 or budget % BUDGET_STEP:
        raise ValueError(f"text budget is {budget}: give a positive multiple of {BUDGET_STEP}")
    if sum(lengths) > budget:
        raise ValueError(
            f"{sum(lengths)} text rows do not fit a budget of {budget}: give {text_budget([lengths])} or fewer prompts"
        )
    rows_RLD = features_BTLD.new_zeros(budget, *features_BTLD.shape[2:])
    rows_RLD[: sum(lengths)] = features_BTLD[mask_BT.bool()]
    return PackedText(rows_RLD, lengths)


@dataclass(frozen=True, kw_only=True)
class RankSkew:
    """How unevenly a run's ranks are loaded, and how many shapes they see."""

    tokens_per_rank: tuple[int, ...]
    """Tokens each rank computes on over all steps, padding included."""
    wait_share: float
    """Share of all ranks' token time spent waiting for the longest rank of each step; 0 is even."""
    valid_share: float
    """Tokens that are no padding, of all computed."""
    num_shapes: int
    """Distinct shapes of the token tensor over ranks and steps: the graphs a compiler makes."""


def rank_skew(steps: Sequence[Sequence[Sequence[int]]], num_image: int, budget: int | None = None) -> RankSkew:
    """Loads of `steps[step][rank]`, the text lengths of that rank's samples, each with `num_image` image tokens.

    With a budget text is packed to it; without, padded to the longest prompt of the rank's batch.
    """

    def computed(lengths: Sequence[int]) -> int:
        return len(lengths) * num_image + (len(lengths) * max(lengths) if budget is None else budget)

    loads = torch.tensor([[computed(lengths) for lengths in ranks] for ranks in steps])
    valid = sum(len(lengths) * num_image + sum(lengths) for ranks in steps for lengths in ranks)
    held = int(loads.max(dim=1).values.sum()) * loads.shape[1]
    return RankSkew(
        tokens_per_rank=tuple(loads.sum(dim=0).tolist()),
        wait_share=1 - int(loads.sum()) / held,
        valid_share=valid / int(loads.sum()),
        num_shapes=len({(len(lengths), computed(lengths)) for ranks in steps for lengths in ranks}),
    )


def interleave(text_RD: Tensor, image_BID: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """(S, D): each sample's text rows and then its image rows, the unused text rows last. Any trailing shape will do."""
    *texts, filling = text_RD.split([*lengths, len(text_RD) - sum(lengths)])
    parts = [part for pair in zip(texts, image_BID, strict=True) for part in pair]
    return torch.cat([*parts, filling])


def images_of(x_SD: Tensor, lengths: tuple[int, ...], num_image: int) -> Tensor:
    """(B, I, D) from a row that `interleave` made."""
    sizes = [size for length in lengths for size in (length, num_image)]
    return torch.stack(x_SD.split([*sizes, len(x_SD) - sum(sizes)])[1:-1:2])
