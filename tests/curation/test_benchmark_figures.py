"""The table of figures in benchmarks/curation/README.md says what results.json says."""

from __future__ import annotations

import json

import pytest

from benchmarks.aims import Aim, between, table
from benchmarks.curation.figures import AIMS, BEGIN, README, RESULTS
from benchmarks.krablet.rounds import result


def test_the_page_is_what_results_json_gives() -> None:
    page = README.read_text()
    assert page == between(page, BEGIN, table(json.loads(RESULTS.read_text()), AIMS)), (
        "run python -m benchmarks.curation.figures"
    )


def test_every_figure_is_named_once() -> None:
    names = [aim.name for aim in AIMS]
    assert sorted(set(names)) == sorted(names)


def test_a_figure_beside_its_aim_a_missed_one_and_one_not_measured() -> None:
    aims = (
        Aim(what="speed", name="fast", of="ratio", least=6),
        Aim(what="memory", name="small", most=10, note="too much is held"),
        Aim(what="marks", name="marks_*"),
        Aim(what="later", name="later", least=1),
    )
    results = [
        result("fast", 1007, "pictures/s", "imagehash", 7.46),
        result("small", 12.5, "MB"),
        result("marks_b", 0.5, "share"),
        result("marks_a", 0.25, "share"),
        result("fastest", 1, "s"),
    ]
    assert table(results, aims).splitlines()[2:] == [
        "| speed | `fast` | 1,007 pictures/s | imagehash | 7.46 x | at least 6 x | yes |",
        "| memory | `small` | 12.5 MB |  |  | at most 10 | **no**: too much is held |",
        "| marks | `marks_b` | 0.5 share |  |  |  |  |",
        "| marks | `marks_a` | 0.25 share |  |  |  |  |",
        "| later | `later` | not measured |  |  | at least 1 |  |",
    ]


def test_a_figure_without_the_ratio_its_aim_is_for_does_not_meet_it() -> None:
    assert Aim(what="", name="x", of="ratio", most=1.5).met(result("x", 1.0, "s")) is False


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the page lacks <!-- figures"):
        between("# Benchmarks", BEGIN, "")


def test_a_bound_for_several_figures_is_refused() -> None:
    with pytest.raises(ValueError, match=r"marks_\* stands for several figures"):
        Aim(what="", name="marks_*", least=1)
