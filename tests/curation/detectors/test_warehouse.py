"""Detectors through a real warehouse: labelled, made, run, replayed, checked, by commands and by a model's server."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pleinair import krablet
from pleinair.cli.main import main
from pleinair.cli.places import cache_dir
from pleinair.cli.tower import model_path
from pleinair.curation import ObjectStore, kept_where
from pleinair.curation.detectors.checks import answers_of, draw_sheet, estimate, read_sheet
from pleinair.curation.detectors.detector import Detector, Manifest, load_detector
from pleinair.curation.detectors.features import EDGES, GLOBAL, RIM
from pleinair.curation.detectors.labels import (
    Sampled,
    StoredPictures,
    labels_table,
    latest,
    read_labels,
    sample_pictures,
)
from pleinair.curation.detectors.logistic import LinearProbe
from pleinair.curation.detectors.stage import (
    detected_table,
    detector_stage,
    replay,
    score_rows,
    verdict_of,
)
from pleinair.curation.detectors.vlm import Opinion, ask_whether
from pleinair.curation.embeddings import embedded_table
from pleinair.curation.small_models.tower_file import save_two_tower
from pleinair.endpoints import ChatClient, Endpoint
from pleinair.krablet import Database
from pleinair.model.efficientnet import fetch_efficientnet
from pleinair.model.two_tower import TwoTower, TwoTowerConfig
from pleinair.records.errors import AnswerError, ConfigError, SourceError
from tests.endpoints.servers import Answer, ServedVisionModel, completion, serve

NUM = 120


@functools.cache
def picture(number: int, framed: bool) -> bytes:
    """A textured field, in a black frame or not."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)).copy()
    if framed:
        for edge in (pixels[:6], pixels[-6:], pixels[:, :6], pixels[:, -6:]):
            edge[:] = (10, 10, 10)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store")


@pytest.fixture
def warehouse(database: Database, store: ObjectStore) -> Database:
    """A hundred and twenty kept pictures of two sources; every fourth is framed, as its concept says."""
    embedded_table(database).upsert(
        {
            "image_name": f"p{number:03d}",
            "uri": f"made:{number}",
            "source": "a" if number % 3 else "b",
            "concept": "framed" if number % 4 == 0 else "open",
            "image_path": store.put(picture(number, number % 4 == 0)),
            "pixels_drop": "",
            "captions_drop": "",
            "duplicate_drop": "",
            "licence": "CC0-1.0",
        }
        for number in range(NUM)
    )
    return database


def where(database: Database, home: Path) -> list[str]:
    return ["--dsn", database.dsn, "--home", str(home)]


def rows_of(database: Database, *names: str) -> dict[str, Any]:
    found = embedded_table(database).read(columns=["image_name", *names])
    return {row.pop("image_name"): row for batch in found for row in batch.to_pylist()}


def made(database: Database, home: Path, *more: str) -> Manifest:
    given = ["detector", "new", "a flat frame", "--name", "frame", "--features", EDGES, "--max-false-rate", "0.02"]
    assert main([*given, *(more or ("--rule", "concept = 'framed'")), *where(database, home)]) == 0
    return load_detector(home / "models" / "detectors", "frame").manifest


def run(database: Database, store: ObjectStore, home: Path) -> None:
    """The stage's function over all that is ready, in this process."""
    detector = load_detector(home / "models" / "detectors", "frame")
    manifest = detector.manifest
    stage = detector_stage(detected_table(database, manifest), manifest)
    krablet.work(
        [stage], {stage.name: lambda batch: score_rows(batch, detector, cache_dir(), store, manifest.threshold)}
    )


