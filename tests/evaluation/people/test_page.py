"""The page of trials: over real HTTP what it may know, and in a real browser what its keys do."""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pleinair.evaluation.people.shown import Showing
from pleinair.evaluation.people.sitting import SidesSite, Sitting
from pleinair.evaluation.people.trials import Trial, comparisons, controls, session
from pleinair.pages.loopback import served
from pleinair.records.errors import ConfigError
from pleinair.records.preferences import PreferenceLog, read_preferences
from tests.evaluation.people.showings import STYLES, read_three
from tests.pages.chromium import PATH, Page, chromium
from tests.pages.visitor import REFUSED, Visitor

TOKEN = "t" * 32
NAMES = ("rich-model", "narrow-model", "real", "noise", "copies")


@pytest.fixture(scope="module")
def showing(tmp_path_factory: pytest.TempPathFactory) -> Showing:
    return read_three(tmp_path_factory.mktemp("results"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def trials_of(showing: Showing, num: int = 8) -> list[Trial]:
    return session(comparisons(showing, STYLES), controls(showing, STYLES), "ada", num, 0)


def site_of(showing: Showing, path: Path, num: int = 8) -> SidesSite:
    return SidesSite(Sitting(showing, trials_of(showing, num), PreferenceLog(path), "ada"), showing)


@pytest.fixture
def visitor(showing: Showing, path: Path) -> Iterator[Visitor]:
    with served(site_of(showing, path), TOKEN, 0) as address:
        yield Visitor(address)


def answered(trial: str, answer: str = "left", **more: Any) -> dict[str, Any]:
    return {"event": str(uuid.uuid4()), "trial": trial, "answer": answer, "seconds": 1.5, **more}


def test_the_browser_is_told_questions_and_pictures_and_no_name_before_the_end(
    visitor: Visitor, showing: Showing
) -> None:
    state = visitor.ask("state")[1]
    trials = trials_of(showing)
    assert [one["trial"] for one in state["trials"]] == [one.trial for one in trials]
    keys = {"trial", "question", "style", "answer", "left", "right", "examples"}
    assert {frozenset(one) for one in state["trials"]} == {frozenset(keys)}
    text = json.dumps(state)
    assert not [name for name in NAMES if name in text]
    assert not {one.identity for one in showing.subjects} & set(re.findall(r"\w+", text))
    ids = [shown["id"] for one in state["trials"] for place in ("left", "right", "examples") for shown in one[place]]
    assert len(set(ids)) == len(ids)
    told, trial = state["trials"][0], trials[0]
    for place, half in (("left", trial.left), ("right", trial.right)):
        for shown, row in zip(told[place], half.rows, strict=True):
            status, data, headers = visitor.ask(f"picture/{shown['id']}")
            assert (status, headers.get_content_type()) == (200, "image/png")
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), half.gallery.pictures[row])
            assert set(re.findall(rb"IHDR|tEXt|iTXt|tIME|eXIf", data)) == {b"IHDR"}


def test_an_answer_is_an_event_that_says_which_pictures_stood_where(
    visitor: Visitor, showing: Showing, path: Path
) -> None:
    trials = trials_of(showing)
    for one in trials:
        assert visitor.ask("answers", [answered(one.trial, "right")])[1]["answers"][one.trial] == "right"
    events = read_preferences(path)
    assert [one.trial for one in events] == [one.trial for one in trials]
    for event, trial in zip(events, trials, strict=True):
        for side, half in ((event.left, trial.left), (event.right, trial.right)):
            assert (side.subject, side.identity) == (half.gallery.subject, half.gallery.identity)
            asked = [half.gallery.asked[row] for row in half.rows]
            assert [(one.unit, one.seed) for one in side.pictures] == [(one.request.unit, one.seed) for one in asked]
        assert (event.control, event.repeat, event.question) == (trial.control, trial.repeat, trial.comparison.question)
        assert (event.person, event.origin, event.seconds) == ("ada", "human", 1.5)
        assert event.prompts_sha256 == showing.prompts_sha256


def test_an_answer_sent_again_to_a_server_started_again_is_one_event(
    visitor: Visitor, showing: Showing, path: Path
) -> None:
    trials = trials_of(showing)
    given = [answered(trials[0].trial), answered(trials[1].trial, "same")]
    visitor.ask("answers", given)
    with served(site_of(showing, path), TOKEN, 0) as address:
        again = Visitor(address)
        held = {trials[0].trial: "left", trials[1].trial: "same"}
        assert again.ask("answers", given)[1] == {"answers": held}
        state = again.ask("state")[1]
        assert {one["trial"]: one["answer"] for one in state["trials"] if one["answer"]} == held
        again.ask("answers", [answered(trials[1].trial, "withdrawn", seconds=0)])
        assert again.ask("answers", [])[1] == {"answers": {trials[0].trial: "left"}}
    assert len(read_preferences(path)) == 3


