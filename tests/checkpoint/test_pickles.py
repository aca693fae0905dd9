"""Every verb that takes weights refuses a pickle by its name, unopened, before anything is read or written."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from pleinair.cli.main import main


class Evil:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "words",
    [
        "convert WEIGHTS OUT --to native",
        "export WEIGHTS --to diffusers -o OUT",
        "export WEIGHTS --to package -o OUT",
        "merge WEIGHTS WEIGHTS -o OUT",
        "merge WEIGHTS --parent WEIGHTS -o OUT",
        "sample fox --model WEIGHTS -o OUT",
    ],
)
def test_a_pickle_is_refused_unopened_by_every_verb(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, canary = tmp_path / "k2.ckpt", tmp_path / "canary"
    weights.write_bytes(pickle.dumps(Evil(canary)))
    places = {"WEIGHTS": str(weights), "OUT": str(tmp_path / "out.safetensors")}
    assert main([places.get(word, word) for word in words.split()]) == 1
    said = capsys.readouterr().err
    assert (
        "k2.ckpt is a pickle file, which can run any code when it is opened, so it was not opened: convert it" in said
    )
    assert [path.name for path in tmp_path.iterdir()] == ["k2.ckpt"]
