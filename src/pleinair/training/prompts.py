"""Prompts without pictures, as batches: what stages learn from that make their own pictures.

    prompts --TextEncoder, FeatureProjection--> PromptSet --PromptLoader.batch(step)-->  PromptBatch
    a pack's captions --LatentLoader------------> CaptionLoader.batch(step) ---------->  PromptBatch, several InTurn

As with pictures, a batch is a function of (seed, step), whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pleinair.model.text_encoder import FeatureProjection, TextEncoder
from pleinair.packs.loader import LatentBatch
from pleinair.packs.pack import Pack
from pleinair.records.errors import ConfigError
from pleinair.training.engine import Loader

LatentShape = tuple[int, ...]
"""Channels, height, width."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of one step, or a rank's part of them."""

    keys: list[str]
    text_features_BTLD: Tensor
    """Projected, padded on the right to the longest of the global batch."""
    text_mask_BT: Tensor
    """Bool, true where real."""
    domains_B: Tensor
    """(B,) int64: which domain each prompt belongs to, from 0; all 0 where there is one."""
    latent_shape: LatentShape
    """Of the pictures that are to be made of them."""


@dataclass(frozen=True)
class PromptSet:
    """Distinct prompts with their features, in memory."""

    prompts: Sequence[str]
    features_NTLD: Tensor
    """Projected, padded on the right."""
    mask_NT: Tensor
    domains_N: Tensor
    """(N,) int64."""

    def __post_init__(self) -> None:
        sizes = [len(self.prompts), len(self.features_NTLD), len(self.mask_NT), len(self.domains_N)]
        if len(set(sizes)) > 1 or not sizes[0]:
            raise ConfigError(f"prompts, features, masks and domains number {sizes}: give one of each, at least one")


def encode_prompts(
    prompts: Sequence[str], encoder: TextEncoder, projection: FeatureProjection, domains: Sequence[int] = ()
) -> PromptSet:
    """A set of prompts; the empty prompt may be among them. Without `domains` all are of domain 0."""
    encoded = encoder.encode(prompts)
    domains_N = torch.tensor(domains if len(domains) else [0] * len(prompts))
    return PromptSet(prompts, projection(encoded.features_BTLD), encoded.mask_BT, domains_N)


class PromptLoader:
    """Prompts in an order that is new in every epoch; rank `rank` of `num_ranks` gets its part of each batch."""

    def __init__(
        self,
        prompts: PromptSet,
        latent_shape: LatentShape,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self.prompts, self.latent_shape, self.batch_size, self.seed = prompts, latent_shape, batch_size, seed
        self.rank, self.num_ranks = rank, num_ranks

    def batch(self, step: int) -> PromptBatch:
        """The prompts of a step, counted from 0 over all epochs."""
        rows = self._rows(step)
        longest = int(self.prompts.mask_NT[rows].sum(1).max())
        mine = self._mine(rows)
        return PromptBatch(
            [self.prompts.prompts[row] for row in mine],
            self.prompts.features_NTLD[mine, :longest],
            self.prompts.mask_NT[mine, :longest],
            self.prompts.domains_N[mine],
            self.latent_shape,
        )

    def keys(self, step: int) -> list[str]:
        """The prompts themselves."""
        return [self.prompts.prompts[row] for row in self._mine(self._rows(step))]

    def _mine(self, rows: list[int]) -> list[int]:
        first, last = (len(rows) * edge // self.num_ranks for edge in (self.rank, self.rank + 1))
        return rows[first:last]

    def _rows(self, step: int) -> list[int]:
        count = len(self.prompts.prompts)
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {
            epoch: np.random.default_rng([self.seed, epoch]).permutation(count)
            for epoch in range(places[0] // count, places[-1] // count + 1)
        }
        return [int(orders[place // count][place % count]) for place in places]


class CaptionLoader:
    """The captions of a pack's batches, their latents left aside; prompts that the loader drops are empty ones."""

    def __init__(self, loader: Loader[LatentBatch], domain: int = 0) -> None:
        self.loader, self.domain = loader, domain

    def batch(self, step: int) -> PromptBatch:
        """The captions of a step."""
        batch = self.loader.batch(step)
        domains_B = torch.full((len(batch.keys),), self.domain)
        shape = tuple(batch.latents_BCHW.shape[1:])
        return PromptBatch(batch.keys, batch.text_features_BTLD, batch.text_mask_BT, domains_B, shape)

    def keys(self, step: int) -> list[str]:
        """Keys of the pictures whose captions these are."""
        return self.loader.keys(step)


class InTurn:
    """Several loaders, a batch of each in turn."""

    def __init__(self, loaders: Sequence[Loader[PromptBatch]]) -> None:
        self.loaders = loaders

    def batch(self, step: int) -> PromptBatch:
        """The next batch of the loader whose turn it is."""
        return self.loaders[step % len(self.loaders)].batch(step // len(self.loaders))

    def keys(self, step: int) -> list[str]:
        """Its keys."""
        return self.loaders[step % len(self.loaders)].keys(step // len(self.loaders))


def empty_prompt_of(pack: Pack) -> Tensor:
    """(1, T, L, D) float32 features of the empty prompt, as a pack holds them."""
    stored_TW = torch.from_numpy(pack.empty_prompt().copy())
    features_TLD: Tensor = stored_TW.view(getattr(torch, pack.manifest.dtype)).unflatten(-1, pack.manifest.token_shape)
    return features_TLD.float()[None]
