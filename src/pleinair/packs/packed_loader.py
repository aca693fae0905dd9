"""Batches whose prompts lie end to end, with an equal number of text rows on every rank at every step.

    step --Planner, levelled--> global batch with captions of all lengths, in n = ranks x micro-batches equal parts
    a part's captions --end to end, zeros up to the budget--> (budget, L, D)       one shape on all ranks, at all steps

The budget is what the fullest part of the first windows needs, and a little. Every rank knows the lengths of the whole
global batch, so where one part of a later step needs more, all ranks have the same larger budget at that step.

What it trades: a batch no longer holds captions of like length, and a rank reads rows from all row groups of a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pleinair.packs.loader import LatentRows
from pleinair.packs.order import WINDOW_BATCHES
from pleinair.packs.pack import Pack
from pleinair.packs.plan import Chosen, LoaderConfig
from pleinair.packs.shards import Bytes
from pleinair.records.errors import ConfigError
from pleinair.records.text_budget import in_steps

MARGIN = 1.02
"""Budget over what the fullest part of the measured batches needs: later windows are a little fuller now and then."""
MEASURED_STEPS = 8 * WINDOW_BATCHES
"""Steps whose lengths the budget is measured on; it is found again the same wherever a run is resumed."""


@dataclass(frozen=True, eq=False)
class PackedPrompts:
    """Prompts of a batch in equal parts, each packed to one budget: rows of a batch, to be sliced along the parts."""

    features_PRLD: Tensor
    """(parts, budget, L, D): a part's prompts end to end, zeros after them."""
    lengths: tuple[int, ...]
    """Rows of each prompt, part after part."""

    def __len__(self) -> int:
        """Prompts."""
        return len(self.lengths)

    def __getitem__(self, rows: slice) -> PackedPrompts:
        """Whole parts. Raises ValueError for a slice that cuts one."""
        first, last, _ = rows.indices(len(self))
        size = len(self) // len(self.features_PRLD)
        if first % size or last % size:
            raise ValueError(
                f"prompts {first} to {last} cut a packed part of {size}: pack in as many parts as there are slices"
            )
        return PackedPrompts(self.features_PRLD[first // size : last // size], self.lengths[first:last])

    def to(self, device: torch.device, *, non_blocking: bool = False) -> PackedPrompts:
        """The same on a device."""
        return PackedPrompts(self.features_PRLD.to(device, non_blocking=non_blocking), self.lengths)

    @property
    def features_RLD(self) -> Tensor:
        """The rows of a single part. Raises ValueError where there are more."""
        if len(self.features_PRLD) != 1:
            raise ValueError(f"prompts are packed in {len(self.features_PRLD)} parts: take one of them at a time")
        return self.features_PRLD[0]


@dataclass(frozen=True)
class PackedLatentBatch:
    """One training batch, or a rank's part of it, its prompts packed."""

    keys: list[str]
    latents_BCHW: Tensor
    """Standardised."""
    text: PackedPrompts
    """Projected."""


class PackedLoader(LatentRows):
    """As `LatentLoader`, with text packed; `num_parts` micro-batches of a rank are packed one by one."""

    def __init__(
        self,
        pack: Pack,
        resolution: int,
        config: LoaderConfig,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        num_parts: int = 1,
    ) -> None:
        if config.batch_size % (num_ranks * num_parts):
            raise ConfigError(
                f"a batch of {config.batch_size} does not divide into {num_ranks} ranks of {num_parts} micro-batches: "
                "packed text needs equal parts"
            )
        super().__init__(pack, resolution, config, rank, num_ranks, levelled=True)
        self.num_parts = num_parts
        measured = range(min(len(self), MEASURED_STEPS))
        fullest = max(self._fullest_part(self.plan.chosen(step)) for step in measured)
        self.budget = in_steps(round(MARGIN * fullest))

    def batch(self, step: int) -> PackedLatentBatch:
        """The batch of a step, counted from 0 over all epochs."""
        chosen = self.plan.chosen(step)
        mine, budget = self._mine(chosen), max(self.budget, in_steps(self._fullest_part(chosen)))
        features_PRLD = self._tensor(self._packed(mine, budget), self.pack.manifest.token_shape)
        text = PackedPrompts(features_PRLD, tuple(mine.lengths.tolist()))
        return PackedLatentBatch(self._keys(mine), self._latents(mine), text)

    def _fullest_part(self, chosen: Chosen) -> int:
        """Most tokens of any micro-batch of any rank."""
        return int(chosen.lengths.reshape(self.num_ranks * self.num_parts, -1).sum(axis=1).max())

    def _packed(self, mine: Chosen, budget: int) -> Bytes:
        """Tokens (parts, budget, bytes of a token)."""
        tokens_PRW = np.zeros((self.num_parts, budget, self.empty_prompt.shape[1]), np.uint8)
        in_part = mine.lengths.reshape(self.num_parts, -1)
        places = np.arange(self.num_parts)[:, None] * budget + np.cumsum(in_part, axis=1) - in_part
        rows_RW = tokens_PRW.reshape(-1, tokens_PRW.shape[-1])
        for place, caption_TW in zip(places.ravel().tolist(), self._captions(mine), strict=True):
            rows_RW[place : place + len(caption_TW)] = caption_TW
        return tokens_PRW
