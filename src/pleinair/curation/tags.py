"""Tags from a sparse autoencoder: features of the embedding that fire on few pictures, named by the captions.

    vectors --train--> SparseAutoencoder --codes--> per feature: pictures it fires on most --their words--> name, threshold
                                                                                           --above it--> tag of a picture

A feature becomes a tag when, above some activation, the pictures it fires on say its word often enough. A feature no word
fits stays nameless; its sheet shows what it sees, for a person or a vision-language model to name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pleinair.config import config_digest
from pleinair.curation.clusters.kmeans import Indices
from pleinair.curation.embeddings import embedded_table, read_embeddings
from pleinair.curation.small_models.loop import TrainingProgress, batch_of, train_resumably
from pleinair.curation.stages import IMAGES, kept_where
from pleinair.curation.store import ObjectStore
from pleinair.curation.vocabulary import Vocabulary
from pleinair.krablet import Database, Table
from pleinair.model.sparse_autoencoder import Quality, SparseAutoencoder, SparseAutoencoderConfig
from pleinair.model.two_tower import words_of
from pleinair.records.errors import ConfigError

Codes = npt.NDArray[np.float32]
TAG_COLUMNS = {"sae_tags": "text[]"}
TOP_PICTURES = 32
_HELD_ASIDE = 10  # every tenth vector measures what was trained on the others
_CANDIDATE_WORDS = 4


@dataclass(frozen=True)
class FeatureTag:
    """One feature of the autoencoder and what it stands for."""

    feature: int
    word: str | None
    """None when no word of the captions fits."""
    threshold: float
    """Activation from which on a picture gets the tag."""
    precision: float
    """Of the pictures above the threshold, the share whose caption says the word."""
    recall: float
    """Of the pictures whose caption says the word, the share above the threshold."""
    num_firing: int
    top: tuple[int, ...]
    """Rows of the pictures it fires on most, strongest first."""


@dataclass(frozen=True)
class Tagged:
    """What tagging found."""

    names: list[str]
    """Pictures, in the order that the features' rows mean."""
    tags: list[FeatureTag]
    quality: Quality
    num_tagged: int
    """Pictures with at least one tag."""


def tagged_table(db: Database) -> Table:
    """`images` with the column of this module."""
    return db.table(IMAGES, key="image_name", columns={**embedded_table(db).columns, **TAG_COLUMNS})