def test_a_detector_is_made_run_by_workers_and_part_of_what_is_kept(
    warehouse: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = made(warehouse, tmp_path)
    assert manifest.labels == {"rule no": manifest.labels["rule no"], "rule yes": manifest.labels["rule yes"]}
    assert "measured on" in capsys.readouterr().out
    assert main(["detector", "run", "frame", "--processes", "1", *where(warehouse, tmp_path)]) == 0
    assert "frame v1: " in capsys.readouterr().out
    images = detected_table(warehouse, manifest)
    verdicts = {
        row["image_name"]: (row["concept"], row["detector_frame_v1"], row["detector_frame_drop"])
        for batch in images.read(columns=["image_name", "concept", "detector_frame_v1", "detector_frame_drop"])
        for row in batch.to_pylist()
    }
    dropped = {name for name, (_, _, drop) in verdicts.items() if drop}
    framed = {name for name, (concept, _, _) in verdicts.items() if concept == "framed"}
    assert len(dropped & framed) >= 27
    assert len(dropped - framed) <= 3
    name = min(dropped)
    score = verdicts[name][1]
    assert verdicts[name][2] == f"detector frame v1: {score:.2f}, over {manifest.threshold:.2f}"
    assert images.count(kept_where(images)) == NUM - len(dropped)
    assert main(["detector", "list", *where(warehouse, tmp_path)]) == 0
    assert main(["detector", "show", "frame", *where(warehouse, tmp_path)]) == 0
    assert f"{len(dropped)} of {NUM} scored pictures dropped" in capsys.readouterr().out


def test_another_threshold_is_taken_from_the_scores_alone(
    warehouse: Database, store: ObjectStore, tmp_path: Path
) -> None:
    manifest = made(warehouse, tmp_path)
    run(warehouse, store, tmp_path)
    for path in (tmp_path / "store").rglob("*.png"):
        path.unlink()  # no picture may be opened
    images = detected_table(warehouse, manifest)
    assert replay(images, manifest, manifest.threshold) == 0
    changed = replay(images, manifest, 0.0)
    assert images.count("detector_frame_drop <> ''") == NUM
    assert changed == NUM  # the limit is part of the reason
    replay(images, manifest, 1.0)
    assert images.count("detector_frame_drop <> ''") == 0


def test_a_new_version_looks_at_every_picture_again_and_keeps_the_old_scores(
    warehouse: Database, store: ObjectStore, tmp_path: Path
) -> None:
    made(warehouse, tmp_path)
    run(warehouse, store, tmp_path)
    second = made(warehouse, tmp_path, "--plant", "frame", "--where", "concept = 'open'")
    assert (second.version, second.parent, second.labelled_by) == (2, 1, "plant frame")
    images = detected_table(warehouse, second)
    assert detector_stage(images, second).depth().ready == NUM
    run(warehouse, store, tmp_path)
    assert images.count("detector_frame_v1 IS NOT NULL AND detector_frame_v2 IS NOT NULL") == NUM
    assert images.count("detector_frame_drop LIKE 'detector frame v1%%'", params=[]) == 0


def test_a_picture_gone_from_the_store_fails_alone(warehouse: Database, store: ObjectStore, tmp_path: Path) -> None:
    made(warehouse, tmp_path)
    detector = load_detector(tmp_path / "models" / "detectors", "frame")
    rows = [{"image_path": "00/gone.png"}, {"image_path": store.put(picture(1, True))}]
    gone, there = score_rows(rows, detector, cache_dir(), store, 0.5)
    assert isinstance(gone, SourceError)
    assert isinstance(there, dict)
    assert set(there) == {"detector_frame_v1", "detector_frame_drop"}


def test_what_a_file_says_of_itself_comes_before_any_score() -> None:
    manifest = Manifest(name="ai", version=3, prompt="p", features=(RIM,), threshold=0.9, reads_provenance=True)
    said = verdict_of(manifest, 0.01, "C2PA: trainedAlgorithmicMedia", 0.9)
    assert said == "detector ai v3: made by a generator, says the file: C2PA: trainedAlgorithmicMedia"
    assert verdict_of(manifest, 0.91, "", 0.9) == "detector ai v3: 0.91, over 0.90"
    assert verdict_of(manifest, 0.9, "", 0.9) == ""


def test_a_marked_file_is_dropped_whatever_its_score_and_at_every_threshold(
    warehouse: Database, store: ObjectStore
) -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a fox\nSteps: 20, Sampler: Euler")
    written = io.BytesIO()
    Image.open(io.BytesIO(picture(1, False))).save(written, "PNG", pnginfo=texts)
    blind = LinearProbe(np.zeros(320, np.float32), np.ones(320, np.float32), np.zeros(320, np.float32), 0.0)
    manifest = Manifest(name="ai", version=1, prompt="p", features=(RIM,), threshold=0.9, reads_provenance=True)
    images = detected_table(warehouse, manifest)
    images.update([{"image_name": "p001", "image_path": store.put(written.getvalue())}])
    stage = detector_stage(images, manifest)
    krablet.work(
        [stage], {stage.name: lambda batch: score_rows(batch, Detector(manifest, blind), cache_dir(), store, 0.9)}
    )
    reason = "detector ai v1: made by a generator, says the file: text parameters: settings of a generator"
    for threshold in (0.9, 1.0):
        replay(images, manifest, threshold)
        found = images.read(where="detector_ai_drop <> ''", columns=["image_name", "detector_ai_drop"])
        assert [row for batch in found for row in batch.to_pylist()] == [
            {"image_name": "p001", "detector_ai_drop": reason}
        ]


def test_a_text_gives_weak_labels_that_say_so(warehouse: Database, tmp_path: Path) -> None:
    """A tower of random weights: the path is real, its taste is not."""
    save_two_tower(
        TwoTower(TwoTowerConfig(encoder_name=GLOBAL, embedding_width=1280, buckets=64)), model_path(tmp_path)
    )
    manifest = made(warehouse, tmp_path, "--text", "frame", "--positive-share", "0.2")
    assert set(manifest.labels) == {"tower yes", "tower no"}
    assert manifest.labelled_by == "text 'frame'"
    assert {one.origin for one in manifest.measures} == {"tower"}
    assert len(read_labels(warehouse, "frame", "tower")) == 24 + 60


def test_a_picture_that_cannot_be_read_is_left_out_of_the_sample(store: ObjectStore) -> None:
    sampled = [
        Sampled("gone", "a", "00/gone.png"),
        Sampled("there", "a", store.put(picture(1, False))),
        Sampled("torn", "a", store.put(picture(2, False)[:300])),
    ]
    stored = StoredPictures(sampled, store)
    assert [one.name for one, _ in stored] == [one.name for one, _ in stored] == ["there"]


def test_a_detector_on_the_global_vector_reads_stored_vectors_and_opens_no_picture(
    database: Database, tmp_path: Path
) -> None:
    manifest = Manifest(name="cat", version=1, prompt="a cat", features=(GLOBAL,), threshold=0.5)
    images = detected_table(database, manifest)
    images.upsert(
        [
            {"image_name": "x", "pixels_drop": "", "embedding_name": GLOBAL, "embedding_path": "a#0"},
            {"image_name": "y", "pixels_drop": "", "embedding_name": "another", "embedding_path": "a#1"},
        ]
    )
    claim = detector_stage(images, manifest).claim(10)
    assert [dict(row) for row in claim.rows] == [{"embedding_path": "a#0", "image_name": "x"}]


def test_a_sample_takes_as_many_of_each_source_and_is_the_same_again(warehouse: Database) -> None:
    images = embedded_table(warehouse)
    sampled = sample_pictures(images, 40)
    assert sampled == sample_pictures(images, 40)
    assert sorted(one.source for one in sampled) == ["a"] * 20 + ["b"] * 20
    assert sampled != sample_pictures(images, 40, seed=1)
    with pytest.raises(SourceError, match="no kept picture matches"):
        sample_pictures(images, 40, where="concept = 'none'")


def test_a_sheet_hides_scores_and_answers_become_an_estimate(
    warehouse: Database, store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(warehouse, tmp_path)
    run(warehouse, store, tmp_path)
    page = tmp_path / "check.html"
    check = ["detector", "check", "frame", "--page", str(page), *where(warehouse, tmp_path)]
    assert main([*check, "--most", "40"]) == 0
    sheet = read_sheet(tmp_path / "models" / "detectors", "frame")
    text = page.read_text()
    assert text.count("<img") == len(sheet.names) == 40
    assert "<script" not in text
    assert "0.9" not in text.partition("</style>")[2]
    truth = rows_of(warehouse, "concept")
    yes = [str(n) for n, name in enumerate(sheet.names, 1) if truth[name]["concept"] == "framed"]
    capsys.readouterr()
    assert main([*check, "--yes", *yes, "--rest", "no"]) == 0
    assert "40 answers kept" in capsys.readouterr().out
    events = read_labels(warehouse, "frame", "human")
    assert {event.labelled_by for event in events} == {"a person"}
    found = estimate(sheet, latest(events))
    assert found.precision.value > 0.85
    assert found.recall_interval[0] < found.recall <= 1.0
    assert found.num_answers == 40
    third = made(warehouse, tmp_path)
    assert sum(third.labels.values()) <= NUM - 40  # what people checked is not trained on
    with pytest.raises(ConfigError, match="there is no picture 41"):
        answers_of(sheet, [41], [], "")
    with pytest.raises(ConfigError, match="answered yes and no"):
        answers_of(sheet, [4], [4], "")


def test_an_answer_stands_for_as_many_pictures_as_its_stratum_has_per_picture_shown(warehouse: Database) -> None:
    manifest = Manifest(name="frame", version=1, prompt="p", features=(RIM,), threshold=0.5)
    images = detected_table(warehouse, manifest)
    names = sorted(rows_of(warehouse, "concept"))
    images.update(
        {"image_name": name, "detector_frame_v1": 0.9 if place < 20 else 0.1 - place / 1e4}
        for place, name in enumerate(names)
    )
    sheet = draw_sheet(images, manifest, threshold=0.5, most=40)
    assert sheet.sizes == {"over": 20, "near": 40, "under": 60}
    assert [sheet.strata.count(one) for one in ("over", "near", "under")] == [20, 10, 10]
    assert list(sheet.strata) != sorted(sheet.strata)  # a picture's place does not tell its score
    assert list(sheet.strata) != sorted(sheet.strata, key=["over", "near", "under"].index)
    shows = {name: stratum == "over" for name, stratum in zip(sheet.names, sheet.strata, strict=True)}
    shows[next(name for name, stratum in zip(sheet.names, sheet.strata, strict=True) if stratum == "under")] = True
    from pleinair.curation.detectors.labels import events_of

    events = events_of("frame", "human", {name: Opinion(said, 1.0, "a person") for name, said in shows.items()})
    found = estimate(sheet, latest(events))
    assert found.precision.value == 1.0
    assert found.recall == pytest.approx(20 / (20 + 6))  # one of ten of the sixty: six


def looks_at_the_border(body: Mapping[str, Any]) -> Answer:
    """A server that decodes the picture it was sent and says whether its border is dark; it rambles on every tenth."""
    parts = [
        part for message in body["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]
    url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))))
    if pixels[40, 40, 0] % 10 == 0:
        return completion("I would rather talk about the weather.")
    dark = pixels[:3].max() < 60
    return completion(json.dumps({"answer": "yes" if dark else "no", "certainty": 95 if pixels[50, 50, 1] % 5 else 60}))


