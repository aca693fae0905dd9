"""A second judge, independent of the first: linear heads on frozen features of another network, another seed.

    features (N, F) --standardise--> +-- softmax over styles
                                     +-- project to D, length 1 -> cosine to one direction per concept

Where the two judges disagree about the sign of a difference, the difference is not claimed.
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
from pleinair.evaluation.features import Features
from pleinair.model.judge import JudgeScores

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SecondJudgeConfig:
    """What it can name, and how its heads are fitted."""

    style_names: tuple[str, ...]
    """In the order of the labels."""
    concept_names: tuple[str, ...]
    """In the order of the labels."""
    features: str
    """Name of the frozen features."""
    width: int
    """Size of a feature vector."""
    concept_features: int = 256
    """Size of the concept embedding."""
    epochs: int = 30
    """Passes over the pictures."""
    batch_size: int = 256
    """Pictures in a step."""
    learning_rate: float = 3e-3
    """Peak rate of AdamW; a cosine to zero."""
    weight_decay: float = 0.1
    """Decoupled."""
    dropout: float = 0.3
    """Of features, while fitted."""
    seed: int = 17
    """Of weights and order; another than the first judge's."""


class SecondJudge(nn.Module):
    """The heads."""

    mean_F: Tensor
    std_F: Tensor

    def __init__(self, config: SecondJudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean_F", torch.zeros(config.width))
        self.register_buffer("std_F", torch.ones(config.width))
        self.style = nn.Linear(config.width, len(config.style_names))
        self.project = nn.Linear(config.width, config.concept_features)
        self.directions_CD = nn.Parameter(torch.randn(len(config.concept_names), config.concept_features))
        self.scale = nn.Parameter(torch.tensor([16.0]))

    def forward(self, features_BF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Style logits (B, S), concept logits (B, C), concept embedding (B, D) of length 1."""
        x_BF = F.dropout(self._standard(features_BF), self.config.dropout, self.training)
        embedding_BD = F.normalize(self.project(x_BF), dim=1)
        return self.style(x_BF), self.scale * embedding_BD @ F.normalize(self.directions_CD, dim=1).T, embedding_BD

    def _standard(self, features_BF: Tensor) -> Tensor:
        return ((features_BF - self.mean_F) / self.std_F).clamp(-8, 8)

    @torch.inference_mode()
    def standardised(self, features_NF: Features) -> Features:
        """Features with mean 0 and deviation 1 over the real pictures it was fitted to."""
        standard: Features = self._standard(torch.from_numpy(features_NF)).numpy()
        return standard

    @torch.inference_mode()
    def judge(self, features_NF: Features) -> JudgeScores:
        """Scores as the first judge gives them."""
        self.eval()
        style_NS, concept_NC, embedding_ND = self(torch.from_numpy(features_NF))
        return JudgeScores(
            style_logits=style_NS.numpy(), concept_logits=concept_NC.numpy(), embedding=embedding_ND.numpy()
        )


def fit_second_judge(
    features_NF: Features,
    styles_N: Labels,
    concepts_N: Labels,
    config: SecondJudgeConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SecondJudge:
    """Heads fitted to real pictures that training was allowed to see; the same bits for the same input and threads."""
    torch.manual_seed(config.seed)
    judge = SecondJudge(config)
    features = torch.from_numpy(features_NF)
    judge.mean_F.copy_(features.mean(0))
    judge.std_F.copy_(features.std(0).clamp(min=1e-3))
    styles, concepts = torch.from_numpy(styles_N), torch.from_numpy(concepts_N)
    optimiser = torch.optim.AdamW(judge.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    steps_per_epoch = -(-len(features) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs * steps_per_epoch)
    order = torch.Generator().manual_seed(config.seed)
    for epoch in range(config.epochs):
        for rows in torch.randperm(len(features), generator=order).split(config.batch_size):
            style_BS, concept_BC, _ = judge(features[rows])
            loss = F.cross_entropy(style_BS, styles[rows], label_smoothing=0.05) + F.cross_entropy(
                concept_BC, concepts[rows], label_smoothing=0.1
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        on_progress(epoch + 1, config.epochs)
    return judge.eval()


def save_second_judge(judge: SecondJudge, path: Path) -> None:
    """One file in 8 bits, by rename."""
    save_compact(path, judge.state_dict(), {"second_judge": to_document(judge.config)})


def load_second_judge(path: Path) -> SecondJudge:
    """What `save_second_judge` wrote. Raises CheckpointError when the file holds something else."""
    state, document = load_compact(path, "second_judge")
    judge = SecondJudge(from_document(SecondJudgeConfig, document["second_judge"]))
    judge.load_state_dict(state)
    return judge.eval()
