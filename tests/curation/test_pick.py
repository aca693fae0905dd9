"""Sets picked by hand: events and what they add up to, over real HTTP to the real server and a real warehouse."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pleinair import krablet
from pleinair.cli.main import main
from pleinair.curation import ObjectStore, images_table
from pleinair.curation.picks.board import Board
from pleinair.curation.picks.candidates import candidates, pickable, read_names
from pleinair.curation.picks.events import Picks, Wish, events_of, picks_table, read_events
from pleinair.curation.picks.server import board_served
from pleinair.krablet import Database
from pleinair.records.errors import ConfigError
from pleinair.records.picks import PickEvent
from tests.pages.visitor import REFUSED, Visitor

TOKEN = "t" * 32
NAMES = [f"made/{number:02d}" for number in range(8)]


def png(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    written = io.BytesIO()
    Image.fromarray(coarse).resize((300, 200)).save(written, "PNG")
    return written.getvalue()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def warehouse(database: Database, home: Path) -> Database:
    """Eight kept pictures, one dropped, one held out."""
    store = ObjectStore(home / "store")
    kept = {
        "captions_drop": "",
        "duplicate_drop": "",
        "licence": "CC0-1.0",
        "author": "Ada",
        "source": "made",
        "uri": "made:",
    }
    rows: list[dict[str, object]] = [
        {"image_name": name, "image_path": store.put(png(number)), "label": f"<b>thing {number}</b>", **kept}
        for number, name in enumerate(NAMES)
    ]
    rows.append(
        {"image_name": "made/dropped", "image_path": store.put(png(90)), **kept, "duplicate_drop": "duplicate: x"}
    )
    rows.append({"image_name": "made/held", "image_path": store.put(png(91)), **kept, "held_out": True})
    images_table(database).upsert(rows)
    return database


def board_of(warehouse: Database, person: str = "ada", domains: tuple[str, ...] = ("food", "signs")) -> Board:
    images = images_table(warehouse)
    return Board(warehouse, images, candidates(images, pickable(images), 100, NAMES), domains, person)


class Browser(Visitor):
    """One that decides."""

    def wish(self, name: str, decision: str, domain: str = "food", **more: object) -> dict[str, Any]:
        wanted = {"event": str(uuid.uuid4()), "image_name": name, "domain": domain, "decision": decision, **more}
        status, told, _ = self.ask("events", [wanted])
        assert status == 200, told
        (pick,) = [one for one in told["picks"] if one["name"] == name and one["domain"] == domain]
        return dict(pick)


@pytest.fixture
def browser(warehouse: Database, home: Path) -> Iterator[Browser]:
    with board_served(board_of(warehouse), ObjectStore(home / "store"), TOKEN, 0) as address:
        yield Browser(address)


def chosen(warehouse: Database, domain: str = "food") -> list[str]:
    return Picks(read_events(picks_table(warehouse))).chosen(domain)


def test_the_page_is_told_what_it_shows_and_gets_every_picture_in_three_sizes(browser: Browser) -> None:
    status, state, _ = browser.ask("state")
    assert status == 200
    assert (state["candidates"], state["domains"], state["person"]) == (NAMES, ["food", "signs"], "ada")
    assert "image_path" not in json.dumps(state)
    for one in state["pictures"]:
        sizes = {}
        for size in ("thumb", "view", "full"):
            status, data, headers = browser.ask(f"{size}/{one['id']}")
            assert status == 200
            assert "immutable" in headers["Cache-Control"]
            sizes[size] = (headers.get_content_type(), Image.open(io.BytesIO(data)).size)
        assert sizes == {
            "thumb": ("image/webp", (256, 171)),
            "view": ("image/webp", (300, 200)),
            "full": ("image/png", (300, 200)),
        }


def test_decisions_are_events_and_the_set_is_their_fold(browser: Browser, warehouse: Database) -> None:
    for name in NAMES[:4]:
        browser.wish(name, "keep")
    browser.wish(NAMES[1], "discard")
    browser.wish(NAMES[3], "move", before=NAMES[0])
    browser.wish(NAMES[4], "keep", "signs")
    assert chosen(warehouse) == [NAMES[3], NAMES[0], NAMES[2]]
    assert chosen(warehouse, "signs") == [NAMES[4]]
    events = read_events(picks_table(warehouse))
    assert [event.decision for event in events] == ["keep"] * 4 + ["discard", "move", "keep"]
    assert {(event.person, event.origin) for event in events} == {("ada", "human")}


def test_undo_puts_a_picture_back_where_it_stood(browser: Browser, warehouse: Database) -> None:
    before = [browser.wish(name, "keep") for name in NAMES[:3]]
    browser.wish(NAMES[1], "discard")
    browser.wish(NAMES[1], "keep", position=before[1]["position"])
    assert chosen(warehouse) == NAMES[:3]
    browser.wish(NAMES[2], "clear")
    assert chosen(warehouse) == NAMES[:2]


def test_an_event_sent_twice_is_one_event(browser: Browser, warehouse: Database) -> None:
    wanted = {"event": str(uuid.uuid4()), "image_name": NAMES[0], "domain": "food", "decision": "keep"}
    first = browser.ask("events", [wanted])[1]
    browser.wish(NAMES[1], "keep")
    assert browser.ask("events", [wanted])[1] == first
    assert chosen(warehouse) == NAMES[:2]
    assert len(read_events(picks_table(warehouse))) == 2


def test_two_people_at_once_see_each_others_decisions(
    warehouse: Database, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pleinair.curation.picks.board._LOOK_SECONDS", 0.0)
    store = ObjectStore(home / "store")
    with (
        krablet.connect(warehouse.dsn) as other,
        board_served(board_of(warehouse), store, TOKEN, 0) as of_ada,
        board_served(board_of(other, "bo"), store, TOKEN, 0) as of_bo,
    ):
        ada, bo = Browser(of_ada), Browser(of_bo)
        state = bo.ask("state")[1]
        ada.wish(NAMES[0], "keep")
        bo.wish(NAMES[1], "keep")
        bo.wish(NAMES[0], "discard")
        news = ada.ask(f"news?boot={ada.ask('state')[1]['boot']}&version=0")[1]
        told = {one["name"]: (one["decision"], one["person"]) for one in news["picks"]}
        assert told == {NAMES[0]: ("discard", "bo"), NAMES[1]: ("keep", "bo")}
        news = bo.ask(f"news?boot={state['boot']}&version={state['version']}")[1]
        assert {one["name"] for one in news["picks"]} == set(NAMES[:2])
        assert ada.ask("news?boot=another&version=0")[1].keys() == {"boot"}
    assert chosen(warehouse) == [NAMES[1]]


PICK = [sys.executable, "-m", "pleinair.cli.main", "pick", "--domain", "food", "--port", "0"]


def served(warehouse: Database, home: Path) -> tuple[subprocess.Popen[str], Browser]:
    command = [*PICK, "--dsn", warehouse.dsn, "--home", str(home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    return process, Browser(line.rpartition(" ")[2].strip())


def test_a_server_killed_at_any_moment_has_lost_nothing_it_answered_for(warehouse: Database, home: Path) -> None:
    process, browser = served(warehouse, home)
    with process:
        for name in NAMES[:3]:
            browser.wish(name, "keep")
        os.kill(process.pid, signal.SIGKILL)
    process, again = served(warehouse, home)
    with process:
        state = again.ask("state")[1]
        assert again.token == browser.token
        assert {one["name"] for one in state["picks"]} == set(NAMES[:3])
        again.wish(NAMES[3], "keep")
        process.terminate()
        assert process.wait(timeout=20) == 0
    assert chosen(warehouse) == NAMES[:4]
    assert (home / "pick-token").stat().st_mode & 0o777 == 0o600


REFUSED_HERE: list[tuple[int, dict[str, Any]]] = [
    (404, {"path": "pick.py"}),
    (404, {"path": "thumb/../../../etc/passwd"}),
    (404, {"path": "full/..%2f..%2fpick-token"}),
    (404, {"path": f"full/{'0' * 32}"}),
    (400, {"path": "news?boot=x"}),
    (400, {"path": "events", "body": [{"event": "1"}]}),
    (400, {"path": "events", "body": [7]}),
]


def test_what_another_page_or_a_wrong_address_asks_is_refused(browser: Browser) -> None:
    for status, asked in [*REFUSED, *REFUSED_HERE]:
        found, told, headers = browser.ask(**asked)
        assert (found, set(told)) == (status, {"error"}), asked
        assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_a_wish_that_makes_no_sense_is_refused_and_leaves_no_event(browser: Browser, warehouse: Database) -> None:
    changes = ({"image_name": "made/dropped"}, {"domain": "<b>"}, {"domain": ""}, {"decision": "like"}, {"event": "7"})
    for change in changes:
        good = {"event": str(uuid.uuid4()), "image_name": NAMES[0], "domain": "food", "decision": "keep"}
        assert browser.ask("events", [good, {**good, "event": str(uuid.uuid4()), **change}])[0] == 400, change
    assert read_events(picks_table(warehouse)) == []


def test_the_page_runs_and_loads_nothing_but_what_is_served_here(browser: Browser) -> None:
    status, html, headers = browser.ask("")
    assert status == 200
    assert headers["Referrer-Policy"] == "no-referrer"
    assert re.search(rb"<script(?! src=)|\son\w+=|\sstyle=|https?:", html) is None
    for name in ("pick.js", "outbox.js", "pick.css"):
        status, text, _ = browser.ask(name)
        assert status == 200
        assert re.search(rb"https?:|innerHTML|eval\(|@import", text) is None


stamps = st.integers(0, 5).map(lambda second: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second))
any_event = st.builds(
    PickEvent,
    event=st.uuids().map(str),
    image_name=st.sampled_from(NAMES[:4]),
    domain=st.sampled_from(["food", "signs"]),
    decision=st.sampled_from(["keep", "discard", "clear", "move"]),
    position=st.integers(0, 3).map(float),
    person=st.just("ada"),
    origin=st.just("human"),
    at=stamps,
)


@settings(max_examples=150)
@given(st.lists(any_event, max_size=10), st.randoms(use_true_random=False))
def test_the_set_does_not_depend_on_the_order_in_which_events_arrive(events: list[PickEvent], random: Any) -> None:
    mixed = [*events, *events[:3]]
    random.shuffle(mixed)
    assert Picks(mixed).by_domain == Picks(sorted(events, key=lambda event: (event.at, event.event))).by_domain


def wished(picks: Picks, name: str, decision: Any, before: str | None = None) -> list[PickEvent]:
    wish = Wish(event=str(uuid.uuid4()), image_name=name, domain="food", decision=decision, before=before)
    return list(events_of([wish], picks, "ada", "script"))


def test_a_picture_can_be_moved_between_two_others_for_ever() -> None:
    picks, expected = Picks(), NAMES[:3]
    for name in expected:
        wished(picks, name, "keep")
    numbered_anew = 0
    for turn in range(200):
        # The last goes before the second, again and again, which halves the room between them each time.
        name = expected[-1]
        numbered_anew += len(wished(picks, name, "move", expected[1])) > 1
        expected = [expected[0], name, *[one for one in expected[1:] if one != name]]
        assert picks.chosen("food") == expected, turn
    assert 0 < numbered_anew < 10


def test_an_event_is_later_than_all_its_author_had_seen_whatever_the_clock_says() -> None:
    ahead = PickEvent(
        event=str(uuid.uuid4()), image_name=NAMES[0], domain="food", decision="keep", position=1.0, person="bo",
        origin="human", at=datetime.now(UTC) + timedelta(hours=1),
    )  # fmt: skip
    picks = Picks([ahead])
    wished(picks, NAMES[0], "discard")
    assert picks.chosen("food") == []


def test_pictures_shown_are_kept_and_not_held_out_and_always_mixed_the_same_way(warehouse: Database) -> None:
    images = images_table(warehouse)
    shown = [one.image_name for one in candidates(images, pickable(images), 100)]
    assert sorted(shown) == NAMES
    assert shown != NAMES
    assert [one.image_name for one in candidates(images, pickable(images), 3)] == shown[:3]
    listed = [NAMES[5], "made/held", "nothing", NAMES[2], NAMES[5]]
    assert [one.image_name for one in candidates(images, pickable(images), 100, listed)] == [NAMES[5], NAMES[2]]
    with pytest.raises(ConfigError, match="cannot be read"):
        candidates(images, "no_such_column", 10)
    with pytest.raises(ConfigError, match="no picture satisfies"):
        candidates(images, "FALSE", 10)


def test_an_exported_set_is_ordered_names_its_licences_and_leaves_out_what_may_not_be_trained_on(
    warehouse: Database, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = board_of(warehouse)
    for name in (NAMES[6], NAMES[1], NAMES[3]):
        board.wish([Wish(event=str(uuid.uuid4()), image_name=name, domain="food", decision="keep")])
    images_table(warehouse).update([{"image_name": NAMES[1], "duplicate_drop": "duplicate: same bytes as another"}])
    where = ["--dsn", warehouse.dsn, "--home", str(home)]
    assert main(["pick", "--export", "food", str(home / "food.parquet"), *where]) == 0
    assert main(["pick", "--export", "food", str(home / "food.jsonl"), *where]) == 0
    said = capsys.readouterr()
    assert "food.parquet: 2 pictures of food" in said.out
    assert f"held out since it was picked: {NAMES[1]}" in said.err
    rows = parquet.read_table(home / "food.parquet").to_pylist()
    told = [(row["position"], row["image_name"], row["licence"], row["author"], row["person"]) for row in rows]
    assert told == [(0, NAMES[6], "CC0-1.0", "Ada", "ada"), (1, NAMES[3], "CC0-1.0", "Ada", "ada")]
    lines = [json.loads(line) for line in (home / "food.jsonl").read_text().splitlines()]
    assert [line["image_name"] for line in lines] == read_names(home / "food.parquet") == [NAMES[6], NAMES[3]]
    assert main(["pick", "--export", "fod", str(home / "x.jsonl"), *where]) == 1
    assert "sets with pictures: food" in capsys.readouterr().err
    assert main(["pick", "--export", "food", str(home / "x.csv"), *where]) == 1
    assert main(["pick", "--sets", *where]) == 0
    assert "food: 3 pictures, 3 events by ada" in capsys.readouterr().out
    assert sorted(path.name for path in home.iterdir()) == ["food.jsonl", "food.parquet", "store"]


def test_every_key_the_help_names_is_one_the_page_takes() -> None:
    page = files("pleinair.curation.picks").joinpath("page")
    help_text = page.joinpath("index.html").read_text("utf-8").partition("<dl>")[2].partition("</dl>")[0]
    script = page.joinpath("pick.js").read_text("utf-8").partition("const keys = {")[2].partition("};")[0]
    named = set(re.findall(r"<kbd>(.+?)</kbd>", help_text)) - {"1", "9", "shift"}
    spelled = {"space": " ", "enter": "Enter", "esc": "Escape"}
    missing = [name for name in named if not re.search(rf'[\s"]{re.escape(spelled.get(name, name))}"?[:,]', script)]
    assert missing == []
