"""The whole way, from a subject to a page, over a world of drawn shapes and a network that learned nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from pleinair.captioning.ocr import NoReader, TextReader, text_reader
from pleinair.cli import exploration
from pleinair.cli.main import main
from pleinair.cli.places import shipped
from pleinair.curation.heldout import held_out
from pleinair.evaluation.exploration.asking import own_requests
from pleinair.evaluation.exploration.measuring import draw_in_pieces, measure_subject, self_test
from pleinair.evaluation.exploration.orders import SELF_TEST, check_orders
from pleinair.evaluation.exploration.requests import PLANS, Asked, Plan, Request, build_requests, plan_requests
from pleinair.evaluation.exploration.subjects import Progress, Real
from pleinair.evaluation.exploration.suite import MEANINGS, from_document
from pleinair.evaluation.exploration.world import Pictures, World
from pleinair.evaluation.features import NAME, PictureFeatures
from pleinair.model.efficientnet import EfficientNetLite0
from pleinair.model.judge import load_judge
from pleinair.records.errors import ConfigError

LABELS = ("fox", "key", "banana", "house", "rocket", "cactus", "fish", "castle", "red heart", "blue heart")


def shape(concept: int, style: int) -> Pictures:
    """A regular star of its own number of points, in a colour of its style."""
    down, right = np.mgrid[:64, :64] - 31.5
    radius = 20 + 8 * np.cos((concept + 2) * np.arctan2(down, right))
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[np.hypot(down, right) < radius] = [(37 * style) % 200, (91 * style) % 200, (151 * style) % 200]
    return picture


@pytest.fixture(scope="module")
def world() -> World:
    judge = load_judge(shipped("judge")).config
    slugs = [label.replace(" ", "-") for label in LABELS]
    cells = [(concept, style) for concept in range(len(LABELS)) for style in range(len(judge.style_names))]
    concepts = [judge.concept_names.index(slug) for slug in slugs]
    return World(
        keys=[f"{slugs[concept]}/{style}" for concept, style in cells],
        pictures=np.stack([shape(concept, style) for concept, style in cells]),
        styles=np.array([style for _, style in cells]),
        concepts=np.array([concepts[concept] for concept, _ in cells]),
        held_out=np.array([held_out(slugs[concept], judge.style_names[style]) for concept, style in cells]),
        style_names=judge.style_names,
        concept_names=judge.concept_names,
        concept_of_label=dict(zip(LABELS, concepts, strict=True)),
        trained_labels=LABELS[:-2],
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A place with a network of random weights where the encoder is looked for."""
    place = tmp_path_factory.mktemp("work")
    (place / "cache" / "efficientnet-lite0").mkdir(parents=True)
    save_file(EfficientNetLite0().state_dict(), place / "cache" / "efficientnet-lite0" / "model.safetensors")
    return SimpleNamespace(home=place / "home", cache=place / "cache")


class Counted:
    """Real pictures, and how many were asked for."""

    name = "counted"

    def __init__(self, world: World) -> None:
        self.real, self.drawn = Real(world), 0

    def draw(self, asked: Sequence[Asked], on_progress: Progress = lambda done, total: None) -> Pictures:
        self.drawn += len(asked)
        return self.real.draw(asked)


@pytest.fixture(scope="module")
def reader() -> TextReader:
    return text_reader("rapidocr")


def small_plan(world: World) -> list[Asked]:
    requests = build_requests({label: label for label in world.trained_labels}, {"noto": "noto", "blob": "blob"})
    plan = Plan(prompts=dict.fromkeys(PLANS["quick"].prompts, 6) | {"text": 2}, seeds={"default": 4, "any-colour": 3})
    coloured = [one for one in requests if one.kind != "colour" or one.label in LABELS]
    return plan_requests([one for one in coloured if one.kind != "any-colour" or one.label == "heart"], plan)


def test_colours_that_no_picture_shows_are_not_asked_for(world: World) -> None:
    asked = exploration.ask_suite(world, "quick", 0)
    assert {one.request.label for one in asked if one.request.kind == "colour"} <= set(LABELS)
    assert {one.request.kind for one in asked} >= {"colour", "any-colour", "specified"}


