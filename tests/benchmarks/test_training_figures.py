"""What pages say of training's figures is what results.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.aims import Aim, table
from benchmarks.krablet.rounds import result
from benchmarks.training import damage, goodput
from benchmarks.training.blocks import ROOT, Block, quoted
from benchmarks.training.drawing import frontier
from benchmarks.training.figures import COLUMNS, RESULTS, named, pages
from benchmarks.training.parallel import PLAN_BEGIN
from pleinair.model.memory import format_table
from pleinair.model.memory import table as plan
from pleinair.model.transformer import TransformerConfig


def row(name: str, value: float, **more: Any) -> dict[str, Any]:
    return {**result(name, value, "s", "peer", 2.0), "commit": "abc1234", "machine": "one", **more}


def test_every_page_and_drawing_is_what_results_json_gives() -> None:
    expected = pages(json.loads(RESULTS.read_text()))
    stale = [str(path.relative_to(ROOT)) for path, text in expected.items() if path.read_text() != text]
    assert not stale, "run python -m benchmarks.training.figures"
    assert {path.suffix for path in expected} == {".md", ".svg"}


def test_every_page_of_figures_is_written_from_the_rows_and_not_from_what_it_says() -> None:
    rows = [{**row, "commit": "another"} for row in json.loads(RESULTS.read_text())]
    written = {path: text for path, text in pages(rows).items() if path.suffix == ".md"}
    assert [path for path, text in written.items() if text == path.read_text() or "another" not in text] == []


def test_every_figure_is_named_once() -> None:
    names = [aim.name for aim in named("AIMS")]
    assert sorted(set(names)) == sorted(names)


def test_a_row_shows_its_commit_and_both_clocks_and_one_of_before_shows_none() -> None:
    aims = [
        Aim(what="new", name="new", of="ratio", least=3),
        Aim(what="old", name="old"),
        Aim(what="none", name="none"),
    ]
    rows = [row("new", 1.5, wall_seconds=1.5, cpu_seconds=1.25), row("old", 4.0, commit="abc1234?")]
    assert table(rows, aims, COLUMNS).splitlines()[2:] == [
        "| new | `new` | 1.5 s | peer | 2 x | at least 3 x | **no** | 1.5 / 1.25 s | abc1234 |",
        "| old | `old` | 4 s | peer | 2 x |  |  |  | abc1234? |",
        "| none | `none` | not measured |  |  |  |  |  |  |",
    ]


def test_a_block_replaces_what_stands_between_its_own_marks_only() -> None:
    block = Block(page="docs/x.md", name="saves", text=lambda rows: quoted(rows, [("waits", "stall")]))
    end = "<!-- end of figures -->"
    page = f"one\n{block.begin}\nold\n{end}\ntwo\n{end}\n"
    shown = "| what | value | beside | ratio | commit |\n|---|---|---|---|---|\n| waits | 3 s | peer | 2 x | abc1234 |"
    assert block.written(page, [row("stall", 3.0)]) == f"one\n{block.begin}\n{shown}\n{end}\ntwo\n{end}\n"
    with pytest.raises(ValueError, match=r"the page lacks <!-- figures of saves"):
        block.written("one", [row("stall", 3.0)])
    with pytest.raises(ValueError, match=r"results.json has no stall: run its benchmark"):
        block.written(page, [])


def test_the_frontier_is_what_no_other_point_beats_in_both() -> None:
    assert frontier([(4.0, 4.0), (1.0, 3.0), (2.0, 1.0), (2.0, 2.0), (3.0, 1.0)]) == [(1.0, 3.0), (2.0, 1.0)]


def test_a_plan_on_the_page_is_the_one_that_is_computed() -> None:
    _, _, after = (ROOT / "docs/parallel.md").read_text().partition(PLAN_BEGIN)
    published = after.partition("<!-- end of figures -->")[0].strip().splitlines()
    rows = plan(TransformerConfig(), num_gpus=(64, 1024), resolutions=((256, 256),), checkpointings=("full",))
    head, rule, computed = format_table(rows).splitlines()
    assert published[:2] == [head, rule]
    assert computed in published[2:]
    assert computed.startswith("| 64 to 1024 | 256 | 1 to 16 x 64 | full |")
    assert len(published[2:]) == 4 * 3 * 2, "8, 16, 32 and from 64 on; three resolutions; two ways to checkpoint"


def test_simulated_figures_are_those_of_the_simulator() -> None:
    rows = {one["name"]: one["value"] for one in json.loads(RESULTS.read_text())}
    for name, scenario in goodput.SCENARIOS.items():
        share = 100 * goodput.mean_goodput(scenario(1024))
        assert rows[goodput.name_of(1024, name)] == pytest.approx(share, abs=6e-5)


@pytest.mark.parametrize("kind", damage.KINDS)
def test_every_kind_of_damage_is_planted_and_found(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(damage, "KINDS", (kind,))
    (found,) = damage.measure(1, num_places=2)
    assert (found["value"], found["unit"]) == (1.0, "share of 2")
    heard = 1 if kind.__name__ in ("truncate", "remove") else 0
    assert found["peer"] == f"safetensors load_file, {heard:.2f}"


def test_a_planted_damage_that_nobody_finds_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(damage, "KINDS", (lambda path, draw: None, damage.remove))
    (found,) = damage.measure(1, num_places=2)
    assert found["value"] == 0.5
