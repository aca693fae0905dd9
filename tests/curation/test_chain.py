"""A curation recipe as a user runs it: every step in order, a journal, and one page."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
from PIL import Image

from pleinair.cli.costs import read_costs
from pleinair.cli.main import TERMINATED, main
from pleinair.krablet.postgres.embedded import running
from pleinair.recipes.chain import read_chain, shipped_chains
from pleinair.records.errors import ConfigError

STEPS = """title = "Six pictures"
sources = ["{folder}"]
[[steps]]
run = "takedown list"
once = true
"""
FAILING = '[[steps]]\nrun = "find nothing"\n'
CURATING = '[[steps]]\nrun = "curate drawings"\n'


@pytest.fixture
def home() -> Iterator[Path]:
    """Where Postgres, run by another user, may look."""
    directory = Path(tempfile.mkdtemp(prefix="pleinair-chain-"))
    directory.chmod(0o755)
    yield directory
    rmtree(directory, ignore_errors=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "six pictures"
    pictures.mkdir()
    random = np.random.default_rng(0)
    for number in range(6):
        pixels = random.integers(0, 255, (96, 96, 3), np.uint8)
        Image.fromarray(pixels).resize((128, 128)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"noise number {number}")
    return pictures


def journal(home: Path) -> dict[str, dict[str, object]]:
    return {step["run"]: step for step in json.loads((home / "curations/six/journal.json").read_text())}


def test_a_chain_runs_its_steps_and_goes_on_where_it_failed(
    home: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, steps = tmp_path / "six.toml", STEPS.format(folder=folder)
    recipe.write_text(steps + FAILING)
    command = ["curate", str(recipe), "--home", str(home)]
    assert main(command) == 1
    said = capfd.readouterr()
    assert "the step 'pleinair find nothing' ended with 1: see what it said above" in said.err
    first = journal(home)
    assert list(first) == [f"ingest '{folder}'", "takedown list"]
    assert not (home / "curations/six/index.html").exists()

    recipe.write_text(steps + CURATING)
    assert main(command) == 0
    assert "done before, of the same pictures" in capfd.readouterr().out
    again = journal(home)
    assert again["takedown list"] == first["takedown list"]
    assert again[f"ingest '{folder}'"] != first[f"ingest '{folder}'"], "a source is listed each time"
    assert "Six pictures" in (home / "curations/six/index.html").read_text()
    assert {cost.stage: cost.num_results for cost in read_costs(home)}["images.fetch"] == 6

    Image.new("RGB", (128, 128), "red").save(folder / "red.png")
    recipe.write_text(steps)
    assert main(command) == 0
    assert journal(home)["takedown list"] != first["takedown list"], "other pictures: once more"


@pytest.mark.slow
def test_a_chain_that_is_terminated_takes_its_step_and_postgres_along(home: Path, folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "six.toml"
    recipe.write_text(STEPS.format(folder=folder) + CURATING)
    command = [sys.executable, "-m", "pleinair.cli.main", "curate", str(recipe), "--home", str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[1/3] pleinair ingest"):
                assert running(home / "postgres") is not None
                process.terminate()
        assert process.wait() == TERMINATED
    assert running(home / "postgres") is None
    told = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in told.splitlines() if str(home) in line]


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("title = 'x'", "is incomplete|needs sources"),
        ("title = 'x'\nsources = ['a']\nsteps = []", "give at least one of each"),
        ("title = 'x'\nsources = ['a']\nstep = []", "unknown key 'step'"),
        ("title = ", "is not TOML"),
        ("title = 'x'\nsources = ['a']\n[[steps]]\nrum = 'curate'", "unknown key 'rum'"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused_with_a_sentence(tmp_path: Path, text: str, refusal: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ConfigError, match=refusal):
        read_chain(tmp_path / "bad.toml")


def test_what_is_neither_a_recipe_nor_a_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", "nowhere.toml"]) == 1
    assert main(["curate", "drawing"]) == 1
    said = capsys.readouterr().err
    assert "recipe nowhere.toml cannot be read (No such file" in said
    assert "no curation recipe 'drawing': known are drawings" in said


@pytest.mark.parametrize("option", [["--set", "probe.min_side=32"], ["--fetch-again"]])
def test_what_belongs_to_a_step_is_not_swallowed(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curate", "open-pictures", *option]) == 1
    assert f"{' '.join(option)} belongs to a step of the recipe" in capsys.readouterr().err


def test_the_recipes_that_come_with_the_package_can_be_read() -> None:
    assert "open-pictures" in shipped_chains()
    for path in shipped_chains().values():
        chain = read_chain(path)
        for step in chain.commands():
            assert step.arguments({"pages": "P", "recipes": "R"})


def test_a_step_with_an_unknown_place_is_refused() -> None:
    chain = read_chain(next(iter(shipped_chains().values())))
    with pytest.raises(ConfigError, match="known places are {pages}"):
        type(chain.steps[0])(run="cluster --page {page}/x.html").arguments({"pages": "P"})
