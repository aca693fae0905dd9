"""Preference pairs as a preference model reads them: latents back to pictures, pictures to features.

PAIRS/ --autoencoder--> pictures of winners and losers --PairFeatures--> (N, F) each, with prompts and origins
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pleinair.model.autoencoder import LatentCodec, require_same_latents
from pleinair.model.pixels import to_bytes
from pleinair.packs.pairs import Pairs
from pleinair.records.rewards import Pictures
from pleinair.rewards.preference import Features, PairFeatures

_BATCH = 32


@dataclass(frozen=True)
class SeenPairs:
    """All that fitting needs of a folder of pairs."""

    winners_NF: Features
    losers_NF: Features
    prompts: tuple[str, ...]
    origins: dict[str, int]
    """Pairs by where their order comes from."""


def features_of_pairs(
    pairs: Pairs,
    codec: LatentCodec,
    features: PairFeatures,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SeenPairs:
    """Features of every pair, of all shapes, in the order of shapes. Raises PackError for latents of another autoencoder."""
    require_same_latents(pairs.manifest.latent_space, codec, pairs.directory)
    found: list[tuple[Features, Features]] = []
    prompts: list[str] = []
    for shape in pairs.shapes:
        all_rows = pairs.rows_of(shape)
        for rows in (all_rows[start : start + _BATCH] for start in range(0, len(all_rows), _BATCH)):
            told = [str(pairs.value("prompt", *row)) for row in rows]
            winners, losers = (pictures_of(pairs, f"{side}_latents", rows, codec) for side in ("winner", "loser"))
            found.append((features(told, winners), features(told, losers)))
            prompts += told
            on_progress(len(prompts), len(pairs))
    winners_NF, losers_NF = (np.concatenate(part) for part in zip(*found, strict=True))
    return SeenPairs(winners_NF, losers_NF, tuple(prompts), dict(Counter(pair.origin for pair in pairs)))


@torch.inference_mode()
def pictures_of(pairs: Pairs, name: str, rows: Sequence[tuple[int, int]], codec: LatentCodec) -> Pictures:
    """(N, H, W, 3) of stored latents of one shape."""
    stored = np.stack([pairs.binary(name, *row) for row in rows])
    shape = pairs.manifest.pieces[rows[0][0]].shape
    latents_BCHW = (
        torch.from_numpy(stored).view(getattr(torch, pairs.manifest.dtype)).reshape(len(rows), *shape).float()
    )
    return to_bytes(codec.decode(latents_BCHW))
