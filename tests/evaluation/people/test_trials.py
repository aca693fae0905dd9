"""What is asked: results that fit together, and sessions that are fair, blind and checked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pleinair.evaluation.people.shown import Showing, read_showing
from pleinair.evaluation.people.trials import LEAST_SIDE, NUM_SIDE, comparisons, controls, session
from pleinair.records.errors import ConfigError
from tests.evaluation.people.showings import LABELS, STYLES, asked, narrow, read_three, rich, write_result, write_three


@pytest.fixture(scope="module")
def showing(tmp_path_factory: pytest.TempPathFactory) -> Showing:
    return read_three(tmp_path_factory.mktemp("results"))


def test_results_are_read_with_what_each_prompt_asks_for(showing: Showing) -> None:
    assert [one.subject for one in showing.subjects] == ["rich-model", "narrow-model"]
    assert showing.real.subject == "real"
    assert showing.asked == asked()
    assert len({one.identity for one in [*showing.subjects, showing.real]}) == 3
    first = showing.subjects[1]
    row = [one.request.unit for one in showing.asked].index("default: a house")
    assert first.side([row]).pictures[0].seed == showing.asked[row].seed
    assert first.pictures[row, 0, 0].tolist() == [0, LABELS.index("house"), 77]


def test_pieces_left_by_a_longer_evaluation_are_not_read(tmp_path: Path) -> None:
    first, second, real = write_three(tmp_path)
    (second / "pictures" / "0009.npz").write_bytes((second / "pictures" / "0000.npz").read_bytes())
    assert len(read_showing([first, second], real).subjects[1].pictures) == len(asked())


def test_results_that_cannot_be_compared_are_refused_with_a_sentence(tmp_path: Path) -> None:
    first, second, real = write_three(tmp_path)

    def refused(folders: list[Path], said: str, with_real: Path | None = real) -> None:
        with pytest.raises(ConfigError, match=said):
            read_showing(folders, with_real)

    refused([first], "1 result is given")
    refused([first, tmp_path / "none"], "holds no finished result")
    refused([first, second], "--real", None)
    refused([first, second], "--real", second)
    refused([first, first], "of the same pictures")
    other = write_result(tmp_path / "fewer", "fewer", narrow, requests=asked()[:40])
    refused([first, other], "other prompts or seeds")
    moved = write_result(
        tmp_path / "moved", "moved", rich, requests=[type(one)(one.request, one.seed + 1) for one in asked()]
    )
    refused([first, moved], "other prompts or seeds")
    metrics = json.loads((second / "metrics.json").read_text())
    (second / "metrics.json").write_text(json.dumps({**metrics, "prompts_sha256": "0" * 64}))
    refused([first, second], "lists other prompts than")
    (second / "metrics.json").write_text("{")
    refused([first, second], "holds no finished result")
    (second / "metrics.json").write_text(json.dumps(metrics))
    (second / "requests.jsonl").write_text('{"seed": 3}\n')
    refused([first, second], "holds no finished result .*lists no requests")
    (first / "pictures" / "0003.npz").unlink()
    refused([first, real], "holds 48 pictures")
    (first / "pictures" / "0000.npz").write_bytes(b"PK\x03\x04")
    refused([first, real], "holds no finished result")


def test_every_comparison_shows_the_same_prompts_and_seeds_on_both_sides(showing: Showing) -> None:
    found = comparisons(showing, STYLES)
    assert {one.attribute for one in found} == {"styles", "follows_style", "shows_thing", "prefer"}
    assert len({one.key for one in found}) == len(found)
    for one in found:
        first, second = one.halves
        assert first.rows == second.rows
        assert LEAST_SIDE <= len(first.rows) <= NUM_SIDE
        requests = [showing.asked[row].request for row in first.rows]
        if one.attribute == "follows_style":
            assert {STYLES[request.style] for request in requests} == {one.about}
            assert f"{one.about} style" in one.question
            assert not set(one.examples) & set(first.rows)
        if one.attribute == "shows_thing":
            assert {request.label for request in requests} == {one.about}
        if one.attribute in ("styles", "prefer"):
            assert {request.kind for request in requests} == {"default"}


def test_a_session_is_the_same_again_and_another_for_another_person(showing: Showing) -> None:
    possible, known = comparisons(showing, STYLES), controls(showing, STYLES)
    one = session(possible, known, "ada", 12, 0)
    assert session(possible, known, "ada", 12, 0) == one
    orders = {tuple(t.comparison.key for t in session(possible, known, *of)) for of in (
        ("ada", 12, 0), ("bo", 12, 0), ("ada", 12, 1))}  # fmt: skip
    assert len(orders) == 3
    assert len({trial.trial for trial in one}) == len(one)
    with pytest.raises(ConfigError, match="0 trials"):
        session(possible, known, "ada", 0, 0)


@pytest.mark.parametrize("person", ["ada", "bo", "cy"])
def test_a_session_has_some_of_each_question_repeats_exchanged_and_controls_with_known_answers(
    showing: Showing, person: str
) -> None:
    trials = session(comparisons(showing, STYLES), controls(showing, STYLES), person, 16, 0)
    asks = [one for one in trials if not one.repeat and not one.control]
    assert len(asks) == 16
    counts = [sum(one.comparison.attribute == name for one in asks) for name in ("styles", "shows_thing", "prefer")]
    assert min(counts) >= 3
    before: dict[str, bool] = {}
    for one in trials:
        if one.repeat:
            assert before[one.comparison.key] is not one.exchanged
        else:
            before[one.comparison.key] = one.exchanged
    assert sum(one.repeat for one in trials) == 2
    checks = [one for one in trials if one.control]
    assert len(checks) == 2
    for one in checks:
        right, wrong = (one.left, one.right) if one.control == "left" else (one.right, one.left)
        assert right.gallery.subject == "real"
        pictures = wrong.gallery.pictures[list(wrong.rows)]
        if one.comparison.attribute == "styles":
            assert (pictures == pictures[0]).all()
        else:
            assert wrong.gallery.subject == "noise"


def test_sides_are_mixed(showing: Showing) -> None:
    possible, known = comparisons(showing, STYLES), controls(showing, STYLES)
    exchanged = [
        one.exchanged for person in range(20) for one in session(possible, known, str(person), 16, 0) if not one.repeat
    ]
    # Of some 360 fair coins, further than 60 from half is one in ten billion.
    assert abs(np.sum(exchanged) - len(exchanged) / 2) < 60


def test_prompts_without_enough_pictures_are_refused(tmp_path: Path) -> None:
    few = [one for one in asked() if one.request.kind == "default"][::4]
    folders = [
        write_result(tmp_path / name, name, rich, seed=place, requests=few) for place, name in enumerate(("a", "real"))
    ]
    showing = read_showing(folders, None)
    with pytest.raises(ConfigError, match="4 pictures"):
        comparisons(showing, STYLES)