def test_a_models_answers_over_http_make_a_detector(
    warehouse: Database, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    encoder = fetch_efficientnet(cache_dir() / "efficientnet-lite0")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "efficientnet-lite0").symlink_to(encoder)
    monkeypatch.setenv("PLEINAIR_CACHE", str(cache))
    with serve(looks_at_the_border) as served:
        endpoint = ["--vlm", f"url={served.url}", "model=border-rule", "--budget", "requests=400"]
        manifest = made(warehouse, tmp_path, *endpoint)
        asked = len(served.bodies)
        out = capsys.readouterr().out
        made(warehouse, tmp_path, *endpoint)  # answers come from the cache, but for those that could not be used
        assert len(served.bodies) - asked < 40
    assert "border-rule: " in out
    assert 90 < int(out.partition(" of 120 pictures have an answer")[0].split()[-1]) < 120
    assert set(manifest.labels) == {"vlm yes", "vlm no"}
    assert manifest.labelled_by == "border-rule question@1"
    assert {one.origin for one in manifest.measures} == {"vlm"}
    events = read_labels(warehouse, "frame", "vlm")
    assert {event.confidence for event in events} == {0.95, 0.6}
    unseen = manifest.measures[0].positives + manifest.measures[0].negatives
    sure = {event.image_name for event in events if event.confidence > 0.8}
    assert sum(manifest.labels.values()) + unseen == len(sure)
    truth = rows_of(warehouse, "concept")
    assert all(event.shows == (truth[event.image_name]["concept"] == "framed") for event in events)
    assert labels_table(warehouse).count("origin = 'human'") == 0


def test_a_vision_model_of_random_weights_is_asked_and_its_nonsense_left_out(
    vision_model: ServedVisionModel, tmp_path: Path
) -> None:
    """The path of pictures to a real vision-language model; not run for quality."""
    pixels = [np.asarray(Image.open(io.BytesIO(picture(number, False)))) for number in range(2)]
    with (
        serve(vision_model) as served,
        ChatClient(Endpoint(url=served.url, model="tiny-random-vlm"), stage="detector frame", place=tmp_path) as chat,
    ):
        answers = ask_whether(chat, "a flat frame around the picture", pixels)
    assert [type(answer) for answer in answers] == [AnswerError, AnswerError]
    assert len(served.bodies) == 4  # each was told what was wrong and asked once more
    assert "Look for: a flat frame around the picture" in served.texts(0)[1]
