"""Is a picture a copy of another? An embedding that stays when a picture is moved, scaled, softened or recoloured a little.

    real pictures, and each after a planted change --frozen features--> pairs --InfoNCE--> one linear map, length 1
    held-out real pictures: changed against original, and against their nearest other --> AUROC, threshold

The idea is SSCD's (Pizzi et al. 2022: contrastive, and spread over the sphere by the entropy of nearest neighbours),
at the size of these pictures. A copy is called where the similarity passes the threshold that one in a hundred real
pictures reaches with the nearest other real one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.checkpoint.compact import load_compact, save_compact
from pleinair.config import from_document, to_document
from pleinair.evaluation.augment import augment
from pleinair.evaluation.features import Features, Pictures

Similarities = npt.NDArray[np.float32]
FALSE_COPY_SHARE = 0.01


@dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """How the map is fitted."""

    width: int
    """Size of a feature vector."""
    dim: int = 128
    """Size of the embedding."""
    epochs: int = 20
    """Passes over the pairs."""
    batch_size: int = 256
    """Pairs in a step, each the others' negatives."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW; a cosine to zero."""
    temperature: float = 0.05
    """Of the softmax over a batch."""
    spread_weight: float = 0.2
    """Of the distance to the nearest other, beside the contrast."""
    seed: int = 3
    """Of weights, order and planted changes."""


class CopyEmbedding(nn.Module):
    """Features to unit vectors whose cosine says how much of a copy one picture is of another."""

    mean_F: Tensor
    std_F: Tensor

    def __init__(self, config: CopyConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean_F", torch.zeros(config.width))
        self.register_buffer("std_F", torch.ones(config.width))
        self.project = nn.Linear(config.width, config.dim)

    def forward(self, features_BF: Tensor) -> Tensor:
        """(B, D) of length 1."""
        return F.normalize(self.project(((features_BF - self.mean_F) / self.std_F).clamp(-8, 8)), dim=1)

    @torch.inference_mode()
    def embed(self, features_NF: Features) -> Features:
        """(N, D) of length 1."""
        embedded: Features = self.eval()(torch.from_numpy(features_NF)).numpy()
        return embedded


def changed(pictures_NHWC: Pictures, seed: int) -> Pictures:
    """Each picture after a planted change that leaves it a copy: moved, scaled, stretched, turned, soft, noisy, jittered.

    Restyled ones (see `augment`) are left as they were: to a copy detector another style is another picture.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(pictures_NHWC), 512):
        plain = torch.from_numpy(pictures_NHWC[start : start + 512]).permute(0, 3, 1, 2).float() / 255
        moved, keeps_style = augment(plain, generator)
        moved[~keeps_style] = plain[~keeps_style]
        parts.append((moved.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def fit_copies(
    plain_NF: Features,
    changed_NF: Features,
    config: CopyConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> CopyEmbedding:
    """The map fitted to pairs of features, row by row a picture before and after a change."""
    torch.manual_seed(config.seed)
    embedding = CopyEmbedding(config)
    before, after = torch.from_numpy(plain_NF), torch.from_numpy(changed_NF)
    embedding.mean_F.copy_(before.mean(0))
    embedding.std_F.copy_(before.std(0).clamp(min=1e-3))
    optimiser = torch.optim.AdamW(embedding.parameters(), config.learning_rate)
    steps = config.epochs * -(-len(before) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order = torch.Generator().manual_seed(config.seed)
    for epoch in range(config.epochs):
        for rows in torch.randperm(len(before), generator=order).split(config.batch_size):
            loss = contrast(embedding(before[rows]), embedding(after[rows]), config)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        on_progress(epoch + 1, config.epochs)
    return embedding.eval()


def contrast(before_BD: Tensor, after_BD: Tensor, config: CopyConfig) -> Tensor:
    """InfoNCE both ways, and minus the mean log distance to the nearest other picture (KoLeo)."""
    similarity_BB = before_BD @ after_BD.T / config.temperature
    own = torch.arange(len(before_BD))
    contrastive = (F.cross_entropy(similarity_BB, own) + F.cross_entropy(similarity_BB.T, own)) / 2
    others_BB = before_BD @ before_BD.T - 2 * torch.eye(len(before_BD))
    distance_B = (2 - 2 * others_BB.max(dim=1).values).clamp(min=1e-6).sqrt()
    return contrastive - config.spread_weight * distance_B.log().mean()


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How well planted copies are told from the most alike other picture, on pictures the map was not fitted on."""

    auroc: float
    threshold: float
    found_share: float
    """Share of planted copies over the threshold."""
    num: int


def calibrate(plain_ND: Features, changed_ND: Features) -> Calibration:
    """Of unit embeddings, row by row a picture before and after a change. Raises ValueError for fewer than two."""
    if len(plain_ND) < 2:
        raise ValueError(f"{len(plain_ND)} pictures cannot calibrate copies: give two or more")
    copies_N = (plain_ND * changed_ND).sum(axis=1)
    others_N = nearest_similarity(changed_ND, plain_ND, exclude_own=True)
    threshold = float(np.quantile(nearest_similarity(plain_ND, plain_ND, exclude_own=True), 1 - FALSE_COPY_SHARE))
    return Calibration(
        auroc=auroc(copies_N, others_N),
        threshold=threshold,
        found_share=float((copies_N > threshold).mean()),
        num=len(plain_ND),
    )


def nearest_similarity(queries_ND: Features, references_MD: Features, *, exclude_own: bool = False) -> Similarities:
    """(N,) similarity of each query to its nearest reference; to another row than its own where both are one list."""
    found = np.empty(len(queries_ND), np.float32)
    for start in range(0, len(queries_ND), 1024):
        block = queries_ND[start : start + 1024] @ references_MD.T
        if exclude_own:
            rows = np.arange(len(block))
            block[rows, start + rows] = -np.inf
        found[start : start + len(block)] = block.max(axis=1)
    return found


def auroc(positives_N: npt.NDArray[np.floating], negatives_M: npt.NDArray[np.floating]) -> float:
    """The chance that a positive scores above a negative; ties count half."""
    ordered_M = np.sort(negatives_M)
    below = np.searchsorted(ordered_M, positives_N, side="left")
    not_above = np.searchsorted(ordered_M, positives_N, side="right")
    return float((below + not_above).mean() / 2 / len(ordered_M))


def save_copies(embedding: CopyEmbedding, calibration: Calibration, path: Path) -> None:
    """One file in 8 bits, by rename."""
    document = {"copies": to_document(embedding.config), "calibration": to_document(calibration)}
    save_compact(path, embedding.state_dict(), document)


def load_copies(path: Path) -> tuple[CopyEmbedding, Calibration]:
    """What `save_copies` wrote. Raises CheckpointError when the file holds something else."""
    state, document = load_compact(path, "copies")
    embedding = CopyEmbedding(from_document(CopyConfig, document["copies"]))
    embedding.load_state_dict(state)
    return embedding.eval(), from_document(Calibration, document["calibration"])