def test_a_thing_of_no_colours_is_drawn_as_it_is(world: World) -> None:
    picture = Real(world).draw([Asked(Request(kind="any-colour", prompt="a fox", label="fox"), 0)])[0]
    assert any(np.array_equal(picture, shape(0, style)) for style in range(10))


def test_features_are_kept_under_a_name_that_fixes_them(work: Any) -> None:
    features = PictureFeatures(work.cache / "efficientnet-lite0")
    assert features.name == NAME
    found = features.of(np.stack([shape(1, 1), shape(1, 1), shape(2, 3)]))
    assert np.allclose(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    with pytest.raises(ValueError, match="no pictures"):
        features.of(np.zeros((0, 64, 64, 3), np.uint8))


def test_a_subject_is_measured_written_and_drawn_once(
    world: World, work: Any, reader: TextReader, tmp_path: Path
) -> None:
    asked = [one for one in small_plan(world) if one.request.kind != "any-colour"]
    witnesses, known = exploration.ready_witnesses(work, world)
    subject = Counted(world)
    first, again = (draw_in_pieces(subject, asked, tmp_path / "pictures", lambda done, total: None) for _ in range(2))
    assert subject.drawn == len(asked)
    assert np.array_equal(first, again)
    result, sheet = measure_subject(subject, asked, world, witnesses, known, reader, pictures=first)
    assert subject.drawn == len(asked)
    exploration.write_all(work, tmp_path, result, sheet, witnesses, known)
    written = from_document(json.loads((tmp_path / "metrics.json").read_text()))
    assert written.measures == result.measures
    assert {"can_style", "diversity", "transfer", "near_copies", "can_count", "text_error"} <= set(written.measures)
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in written.measures)
    assert "No person has judged" in page
    assert len((tmp_path / "prompts.txt").read_text().splitlines()) == len(asked)


def test_planted_faults_are_measured_once_and_training_copies_are_seen_whatever_the_judges_learned(
    world: World, work: Any, tmp_path: Path
) -> None:
    asked = [one for one in small_plan(world) if one.request.kind not in ("any-colour", "text")]
    witnesses, known = exploration.ready_witnesses(work, world)
    _, sheet = measure_subject(Real(world), asked, world, witnesses, known, NoReader())
    told: list[int] = []
    planted = self_test(sheet, witnesses, known, NoReader(), tmp_path, lambda done, total: told.append(done))
    assert told == [1, 2, 3, 4, 5, 6, 7]
    assert self_test(sheet, witnesses, known, NoReader(), tmp_path, lambda done, total: told.append(done)) == planted
    assert len(told) == 7
    held = {(step.measure, step.lower, step.upper): step.holds for step in check_orders(SELF_TEST, planted)}
    assert held["near_copies", "noise", "training copies"]


def test_own_prompts_of_things_nobody_knows_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="'a gryphon' should show 'gryphon', which no judge knows"):
        own_requests([Request(kind="default", prompt="a gryphon", label="gryphon")], world)


def test_pictures_of_another_shape_or_type_are_refused(world: World, work: Any) -> None:
    witnesses, _ = exploration.ready_witnesses(work, world)
    asked = small_plan(world)[:2]
    with pytest.raises(ValueError, match="1 pictures for 2 requests"):
        witnesses.look(world, asked, world.pictures[:1])
    with pytest.raises(ValueError, match="uint8 pictures, not float32"):
        witnesses.look(world, asked, np.full((2, 64, 64, 3), np.nan, np.float32))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "nowhere", "--suite", "exploration"], "there is no nowhere: give a run's folder"),
        (["evaluate", "real", "--suite", "exploration", "--prompts", "none.jsonl"], "none.jsonl cannot be read"),
        (["ledger", "none.json"], "none.json cannot be read"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    home = ["--home", str(tmp_path / "home")] if arguments[0] == "evaluate" else []
    assert main([*arguments, *home]) == 1
    assert said in capsys.readouterr().err


def test_every_measure_has_a_meaning_in_words() -> None:
    assert all(meaning.says and meaning.part for meaning in MEANINGS.values())