def test_names_are_told_once_all_is_answered_and_then_nothing_changes(
    visitor: Visitor, showing: Showing, path: Path
) -> None:
    trials = trials_of(showing)
    visitor.ask("answers", [answered(one.trial) for one in trials[1:]])
    status, told, _ = visitor.ask("end", {})
    assert (status, told) == (400, {"error": "1 trials are not answered yet: answer them first"})
    last = answered(trials[0].trial)
    visitor.ask("answers", [last])
    visitor.ask("answers", [answered(trials[0].trial, "same")])  # until the names are asked for, one may go back
    sides = visitor.ask("end", {})[1]["sides"]
    assert [(one["left"], one["right"]) for one in sides] == [
        (one.left.gallery.subject, one.right.gallery.subject) for one in trials
    ]
    assert {one["about"] for one in sides} == {"", "control", "asked again"}
    num = len(read_preferences(path))
    assert visitor.ask("answers", [answered(trials[0].trial, "right")])[0] == 400
    assert visitor.ask("answers", [last])[0] == 200  # sent again by a page that missed the answer
    with served(site_of(showing, path), TOKEN, 0) as address:
        assert Visitor(address).ask("answers", [answered(trials[0].trial, "right")])[0] == 400
    assert len(read_preferences(path)) == num


REFUSED_HERE: list[tuple[int, dict[str, Any]]] = [
    (404, {"path": f"picture/{'0' * 32}"}),
    (404, {"path": "picture/..%2flog.jsonl"}),
    (404, {"path": "log.token"}),
    (400, {"path": "answers", "body": [answered("unknown")]}),
    (400, {"path": "answers", "body": [{"event": "1"}]}),
    (400, {"path": "answers", "body": {"event": "1"}}),
    (400, {"path": "answers", "body": 7}),
]


def test_what_another_page_or_a_wrong_address_asks_is_refused_and_leaves_no_event(
    visitor: Visitor, showing: Showing, path: Path
) -> None:
    trial = trials_of(showing)[0].trial
    bad = [{"answer": "like"}, {"seconds": -1}, {"seconds": "2"}, {"event": "7"}]
    senseless = [(400, {"path": "answers", "body": [answered(trial), answered(trial, **change)]}) for change in bad]
    for status, asked in [*REFUSED, *REFUSED_HERE, *senseless]:
        found, told, _ = visitor.ask(**asked)
        assert (found, set(told)) == (status, {"error"}), asked
    assert read_preferences(path) == []


def test_a_log_that_cannot_be_written_keeps_the_answer_in_the_page(showing: Showing, path: Path) -> None:
    with served(site_of(showing, path), TOKEN, 0) as address:
        path.mkdir()
        status, told, _ = Visitor(address).ask("answers", [answered(trials_of(showing)[0].trial)])
        assert status == 503
        assert "--log" in told["error"]


def test_the_page_runs_and_loads_nothing_but_what_is_served_here(visitor: Visitor) -> None:
    for name in ("", "sides.js", "outbox.js", "sides.css"):
        status, text, _ = visitor.ask(name)
        assert status == 200
        assert re.search(rb"<script(?! src=)|\son\w+=|\sstyle=|https?:|innerHTML|eval\(|@import", text) is None


def test_every_key_the_help_names_is_one_the_page_takes() -> None:
    page = files("pleinair.evaluation.people").joinpath("page")
    help_text = page.joinpath("index.html").read_text("utf-8").partition("<dl>")[2].partition("</dl>")[0]
    script = page.joinpath("sides.js").read_text("utf-8").partition("const keys = {")[2].partition("};")[0]
    spelled = {"space": " ", "enter": "Enter", "left": "ArrowLeft", "right": "ArrowRight"}
    named = set(re.findall(r"<kbd>(.+?)</kbd>", help_text))
    assert len(named) == 7
    assert [name for name in named if not re.search(rf'[\s"]{re.escape(spelled.get(name, name))}"?[:,]', script)] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


