"""The accuracy check by the project's own image-text model, from vectors in the warehouse to dropped pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pleinair.captioning import CaptioningConfig, caption
from pleinair.curation import curate, find_source, images_table, ingest
from pleinair.curation.embeddings import embed_stage, embedded_table, put_vectors
from pleinair.curation.small_models.claims import calibrate
from pleinair.curation.small_models.tower import SpokenPictures, TowerTrainingConfig, train_two_tower
from pleinair.curation.small_models.tower_file import save_two_tower
from pleinair.curation.store import ObjectStore
from pleinair.krablet import Database
from pleinair.records.errors import ConfigError
from tests.captioning.test_caption import draw

THINGS = ("fox", "apple", "boat", "clock", "tree", "house", "ball", "cloud", "key", "shoe")
WIDTH = 48
BY_TOWER = CaptioningConfig(ocr="off", scorer="tower")


def vectors(things: list[int], seed: int) -> np.ndarray:
    """A direction per thing, and noise."""
    directions = np.random.default_rng(0).normal(size=(len(THINGS), WIDTH))
    return (directions[things] + 0.2 * np.random.default_rng(seed).normal(size=(len(things), WIDTH))).astype(np.float32)


def spoken(copies: int, seed: int) -> SpokenPictures:
    things = [thing for thing in range(len(THINGS)) for _ in range(copies)]
    said = [(*[f"a {THINGS[thing]}"] * 3, THINGS[thing], "") for thing in things]
    names = [f"{THINGS[thing]}/{number}" for number, thing in enumerate(things)]
    return SpokenPictures("codes-v1", names, vectors(things, seed), list(zip(*said, strict=True)))


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = train_two_tower(
        spoken(20, 1), TowerTrainingConfig(epochs=20, batch_size=50, learning_rate=2e-3, buckets=512)
    )
    made = calibrate(model, spoken(12, 2), "subject")
    assert made is not None
    path = tmp_path_factory.mktemp("models") / "tower.safetensors"
    save_two_tower(model, path, {"subject": made[0]})
    return path


def test_pictures_whose_vectors_contradict_their_label_are_dropped_and_those_without_one_are_not_judged(
    database: Database, tower: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    shown = {"right": "fox", "wrong": "boat", "unseen": "clock"}
    for name, label in {"right": "fox", "wrong": "fox", "unseen": "shoe"}.items():
        draw(folder, name, "#808080", label=label)
    ingest(database, find_source(str(folder), tmp_path / "cache"))
    curate(database, cache=tmp_path / "cache", store=tmp_path / "store", processes=1)
    places = {"store": tmp_path / "store", "place": tmp_path / "account", "small_model": tmp_path / "none"}
    with pytest.raises(ConfigError, match="run 'pleinair embed' first"):
        caption(database, images_table(database), BY_TOWER, tower=tower, processes=1, **places)

    images = embedded_table(database)
    embed_stage(images, "codes-v1")
    names = {Path(row["image_name"]).stem: row["image_name"] for batch in images.read() for row in batch.to_pylist()}
    vectors_ND = vectors([THINGS.index(shown[name]) for name in ("right", "wrong")], 3)
    paths = put_vectors(ObjectStore(tmp_path / "store"), vectors_ND)
    images.upsert(
        [
            {"image_name": names[name], "embedding_path": path, "embedding_name": "codes-v1"}
            for name, path in zip(("right", "wrong"), paths, strict=True)
        ]
    )
    done = caption(database, images_table(database), BY_TOWER, tower=tower, processes=1, **places)
    assert done.run.stuck == {name: [] for name in done.run.stuck}
    found = {Path(row["image_name"]).stem: row for batch in images_table(database).read() for row in batch.to_pylist()}
    judged = {
        name: next(claim["holds"] for claim in json.loads(row["claims"]) if claim["kind"] == "subject")
        for name, row in found.items()
    }
    assert judged == {"right": True, "wrong": False, "unseen": None}
    assert {name for name, row in found.items() if row["check_drop"]} == {"wrong"}
