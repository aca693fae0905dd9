"""Our own small image-text model: an image tower on frozen embeddings, a text tower on hashed words.

    frozen embedding (B, E) --standardise, MLP-->  image features (B, D), length 1  \
                                                                                     > scale * cosine -> which text fits
    words, word pairs, letter groups --mean of vectors, MLP--> text features (B, D) /

No CLIP or SigLIP weights come as a package, so this one is trained on the project's captions
(pleinair.curation.small_models.tower). The text tower hashes what it reads into a fixed table, as fastText does: letter groups
let it place a word that no caption held beside those it resembles. It knows nothing of word order beyond pairs.

B batch, E embedding width, D features, T texts.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pleinair.model.image_encoder import ImageEncoder, Picture
from pleinair.records.errors import ConfigError

MAX_SCALE = 100.0
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class TwoTowerConfig:
    """Sizes of the towers."""

    encoder_name: str
    """Name of the frozen encoder whose vectors the image tower takes."""
    embedding_width: int
    """Width of those vectors."""
    features: int = 256
    """Size of the shared space."""
    hidden: int = 512
    """Hidden width of both towers."""
    buckets: int = 16384
    """Rows of the hashed table of words, word pairs and letter groups."""
    dropout: float = 0.2
    """Of the frozen vector's entries and of the bag's, while training."""

    def __post_init__(self) -> None:
        for name in ("embedding_width", "features", "hidden", "buckets"):
            if getattr(self, name) < 1:
                raise ConfigError(f"two-tower {name} is {getattr(self, name)}: give 1 or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"two-tower dropout is {self.dropout}: give a share under 1")


class TwoTower(nn.Module):
    """Both towers and the scale of their cosine."""

    mean_E: Tensor
    std_E: Tensor

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean_E", torch.zeros(config.embedding_width))
        self.register_buffer("std_E", torch.ones(config.embedding_width))
        self.image_tower = tower(config.embedding_width, config)
        self.words = nn.EmbeddingBag(config.buckets, config.features, mode="mean")
        nn.init.normal_(self.words.weight, std=0.5)
        self.text_tower = tower(config.features, config)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def image_features(self, embeddings_BE: Tensor) -> Tensor:
        """(B, D) of length 1."""
        features_BD: Tensor = self.image_tower((embeddings_BE - self.mean_E) / self.std_E)
        return F.normalize(features_BD, dim=1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(T, D) of length 1. Raises ValueError for a text without a letter or digit."""
        bags = [text_buckets(text, self.config.buckets) for text in texts]
        offsets_T = torch.tensor([0, *map(len, bags)]).cumsum(0)[:-1]
        bag_TD = self.words(torch.tensor([bucket for bag in bags for bucket in bag]), offsets_T)
        features_TD: Tensor = self.text_tower(bag_TD)
        return F.normalize(features_TD, dim=1)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied with before the softmax."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)

    def set_statistics(self, embeddings_NE: Tensor) -> None:
        """Measure mean and deviation of the frozen vectors; they travel with the weights."""
        self.mean_E.copy_(embeddings_NE.mean(0))
        self.std_E.copy_(embeddings_NE.std(0).clamp_min(1e-6))


def tower(width: int, config: TwoTowerConfig) -> nn.Sequential:
    """Two layers into the shared space."""
    return nn.Sequential(
        nn.Dropout(config.dropout),
        nn.Linear(width, config.hidden),
        nn.GELU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.hidden, config.features),
    )


def contrastive_loss(images_BD: Tensor, texts_BD: Tensor, scale: Tensor, same_BB: Tensor) -> Tensor:
    """Symmetric cross-entropy over cosines; `same_BB` marks pairs whose texts are equal, which share the target."""
    logits_BB = scale * images_BD @ texts_BD.T
    target_BB = same_BB / same_BB.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits_BB, target_BB) + F.cross_entropy(logits_BB.T, target_BB)) / 2


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers."""
    return _WORD.findall(text.lower())


@lru_cache(maxsize=65536)
def text_buckets(text: str, num_buckets: int) -> tuple[int, ...]:
    """Rows of the hashed table a text reads: each word, each pair of neighbours, each 4 letters of a longer word."""
    words = words_of(text)
    if not words:
        raise ValueError(f"the text {text!r:.60} has no letter or digit: give words")
    pieces = [*words, *(f"{first} {second}" for first, second in itertools.pairwise(words))]
    for word in words:
        edged = f"<{word}>"
        pieces += [edged[at : at + 4] for at in range(len(edged) - 3) if len(edged) > 4]
    return tuple(zlib.crc32(piece.encode()) % num_buckets for piece in pieces)


class PictureTextScorer:
    """How well texts fit pictures, by a trained two-tower model and its frozen encoder."""

    def __init__(self, model: TwoTower, encoder: ImageEncoder) -> None:
        if encoder.name != model.config.encoder_name:
            raise ConfigError(
                f"the two-tower model was trained on {model.config.encoder_name}, not on {encoder.name}: load that encoder"
            )
        self.model, self.encoder = model.eval(), encoder

    @property
    def name(self) -> str:
        """Model and encoder, for provenance columns."""
        return f"two-tower-v1 on {self.encoder.name}"

    def score(self, pictures: Sequence[Picture], texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(N, T) cosines of every picture with every text, NaN for a text without a word.

        They are no probabilities: compare texts of one picture with each other.
        """
        return self.score_embeddings(self.encoder.embed(pictures), texts)

    @torch.inference_mode()
    def score_embeddings(self, embeddings_NE: npt.NDArray[np.float32], texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The same from stored vectors of the encoder; for search over many pictures."""
        scores_NT = np.full((len(embeddings_NE), len(texts)), np.nan, np.float32)
        spoken = [place for place, text in enumerate(texts) if words_of(text)]
        if spoken and len(embeddings_NE):
            images_ND = self.model.image_features(torch.from_numpy(embeddings_NE))
            scores_NT[:, spoken] = (images_ND @ self.model.text_features([texts[place] for place in spoken]).T).numpy()
        return scores_NT