def tag_pictures(
    db: Database,
    store: ObjectStore,
    config: SparseAutoencoderConfig | None = None,
    *,
    resume_dir: Path | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> Tagged:
    """Train on the vectors of kept pictures, name the features and write `sae_tags` of every picture."""
    images = tagged_table(db)
    embedded = read_embeddings(images, store, where=kept_where(images))
    aside = np.arange(len(embedded.names)) % _HELD_ASIDE == 0
    model = train_sparse_autoencoder(
        embedded.vectors_ND[~aside], config, resume_dir=resume_dir, on_progress=on_progress
    )
    codes_NF = codes_of(model, embedded.vectors_ND)
    captions = {
        row["image_name"]: words_of(row["caption_long"] or "")
        for batch in images.read(where=kept_where(images), columns=["image_name", "caption_long"])
        for row in batch.to_pylist()
    }
    tags = name_features(codes_NF, Vocabulary([captions[name] for name in embedded.names]))
    found = picture_tags(codes_NF, tags)
    images.update({"image_name": name, "sae_tags": own} for name, own in zip(embedded.names, found, strict=True))
    return Tagged(embedded.names, tags, quality_of(model, embedded.vectors_ND[aside]), sum(map(bool, found)))


def train_sparse_autoencoder(
    vectors_NE: npt.NDArray[np.float32],
    config: SparseAutoencoderConfig | None = None,
    *,
    resume_dir: Path | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda progress: None,
) -> SparseAutoencoder:
    """Train on all given vectors, (N, E). Raises ConfigError for fewer vectors than features are active."""
    config = config or SparseAutoencoderConfig()
    if len(vectors_NE) <= config.active:
        raise ConfigError(f"{len(vectors_NE)} vectors for {config.active} active features: give more pictures")
    vectors = torch.from_numpy(np.ascontiguousarray(vectors_NE, dtype=np.float32))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = SparseAutoencoder(vectors.shape[1], config)
    model.set_statistics(vectors)
    batch_size = min(config.batch_size, len(vectors))
    steps_per_epoch = max(1, len(vectors) // batch_size)
    dead_after = config.dead_after_epochs * steps_per_epoch

    def loss_of(step: int) -> torch.Tensor:
        dead_F = step - model.last_fired_F > dead_after
        loss, fired_F = model.loss(vectors[batch_of(step, len(vectors), batch_size, config.seed)], dead_F)
        model.last_fired_F[fired_F] = step
        return loss

    train_resumably(
        model,
        loss_of,
        num_steps=config.epochs * steps_per_epoch,
        learning_rate=config.learning_rate,
        seed=config.seed,
        identity=config_digest([asdict(config), list(vectors.shape), float(vectors.double().sum())]),
        resume_dir=resume_dir,
        after_step=lambda step: model.normalise_directions(),
        on_progress=on_progress,
    )
    return model.eval()


@torch.inference_mode()
def codes_of(model: SparseAutoencoder, vectors_NE: npt.NDArray[np.float32], batch_size: int = 1024) -> Codes:
    """(N, F) activations, at most K of a row above zero."""
    parts = [
        model.codes(torch.from_numpy(np.ascontiguousarray(vectors_NE[at : at + batch_size]))).numpy()
        for at in range(0, len(vectors_NE), batch_size)
    ]
    return np.concatenate(parts)


def quality_of(model: SparseAutoencoder, vectors_NE: npt.NDArray[np.float32]) -> Quality:
    """Reconstruction measured on vectors kept out of training."""
    return model.quality(torch.from_numpy(np.ascontiguousarray(vectors_NE)))


def name_features(codes_NF: Codes, vocabulary: Vocabulary, *, min_precision: float = 0.7) -> list[FeatureTag]:
    """Every feature that fires, with the word its strongest pictures share, if that word holds above some threshold."""
    firing: list[int] = np.flatnonzero(codes_NF.any(axis=0)).tolist()
    return [_named(codes_NF, feature, vocabulary, min_precision) for feature in firing]


def _named(codes_NF: Codes, feature: int, vocabulary: Vocabulary, min_precision: float) -> FeatureTag:
    codes_N = codes_NF[:, feature]
    ordered = np.argsort(-codes_N, kind="stable")[: int((codes_N > 0).sum())]
    fits = [
        (*best_cut(vocabulary.says(named.word)[ordered], int(vocabulary.says(named.word).sum())), named.word)
        for named in vocabulary.names(ordered[:TOP_PICTURES], most=_CANDIDATE_WORDS, min_share=0.5)
    ]
    top = tuple(ordered[:TOP_PICTURES].tolist())
    fits = [fit for fit in fits if fit[1] >= min_precision]
    if not fits:
        return FeatureTag(feature, None, float(codes_N[ordered[0]]), 0.0, 0.0, len(ordered), top)
    count, precision, recall, word = max(fits, key=lambda fit: (_f1(fit[1], fit[2]), fit[3]))
    return FeatureTag(feature, word, float(codes_N[ordered[count - 1]]), precision, recall, len(ordered), top)


def best_cut(right: npt.NDArray[np.bool_], num_right: int) -> tuple[int, float, float]:
    """How many of the strongest pictures to tag for the best F1: (count, precision, recall)."""
    hits = np.cumsum(right)
    counts = np.arange(1, len(right) + 1)
    count = int(np.argmax(2 * hits / (counts + num_right))) + 1
    return count, float(hits[count - 1] / count), float(hits[count - 1] / max(1, num_right))


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / max(precision + recall, 1e-12)


def picture_tags(codes_NF: Codes, tags: Sequence[FeatureTag]) -> list[list[str]]:
    """The tags of every picture, strongest first, each once."""
    named = [tag for tag in tags if tag.word is not None]
    features = [tag.feature for tag in named]
    thresholds = np.array([tag.threshold for tag in named], dtype=np.float32)
    return [list(_tags_of(row, named, thresholds)) for row in codes_NF[:, features]]


def _tags_of(codes_T: Codes, named: Sequence[FeatureTag], thresholds: npt.NDArray[np.float32]) -> Iterator[str]:
    strongest: Indices = np.argsort(-codes_T, kind="stable")
    words = (named[place].word for place in strongest.tolist() if codes_T[place] >= thresholds[place] > 0)
    return iter(dict.fromkeys(word for word in words if word is not None))
