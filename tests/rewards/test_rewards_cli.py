"""`pleinair rewards`: what it prints of a picture, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pleinair.cli.main import main
from pleinair.rewards.artefact import ArtefactTraining, fit_artefacts, save_classifier
from pleinair.rewards.picture_judge import save_picture_judge
from tests.rewards.shapes import random_shapes, shape, untrained_judge


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rewards as `rewards fit` leaves them, of networks that learnt next to nothing."""
    place = tmp_path_factory.mktemp("rewards")
    save_picture_judge(untrained_judge(), place / "judge.safetensors")
    few = ArtefactTraining(num_steps=2, batch_size=8)
    save_classifier(fit_artefacts(random_shapes(40)[0], config=few)[0], place / "artefact.safetensors")
    for thing in ("disc", "cross"):
        Image.fromarray(shape(thing)).save(place / f"{thing}.png")
    return place


def test_values_and_requirements_of_pictures_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [str(folder / f"{thing}.png") for thing in ("disc", "cross")]
    assert main(["rewards", "show", str(folder), "a red disc, filled style", *pictures]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "requires it shows disc (object, weight 3, essential)"
    told = {line.split()[0]: line.split()[1:] for line in lines[3:]}
    assert {"rubric", "rubric.colour", "diversity", "artefact", "rubric.essential"} <= told.keys()
    assert told["rubric.colour"] == ["1.000", "1.000"]
    assert {len(values) for values in told.values()} == {2}


def test_what_cannot_be_shown_or_served_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "text.png").write_text("no picture")
    Image.new("RGB", (32, 32)).save(folder / "small.png")
    for arguments, why in (
        (["show", str(folder), "a disc", str(folder / "text.png")], "is no picture"),
        (["show", str(folder), "a disc", str(folder / "disc.png"), str(folder / "small.png")], "of several sizes"),
        (["show", str(folder / "none"), "a disc", str(folder / "disc.png")], "cannot be read"),
        (["serve", str(folder), "--key-variable", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["fit", "demo", "--judge-seed", "0"], "the judge that measures"),
    ):
        assert main(["rewards", *arguments]) == 1
        assert why in capsys.readouterr().err