SHOWN = "!document.querySelector('#trial').hidden && !document.querySelector('#trial.waiting')"
SAVED = "document.querySelector('#saved').textContent === 'saved, as ada'"


@pytest.mark.skipif(PATH is None, reason="no Chromium here")
def test_keys_answer_go_back_and_end_with_the_names(browser: Page, showing: Showing, path: Path) -> None:
    trials = trials_of(showing, 3)
    with served(site_of(showing, path, 3), TOKEN, 0) as address:
        browser.size(1280, 800)
        browser.go(address)
        keys = {"ArrowLeft": "left", "ArrowRight": "right", " ": "same", "x": "cannot_tell"}
        said = []
        for place, one in enumerate(trials):
            browser.wait(f"document.querySelector('#count').textContent === '{place + 1} of {len(trials)}' && {SHOWN}")
            assert browser.value("document.querySelector('#question').textContent") == one.comparison.question
            key = list(keys)[place % len(keys)]
            browser.press(key)
            said.append(keys[key])
        browser.wait(f"!document.querySelector('#end').hidden && {SAVED}")
        assert not any(name in browser.value("document.documentElement.outerHTML") for name in NAMES)
        browser.press("u")
        browser.wait(SHOWN)
        browser.press("ArrowRight")
        said[-1] = "right"
        browser.wait(f"!document.querySelector('#end').hidden && {SAVED}")
        browser.press("Enter")
        rows = browser.wait(
            "!document.querySelector('#names').hidden && "
            "[...document.querySelectorAll('#names tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
        assert [row[1:3] for row in rows] == [[one.left.gallery.subject, one.right.gallery.subject] for one in trials]
    events = read_preferences(path)
    last = {one.trial: one.answer for one in events}
    assert [last[one.trial] for one in trials] == said
    assert [one.answer for one in events][-2:] == ["withdrawn", "right"]
    assert all(0 < one.seconds < 600 for one in events if one.answer != "withdrawn")


@pytest.mark.skipif(PATH is None, reason="no Chromium here")
def test_answers_given_while_the_server_is_away_are_sent_when_it_is_back(
    browser: Page, showing: Showing, path: Path
) -> None:
    with served(site_of(showing, path), TOKEN, 0) as address:
        port = Visitor(address).port
        browser.go(address)
        browser.wait(f"document.querySelector('#count').textContent === '1 of 12' && {SHOWN}")
    browser.press("ArrowLeft")
    browser.wait("document.querySelector('#saved').textContent.includes('not yet saved: the server is away')")
    assert read_preferences(path) == []
    with served(site_of(showing, path), TOKEN, port) as address:
        browser.wait(f"{SAVED} && document.querySelector('#count').textContent === '2 of 12' && {SHOWN}")
        browser.go("about:blank")
    assert [one.answer for one in read_preferences(path)] == ["left"]


@pytest.mark.skipif(PATH is None, reason="no Chromium here")
@pytest.mark.parametrize(("width", "height", "scale"), [(1280, 800, 1), (1920, 1080, 1.5), (360, 740, 3)])
def test_all_pictures_are_in_view_and_every_pixel_is_a_whole_number_of_the_screens(
    browser: Page, showing: Showing, path: Path, width: int, height: int, scale: float
) -> None:
    with served(site_of(showing, path), TOKEN, 0) as address:
        browser.size(width, height, scale=scale)
        browser.go(address)
        browser.wait(SHOWN)
        boxes = browser.value(
            "[...document.querySelectorAll('.side img')].map((one) => { const box = one.getBoundingClientRect(); "
            "return [box.left, box.top, box.right, box.bottom]; })"
        )
        alt = browser.value("[...document.querySelectorAll('.side img')].every((one) => one.alt)")
        footer = browser.value("document.querySelector('footer').getBoundingClientRect().bottom")
        browser.go("about:blank")
    assert len(boxes) == sum(len(half.rows) for half in (trials_of(showing)[0].left, trials_of(showing)[0].right))
    assert alt
    assert footer <= height + 1
    for left, top, right, bottom in boxes:
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
        pixels = (right - left) * scale / 64
        assert pixels == pytest.approx(round(pixels), abs=0.02)
        assert pixels >= 1


def test_a_sitting_of_other_trials_refuses_an_answer_to_these(showing: Showing, path: Path) -> None:
    sitting = Sitting(showing, trials_of(showing, 3), PreferenceLog(path), "ada")
    assert sitting.left_open == len(sitting.trials)
    with pytest.raises(ConfigError, match="not answered yet"):
        sitting.end()
