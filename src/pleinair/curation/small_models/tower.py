"""Training the two-tower model on captions of kept pictures, and what it then finds among pictures it never saw.

    vectors and captions of kept, not held-out pictures --contrastive loss--> TwoTower --held-out pictures--> recall@k

Every step says all its pictures in one way (long, medium, short, only the thing, only the style), because a batch that
mixed them would call a true text wrong: another picture's "noto style" is true of every noto drawing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pleinair.config import config_digest
from pleinair.curation.embeddings import get_vectors
from pleinair.curation.small_models.loop import TrainingProgress, batch_of, train_resumably
from pleinair.curation.stages import kept_where
from pleinair.curation.store import ObjectStore
from pleinair.krablet import Table
from pleinair.model.two_tower import TwoTower, TwoTowerConfig, contrastive_loss
from pleinair.records.errors import ConfigError, SourceError
from pleinair.records.wording import Medium, Wording

LABEL_WAY, STYLE_WAY = 3, 4
"""Ways of saying a picture, of long, medium, short, only the thing, only the style."""
COLUMNS = (
    "image_name", "source", "embedding_name", "embedding_path", "held_out", "label", "style",
    "caption_long", "caption_medium", "caption_short",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TowerTrainingConfig:
    """How the towers are trained."""

    epochs: int = 40
    """Passes over the pictures."""
    batch_size: int = 512
    """Pictures in a step; each is a wrong answer for every other."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW."""
    weight_decay: float = 0.05
    """Decoupled, on matrices."""
    buckets: int = 16384
    """Rows of the text tower's hashed table; most of the model."""
    seed: int = 0
    """Of weights, order, and which way a step says its pictures."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ConfigError(f"{self.epochs} epochs of batches of {self.batch_size}: give at least 1 and 2")


_QUERIES = 1024
"""Compared at once: all of a large set with all would fill the memory."""


@dataclass(frozen=True)
class SpokenPictures:
    """Vectors of pictures and the texts said of them."""

    encoder_name: str
    names: list[str]
    vectors_NE: npt.NDArray[np.float32]
    texts: Sequence[tuple[str, ...]]
    """By way of saying, one text per picture; empty where that way has nothing to say."""

    def where(self, rows: Sequence[int]) -> SpokenPictures:
        """Some of the pictures."""
        texts = [tuple(way[row] for row in rows) for way in self.texts]
        return SpokenPictures(self.encoder_name, [self.names[row] for row in rows], self.vectors_NE[list(rows)], texts)


@dataclass(frozen=True)
class Recall:
    """Shares of queries whose answer is among the first 1, 5 and 10 of all candidates; every text counts the same."""

    num_pictures: int
    num_texts: int
    """Different ones."""
    text_to_picture: tuple[float, float, float]
    picture_to_text: tuple[float, float, float]


def read_spoken(images: Table, store: ObjectStore, wording: Wording) -> tuple[SpokenPictures, SpokenPictures]:
    """Kept pictures to train on, and held-out ones. Raises SourceError when none is embedded."""
    rows = [
        row
        for batch in images.read(where=f"{kept_where(images)} AND embedding_path IS NOT NULL", columns=list(COLUMNS))
        for row in batch.to_pylist()
    ]
    rows.sort(key=lambda row: row["image_name"])
    encoders = {row["embedding_name"] for row in rows}
    if len(encoders) != 1:
        raise SourceError(f"pictures are embedded by {len(encoders)} encoders: run 'pleinair embed' to the end first")
    texts = list(zip(*(_texts(row, wording) for row in rows), strict=True))
    vectors_NE = get_vectors(store, [row["embedding_path"] for row in rows])
    spoken = SpokenPictures(encoders.pop(), [row["image_name"] for row in rows], vectors_NE, texts)
    held_out = [bool(row["held_out"]) for row in rows]
    return (
        spoken.where([number for number, held in enumerate(held_out) if not held]),
        spoken.where([number for number, held in enumerate(held_out) if held]),
    )


def _texts(row: Mapping[str, object], wording: Wording) -> tuple[str, ...]:
    """A text per way; a source without styles has its kind of picture in their place: `a photo`."""
    style, phrase = wording.style(row), wording.medium(row).phrase
    said = f"{style} style" if style else phrase if phrase != Medium().phrase else ""
    return (
        str(row["caption_long"]),
        str(row["caption_medium"]),
        str(row["caption_short"]),
        str(row["label"] or ""),
        said,
    )


def train_two_tower(
    spoken: SpokenPictures,
    config: TowerTrainingConfig | None = None,
    *,
    resume_dir: Path | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> TwoTower:
    """Train on all given pictures; leave held-out ones out of them. Progress in `resume_dir` stays until removed."""
    config = config or TowerTrainingConfig()
    if len(spoken.names) < 2:
        raise ConfigError(f"{len(spoken.names)} pictures cannot be told apart: give two or more with captions")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        sizes = TwoTowerConfig(
            encoder_name=spoken.encoder_name, embedding_width=spoken.vectors_NE.shape[1], buckets=config.buckets
        )
        model = TwoTower(sizes)
    vectors_NE = torch.from_numpy(spoken.vectors_NE)
    model.set_statistics(vectors_NE)
    batch_size = min(config.batch_size, len(spoken.names))
    ways = [way for way in spoken.texts if any(way)]

    def loss_of(step: int) -> torch.Tensor:
        way = ways[int(torch.randint(len(ways), ()))]
        rows = [row for row in batch_of(step, len(spoken.names), batch_size, config.seed).tolist() if way[row]]
        texts = [way[row] for row in rows]
        numbers = torch.tensor([*map({text: number for number, text in enumerate(texts)}.__getitem__, texts)])
        same_BB = (numbers[:, None] == numbers).float()
        images_BD = model.image_features(vectors_NE[rows])
        return contrastive_loss(images_BD, model.text_features(texts), model.scale, same_BB)

    train_resumably(
        model.train(),
        loss_of,
        num_steps=config.epochs * max(1, len(spoken.names) // batch_size),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        seed=config.seed,
        identity=config_digest([asdict(config), asdict(sizes), spoken.names]),
        resume_dir=resume_dir,
        on_progress=on_progress,
    )
    return model.eval()


@torch.inference_mode()
def retrieval(model: TwoTower, pictures: SpokenPictures, way: int = 2) -> Recall:
    """Recall at 1, 5 and 10, both ways, among all given pictures and their texts (default: the short captions).

    Pictures with the same text are all right answers to it, and together weigh as much as one of a text of its own:
    ten labels of 10,000 photographs would drown all else, and are easily told apart.
    """
    texts = pictures.texts[way]
    known = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    number_N = np.array([known[text] for text in texts])
    weight_N = 1.0 / np.bincount(number_N)[number_N]
    images_ND = model.eval().image_features(torch.from_numpy(pictures.vectors_NE)).numpy()
    texts_ND = model.text_features(texts).numpy()
    both_ways = (
        _recall(queries_ND, candidates_ND, number_N, weight_N)
        for queries_ND, candidates_ND in ((texts_ND, images_ND), (images_ND, texts_ND))
    )
    return Recall(len(texts), len(known), *both_ways)


def _recall(
    queries_ND: npt.NDArray[np.float32],
    candidates_ND: npt.NDArray[np.float32],
    number_N: npt.NDArray[np.int64],
    weight_N: npt.NDArray[np.float64],
) -> tuple[float, float, float]:
    """Candidates of the query's number are right. Ties count against them."""
    ahead = []
    for start in range(0, len(queries_ND), _QUERIES):
        scores_QN = queries_ND[start : start + _QUERIES] @ candidates_ND.T
        right_QN = number_N[start : start + _QUERIES, None] == number_N
        best_Q = np.where(right_QN, scores_QN, -np.inf).max(axis=1)
        ahead.append(((scores_QN >= best_Q[:, None]) & ~right_QN).sum(axis=1))
    ahead_N = np.concatenate(ahead)
    first, five, ten = (float(np.average(ahead_N < count, weights=weight_N)) for count in (1, 5, 10))
    return first, five, ten
