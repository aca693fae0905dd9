"""The two-tower model and the sparse autoencoder: what they learn from known structure, and going on after a stop."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pleinair.curation.embeddings import put_vectors
from pleinair.curation.small_models.claims import calibrate, tower_claims
from pleinair.curation.small_models.loop import TrainingProgress
from pleinair.curation.small_models.tower import SpokenPictures, TowerTrainingConfig, retrieval, train_two_tower
from pleinair.curation.small_models.tower_file import load_two_tower, save_two_tower
from pleinair.curation.store import ObjectStore
from pleinair.curation.tags import best_cut, codes_of, name_features, picture_tags, quality_of, train_sparse_autoencoder
from pleinair.curation.vocabulary import Vocabulary
from pleinair.model.image_encoder import Embeddings, Picture
from pleinair.model.sparse_autoencoder import SparseAutoencoder, SparseAutoencoderConfig
from pleinair.model.two_tower import PictureTextScorer, TwoTower, text_buckets
from pleinair.records.errors import CheckpointError, ConfigError

THINGS = ("fox", "apple", "boat", "clock", "tree", "house", "ball", "cloud", "key", "shoe")
STYLES = ("ink", "clay", "pixel", "paper", "chalk", "glass")
SHORT = TowerTrainingConfig(epochs=30, batch_size=32, learning_rate=2e-3, buckets=1024)


def spoken(held_out: bool) -> SpokenPictures:
    """Vectors that are a thing's direction plus a style's plus noise; a ninth of the pairs is held out."""
    rng = np.random.default_rng(0)
    things, styles = rng.normal(size=(10, 48)), rng.normal(size=(6, 48))
    vectors, texts, names = [], [], []
    for t, thing in enumerate(THINGS):
        for s, style in enumerate(STYLES):
            if ((t + 2 * s) % 9 == 0) == held_out:
                for copy in range(1 if held_out else 3):
                    vectors.append(things[t] + styles[s] + 0.2 * rng.normal(size=48))
                    texts.append((f"a drawing of a {thing}, {style} style", f"a {thing}", f"{style} style"))
                    names.append(f"{thing}/{style}/{copy}")
    return SpokenPictures("codes-v1", names, np.array(vectors, np.float32), list(zip(*texts, strict=True)))


@pytest.fixture(scope="module")
def tower() -> TwoTower:
    return train_two_tower(spoken(held_out=False), SHORT)


class Codes:
    """An encoder whose pictures are their vectors, packed into pixels."""

    name, width = "codes-v1", 48

    def embed(self, pictures: list[Picture]) -> Embeddings:
        return np.stack([picture.ravel().view(np.float32) for picture in pictures])


def test_the_towers_pair_things_and_styles_they_never_saw_together(tower: TwoTower) -> None:
    recall = retrieval(tower, spoken(held_out=True), way=0)
    assert recall.num_pictures == 7
    assert min(recall.text_to_picture[0], recall.picture_to_text[0]) >= 6 / 7
    assert recall.text_to_picture[2] == recall.picture_to_text[2] == 1.0


def test_pictures_that_share_a_text_weigh_as_much_as_one(tower: TwoTower) -> None:
    alone = spoken(held_out=True)
    first = alone.texts[0][0]
    known = retrieval(tower, alone, way=0).picture_to_text[0]
    crowd = SpokenPictures(
        alone.encoder_name,
        [*alone.names, *["again"] * 30],
        np.concatenate([alone.vectors_NE, np.repeat(-alone.vectors_NE[:1], 30, axis=0)]),
        [(*way, *[way[0]] * 30) for way in alone.texts],
    )
    found = retrieval(tower, crowd, way=0)
    assert (found.num_pictures, found.num_texts) == (len(alone.names) + 30, len(set(alone.texts[0])))
    assert first in crowd.texts[0]
    # Thirty pictures that are the opposite of theirs cost one text of seven, and not thirty of thirty-seven.
    assert found.picture_to_text[0] >= known - 1 / found.num_texts


def test_an_untrained_tower_finds_nothing() -> None:
    model = train_two_tower(
        spoken(held_out=False), TowerTrainingConfig(epochs=1, batch_size=159, learning_rate=1e-9, buckets=1024)
    )
    assert retrieval(model, spoken(held_out=False), way=1).picture_to_text[0] < 0.4


def test_a_scorer_ranks_the_texts_of_a_picture_and_has_no_word_for_silence(tower: TwoTower) -> None:
    pictures = spoken(held_out=True)
    scorer = PictureTextScorer(tower, Codes())  # type: ignore[arg-type]
    packed = [vector.view(np.uint8).reshape(4, -1, 3) for vector in pictures.vectors_NE]
    texts = ["...", *(f"a {thing}" for thing in THINGS)]
    scores = scorer.score(packed, texts)
    assert scores.shape == (7, 11)
    assert np.isnan(scores[:, 0]).all()
    said = [f"a {name.split('/')[0]}" for name in pictures.names]
    assert [texts[1 + best] for best in scores[:, 1:].argmax(axis=1)] == said
    np.testing.assert_allclose(scorer.score_embeddings(pictures.vectors_NE, texts), scores, rtol=1e-5)


def test_a_scorer_refuses_another_encoder(tower: TwoTower) -> None:
    other = Codes()
    other.name = "other-v1"
    with pytest.raises(ConfigError, match="trained on codes-v1, not on other-v1"):
        PictureTextScorer(tower, other)  # type: ignore[arg-type]


def test_a_saved_tower_scores_as_before_to_half_precision(tower: TwoTower, tmp_path: Path) -> None:
    save_two_tower(tower, tmp_path / "tower.safetensors")
    again = load_two_tower(tmp_path / "tower.safetensors")
    vectors = torch.from_numpy(spoken(held_out=True).vectors_NE)
    torch.testing.assert_close(again.image_features(vectors), tower.image_features(vectors), atol=5e-3, rtol=0)
    (tmp_path / "broken").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="holds no two-tower model"):
        load_two_tower(tmp_path / "broken")


def of_things(seed: int, copies: int = 6) -> SpokenPictures:
    """Other pictures of the same things in the same styles, said as a warehouse says them."""
    rng = np.random.default_rng(0)
    things, styles = rng.normal(size=(10, 48)), rng.normal(size=(6, 48))
    rng = np.random.default_rng(seed)
    pairs = [(t, s) for t in range(10) for s in range(6) for _ in range(copies)]
    vectors = np.array([things[t] + styles[s] + 0.2 * rng.normal(size=48) for t, s in pairs], np.float32)
    said = [(*["a picture"] * 3, f"a {THINGS[t]}", f"{STYLES[s]} style") for t, s in pairs]
    names = [f"{number}" for number in range(len(pairs))]
    return SpokenPictures("codes-v1", names, vectors, list(zip(*said, strict=True)))


@pytest.mark.parametrize("kind", ["subject", "style"])
def test_wrong_claims_are_unlikely_and_true_ones_are_not(tower: TwoTower, kind: str) -> None:
    made = calibrate(tower, of_things(1), kind)
    assert made is not None
    rates = made[1]
    assert rates.num_pictures > 100
    assert rates.found(0.05) > 0.9
    assert rates.lost(0.05) < 0.03
    # Calibrated: as likely on average as such claims are true, half of them.
    assert abs(rates.true_probabilities.mean() + rates.wrong_probabilities.mean() - 1) < 0.1


def test_a_tower_that_learned_nothing_fails_no_claim() -> None:
    config = TowerTrainingConfig(epochs=1, batch_size=159, learning_rate=1e-9, buckets=1024)
    made = calibrate(train_two_tower(spoken(held_out=False), config), of_things(1), "subject")
    assert made is not None
    assert made[1].found(0.05) == made[1].lost(0.05) == 0


def test_a_calibration_needs_held_out_pictures_and_travels_with_the_model(tower: TwoTower, tmp_path: Path) -> None:
    assert calibrate(tower, of_things(1).where(range(12)), "subject") is None
    made = calibrate(tower, of_things(1), "subject")
    assert made is not None
    path, store = tmp_path / "tower.safetensors", ObjectStore(tmp_path / "store")
    with pytest.raises(ConfigError, match="is not there: run 'pleinair tower' first"):
        tower_claims(path, tmp_path / "store")
    save_two_tower(tower, path)
    with pytest.raises(ConfigError, match="was not calibrated on held-out pictures"):
        tower_claims(path, tmp_path / "store")
    save_two_tower(tower, path, {"subject": made[0]})
    pictures = of_things(2, copies=1)
    judge, places = tower_claims(path, tmp_path / "store"), put_vectors(store, pictures.vectors_NE)
    found = judge.probabilities(places, "subject", [f"a {thing}" for thing in THINGS])
    own = np.array([[text == f"a {thing}" for thing in THINGS] for text in pictures.texts[3]])
    assert found[own].min() > found[~own].mean()
    assert np.isnan(judge.probabilities(places, "style", ["ink"])).all()


def test_hashing_texts_is_the_same_everywhere_and_ignores_case() -> None:
    assert text_buckets("Red Fox", 1000) == text_buckets("red fox", 1000)
    assert text_buckets("ox", 2**32) == (zlib.crc32(b"ox"), zlib.crc32(b"<ox>"))[:1]
    with pytest.raises(ValueError, match="has no letter or digit"):
        text_buckets("?!", 10)


class StoppedError(Exception):
    """What a person pressing Ctrl-C stands for."""


def train_codes(**more: Any) -> nn.Module:
    config = SparseAutoencoderConfig(features=32, active=more.pop("size", 3), epochs=6, batch_size=32)
    return train_sparse_autoencoder(dictionary_vectors(200)[0], config, **more)


def train_towers(**more: Any) -> nn.Module:
    config = TowerTrainingConfig(epochs=10, batch_size=53, buckets=16 * more.pop("size", 3))
    return train_two_tower(spoken(held_out=False), config, **more)


@pytest.mark.parametrize("train", [train_codes, train_towers])
def test_a_training_stopped_in_between_ends_with_the_weights_of_one_that_was_not(
    train: Callable[..., nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pleinair.curation.small_models.loop.STEPS_PER_SAVE", 10)

    def stop(now: TrainingProgress) -> None:
        if now.step == 20:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(resume_dir=tmp_path, on_progress=stop)
    resumed, straight = train(resume_dir=tmp_path), train()
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    with pytest.raises(CheckpointError, match="from another configuration or other pictures"):
        train(resume_dir=tmp_path, size=4)


def dictionary_vectors(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors that are sums of three of 24 directions, and which."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(24, 64))
    parts = np.argsort(rng.random((count, 24)), axis=1)[:, :3]
    weights = rng.uniform(0.7, 1.3, (count, 3, 1))
    return (directions[parts] * weights).sum(axis=1).astype(np.float32), parts


def test_the_autoencoder_finds_the_directions_vectors_are_made_of() -> None:
    vectors, _ = dictionary_vectors(3000)
    config = SparseAutoencoderConfig(features=48, active=3, epochs=25, batch_size=128, learning_rate=3e-3)
    model = train_sparse_autoencoder(vectors, config)
    fresh, parts = dictionary_vectors(500, seed=1)
    quality = quality_of(model, fresh)
    assert quality.unexplained < 0.2
    assert quality.active <= 3
    assert quality.cosine > 0.9
    torch.testing.assert_close(model.decode_FE.norm(dim=1), torch.ones(48))
    texts = [[f"part{chr(97 + part)}" for part in own] for own in parts.tolist()]
    codes = codes_of(model, fresh)
    assert ((codes > 0).sum(axis=1) <= 3).all()
    tags = name_features(codes, Vocabulary(texts))
    given = picture_tags(codes, tags)
    right = sum(word in own for own, words in zip(texts, given, strict=True) for word in words)
    assert right / sum(map(len, given)) > 0.9
    assert right / 1500 > 0.7


def test_only_the_auxiliary_loss_reaches_dead_features() -> None:
    vectors = torch.from_numpy(dictionary_vectors(300)[0])
    reached = []
    for weight in (1 / 32, 0.0):
        torch.manual_seed(0)
        model = SparseAutoencoder(64, SparseAutoencoderConfig(features=64, active=2, auxiliary_weight=weight))
        model.set_statistics(vectors)
        with torch.no_grad():
            model.bias_F[32:] = -5.0
        dead_F = torch.arange(64) >= 32
        loss, fired_F = model.loss(vectors, dead_F)
        assert not fired_F[32:].any()
        loss.backward()
        assert model.encode_FE.grad is not None
        reached.append(int((model.encode_FE.grad[32:].abs().sum(dim=1) > 0).sum()))
    assert reached == [32, 0]


def test_the_cut_with_the_best_f1_is_found() -> None:
    assert best_cut(np.array([True, True, False, False]), 2) == (2, 1.0, 1.0)
    assert best_cut(np.array([True, False, True, False]), 4) == (3, 2 / 3, 0.5)


def test_words_that_set_a_group_apart_name_it_and_words_everybody_says_do_not() -> None:
    texts = [["the", "red", "fox"]] * 20 + [["the", "blue", "boat"]] * 80
    vocabulary = Vocabulary(texts)
    assert {named.word for named in vocabulary.names(np.arange(20))} == {"red", "fox"}
    assert vocabulary.names(np.arange(100)) == []
    assert vocabulary.says("fox").sum() == 20
