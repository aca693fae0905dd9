"""Which tree a figure is said to be of, and which clocks it was measured by."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from benchmarks.krablet.rounds import commit, result
from benchmarks.training.clocks import Took, clocks_of, timed, with_clocks


def git(root: Path, *words: str) -> str:
    who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    return subprocess.run(["git", "-C", str(root), *who, *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("code.py", "README.md", "results.json"):
        (tmp_path / name).write_text("old\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "all")
    return tmp_path


def test_a_clean_tree_is_named_by_its_commit_and_pages_do_not_make_it_dirty(tree: Path) -> None:
    head = git(tree, "rev-parse", "--short", "HEAD").strip()
    assert commit(tree) == head
    for name in ("README.md", "results.json", "docs/page.md", "docs/picture.svg"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("new\n")
    assert commit(tree) == head


@pytest.mark.parametrize("name", ["code.py", "new.py"])
def test_changed_and_new_code_makes_a_tree_dirty(tree: Path, name: str) -> None:
    (tree / name).write_text("new\n")
    assert commit(tree) == git(tree, "rev-parse", "--short", "HEAD").strip() + "+"


def test_outside_of_a_repository_the_commit_is_unknown(tmp_path: Path) -> None:
    assert commit(tmp_path) == "unknown"


def test_sleeping_takes_the_walls_time_and_no_processors() -> None:
    took = timed(lambda: time.sleep(0.05))
    assert took.wall >= 0.05
    assert took.cpu < took.wall


def test_a_row_has_the_medians_of_both_clocks_of_both_sides() -> None:
    ours = [Took(wall=wall, cpu=cpu) for wall, cpu in ((3.0, 1.0), (2.0, 1.5), (9.0, 0.2))]
    row = with_clocks(result("x", 1.0, "ms"), ours, [Took(wall=4.0, cpu=2.0)])
    clocks = {name: value for name, value in row.items() if name.endswith("_seconds")}
    assert clocks == {"wall_seconds": 3.0, "cpu_seconds": 1.0, "peer_wall_seconds": 4.0, "peer_cpu_seconds": 2.0}
    assert clocks_of(row) == "3 / 1 s"


def test_a_row_of_before_has_no_clocks_to_show() -> None:
    assert clocks_of(result("x", 1.0, "ms")) == ""
