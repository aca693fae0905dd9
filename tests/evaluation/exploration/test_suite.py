"""The whole way, from a subject to a page, over a world of drawn shapes and a network that learned nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pleinair.cli import exploration
from pleinair.evaluation.exploration.asking import own_requests
from pleinair.evaluation.exploration.looking import Witnesses
from pleinair.evaluation.exploration.measuring import draw_in_pieces, measure_subject
from pleinair.evaluation.exploration.requests import PLANS, Asked, Request, plan_requests
from pleinair.evaluation.exploration.self_test import SelfTest, as_many_as_quick, self_test
from pleinair.evaluation.exploration.sheet import Sheet
from pleinair.evaluation.exploration.subjects import Real, quiet
from pleinair.evaluation.exploration.suite import MEANINGS, Known, Result, from_document, measure_all
from pleinair.evaluation.exploration.world import World
from pleinair.evaluation.features import NAME, PictureFeatures
from pleinair.records.errors import ConfigError
from tests.evaluation.exploration.shapes import LABELS, NUM_TRAINED, Counted, shape, small_plan, write_place


@dataclass(frozen=True)
class Done:
    """A subject that was measured and written."""

    work: Any
    out: Path
    subject: Counted
    asked: list[Asked]
    result: Result
    sheet: Sheet
    witnesses: Witnesses
    known: Known

    @property
    def world(self) -> World:
        return self.sheet.world

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "requests.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)  # as every test, which comes after this: judges learn the same beside whatever ran before
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("work")
    write_place(place)
    return SimpleNamespace(home=place / "home", cache=place / "cache")


@pytest.fixture(scope="module")
def done(work: Any, tmp_path_factory: pytest.TempPathFactory) -> Done:
    world = exploration.ready_world(work, LABELS[:NUM_TRAINED])
    witnesses, known = exploration.ready_witnesses(work, world)
    subject, asked, out = Counted(world), small_plan(world), tmp_path_factory.mktemp("out")
    pictures = draw_in_pieces(subject, asked, out / "pictures", quiet)
    result, sheet = measure_subject(subject, asked, world, witnesses, known, pictures=pictures, size="quick")
    result = exploration.write_all(work, out, result, sheet, witnesses, known)
    return Done(work, out, subject, asked, result, sheet, witnesses, known)


def test_colours_and_kinds_that_no_picture_shows_are_not_asked_for(done: Done) -> None:
    asked = exploration.ask_suite(done.world, "quick", 0)
    of = {kind: {one.request.label for one in asked if one.request.kind == kind} for kind in PLANS["quick"].prompts}
    assert of["colour"] == {"red heart", "blue heart"}
    assert of["any-colour"] == {"heart"}
    assert of["any-kind"] == {"apple"}
    assert of["specified"] == set(LABELS[:NUM_TRAINED])


def test_real_pictures_answer_open_prompts_with_one_of_what_they_leave_open(done: Done) -> None:
    apple = Request(kind="any-kind", prompt="an apple", label="apple", variants=("red apple", "green apple"))
    heart = Request(kind="any-colour", prompt="a heart", label="heart")
    for request, things in ((apple, (6, 7)), (heart, (8, 9))):
        drawn = Real(done.world).draw([Asked(request, seed) for seed in range(12)])
        shown = {
            thing
            for picture in drawn
            for thing in things
            for style in range(10)
            if (picture == shape(thing, style)).all()
        }
        assert shown == set(things)


def test_features_are_kept_under_a_name_that_fixes_them(work: Any) -> None:
    features = PictureFeatures(work.cache / "efficientnet-lite0")
    assert features.name == NAME
    found = features.of(np.stack([shape(1, 1), shape(1, 1), shape(2, 3)]))
    assert np.allclose(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    with pytest.raises(ValueError, match="no pictures"):
        features.of(np.zeros((0, 64, 64, 3), np.uint8))


def test_a_subject_is_measured_written_and_drawn_once(done: Done) -> None:
    assert done.subject.drawn == len(done.asked)
    again = draw_in_pieces(done.subject, done.asked, done.out / "pictures", quiet)
    assert np.array_equal(again, done.sheet.pictures)
    assert done.subject.drawn == len(done.asked)
    written = json.loads((done.out / "metrics.json").read_text())
    assert from_document(written) == done.result
    assert {"can_style", "diversity", "transfer", "near_copies", "can_count", "text_error"} <= set(done.result.measures)
    assert (written["identity"], written["size"]) == (done.subject.identity, "quick")
    assert [one["judge"] for one in written["judges"]] == ["first", "second"]
    assert written["copies"]["num"] == int(done.world.held_out.sum())


def test_pictures_of_other_weights_or_requests_are_drawn_anew(done: Done, tmp_path: Path) -> None:
    subject, few = Counted(done.world), done.asked[:3]
    draw_in_pieces(subject, few, tmp_path, quiet)
    subject.identity = "d" * 64
    draw_in_pieces(subject, few, tmp_path, quiet)
    assert subject.drawn == 6
    draw_in_pieces(subject, [Asked(replace(one.request, label="key"), one.seed) for one in few], tmp_path, quiet)
    assert subject.drawn == 9


def test_the_page_shows_every_measure_with_its_judges_and_what_its_self_test_rejects(done: Done) -> None:
    page = (done.out / "report.html").read_text()
    assert all(name in page for name in done.result.measures)
    assert all(said in page for said in ("No person has judged", "AUROC", "gap", "Counting", "requests.jsonl"))
    # A second judge of random features misses some of what is planted.
    assert done.result.rejected
    assert page.count("REJECTED by its self test") == len(done.result.rejected)
    assert exploration.as_text(done.result).count("REJECTED") == len(done.result.rejected)


def test_every_line_names_the_picture_it_is_about(done: Done) -> None:
    assert len(done.lines) == len(done.asked)
    for line, one, picture in zip(done.lines, done.asked, done.sheet.pictures, strict=True):
        with np.load(done.out / line["file"]) as kept:
            assert np.array_equal(kept["pixels"][line["row"]], picture)
        assert line["seed"] == one.seed
        assert line["request"]["prompt"] == one.request.prompt


Field = Callable[[Mapping[str, Any], Mapping[str, Any]], float]
"""A line, and what one judge said in it -> what is averaged."""
TRACED: Mapping[str, tuple[tuple[str, ...], Field]] = {
    "can_style": (("specified",), lambda line, said: said["style_right"]),
    "can_concept": (("specified",), lambda line, said: said["thing_right"]),
    "can_both": (("specified",), lambda line, said: said["style_right"] and said["thing_right"]),
    "can_unseen": (("unseen",), lambda line, said: said["style_right"] and said["thing_right"]),
    "can_long": (("long",), lambda line, said: said["style_right"] and said["thing_right"]),
    "can_count": (("count",), lambda line, said: said["right"]),
    "can_pair": (("pair",), lambda line, said: said["right"]),
    "near_copies": (("default",), lambda line, said: line["copy"]),
    "text_error": (("text",), lambda line, said: line["text_error"]),
}


@pytest.mark.parametrize("name", TRACED)
def test_a_number_is_the_mean_over_prompts_of_what_the_lines_say(done: Done, name: str) -> None:
    kinds, field = TRACED[name]
    for judge, found in done.result.measures[name].items():
        units: dict[str, list[float]] = {}
        for line in done.lines:
            if line["request"]["kind"] in kinds:
                said = line.get("judges", {}).get(judge, {})
                units.setdefault(line["request"]["prompt"], []).append(float(field(line, said)))
        assert np.mean([np.mean(values) for values in units.values()]) == pytest.approx(found.value)
        assert sum(map(len, units.values())) == found.num_pictures


@pytest.fixture(scope="module")
def tested(done: Done) -> SelfTest:
    def drawn_again(done: int, total: int) -> None:
        raise AssertionError("the self test was measured before")

    return self_test(done.sheet, done.witnesses, done.known, done.work.home / "exploration", drawn_again)


def test_planted_faults_are_measured_once_and_a_measure_that_does_not_see_its_own_is_rejected(
    done: Done, tested: SelfTest
) -> None:
    held = {(step.measure, step.lower, step.upper): step.holds for step in tested.steps}
    assert ("near_copies", "noise", "training copies") in held
    assert {"unseen_gap", "tail_gap", "can_count"} <= {step.measure for step in tested.steps}
    failed = {(step.measure, step.judge) for step in tested.steps if not step.holds}
    assert failed == {(name, judge) for name, judges in tested.rejected.items() for judge in judges}
    assert done.result.rejected == tested.rejected


def test_another_seed_and_another_order_of_work_move_nothing(done: Done, tested: SelfTest) -> None:
    assert tested.moved == {"other seed": [], "reordered": []}
    assert tested.real.num_pictures == len(done.asked)


def test_the_batches_in_which_judges_look_move_nothing(done: Done) -> None:
    features = PictureFeatures(done.work.cache / "efficientnet-lite0", batch_size=5)
    sheet = replace(done.witnesses, features=features).look(done.world, done.asked, done.sheet.pictures)
    for name, by_judge in measure_all(sheet, done.known).items():
        for judge, one in by_judge.items():
            assert one.value == pytest.approx(done.result.measures[name][judge].value, abs=1e-3), (name, judge)


def test_a_self_test_takes_of_a_full_run_as_much_as_quick_asks(done: Done) -> None:
    requests = [Request(kind="specified", prompt=f"{place}", label="fox", style="noto") for place in range(400)]
    full = plan_requests(requests, PLANS["full"])
    chosen = [one.request.prompt for one, taken in zip(full, as_many_as_quick(full), strict=True) if taken]
    assert len(full) == 1500
    assert len(chosen) == len(set(chosen)) == 120
    assert max(map(int, chosen)) > 290
    quick = small_plan(done.world)
    assert as_many_as_quick(quick).all()


def test_own_prompts_of_things_nobody_knows_are_refused(done: Done) -> None:
    fox, gryphon = (Request(kind="default", prompt=f"a {label}", label=label) for label in ("fox", "gryphon"))
    with pytest.raises(ConfigError, match="'a gryphon' should show 'gryphon', which no judge knows"):
        own_requests([fox, gryphon], done.world)
    choice = Request(kind="any-kind", prompt="a beast", label="beast", variants=("fox", "gryphon"))
    with pytest.raises(ConfigError, match="should show 'gryphon'"):
        own_requests([fox, choice], done.world)
    coloured = [Request(kind="any-colour", prompt=f"a {label}", label=label) for label in ("heart", "fox")]
    with pytest.raises(ConfigError, match="'a fox' should show 'fox'"):
        own_requests(coloured, done.world)


def test_pictures_of_another_number_shape_or_type_are_refused(done: Done) -> None:
    look, asked, pictures = done.witnesses.look, done.asked[:2], done.sheet.pictures
    with pytest.raises(ValueError, match="1 pictures for 2 requests"):
        look(done.world, asked, pictures[:1])
    with pytest.raises(ValueError, match="uint8 pictures, not float32"):
        look(done.world, asked, np.full((2, 64, 64, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="not uint8 \\(2, 32, 32, 3\\)"):
        look(done.world, asked, pictures[:2, ::2, ::2])


@pytest.mark.parametrize(
    ("kind", "num", "said"),
    [("default", 1, "default_styles rests on 1 of what was asked"), ("unseen", 4, "alone allow no measure")],
)
def test_a_single_picture_and_prompts_that_allow_no_measure_are_refused_with_a_sentence(
    done: Done, kind: str, num: int, said: str
) -> None:
    few = [one for one in done.asked if one.request.kind == kind][:num]
    with pytest.raises(ConfigError, match=said):
        measure_subject(done.subject, few, done.world, done.witnesses, done.known)


def test_every_measure_has_a_meaning_in_words() -> None:
    assert all(meaning.says and meaning.part for meaning in MEANINGS.values())
