from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pleinair.checkpoint.store import read_tensors
from pleinair.posttraining.chain import read_done
from pleinair.posttraining.side_by_side import read_measured

ROOT = Path(__file__).parents[2]
NUM_STEPS, NUM_STUDENT_STEPS = 3 + 2 * 2 + 3 + 3 + 4 + 2, 2 * 2 + 3 + 4
NUM_KILLED, NUM_STUDENT_KILLED = 6, 3
"""Steps that were made when the chain was killed, and are made again: none where it merged, drew pairs or measured."""


@pytest.mark.slow
def test_chains_killed_everywhere_end_with_the_weights_and_numbers_of_undisturbed_ones(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.posttraining.killed_chain", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "calm": NUM_STEPS, "killed": NUM_STEPS + NUM_KILLED,
        "calm-student": NUM_STUDENT_STEPS, "killed-student": NUM_STUDENT_STEPS + NUM_STUDENT_KILLED,
    }, "only the steps that were under way are made again"  # fmt: skip
    for folder in ("1-midtrain", "2-sft", "3-stpo", "3b-calibrate", "4-rl", "5-tdm"):
        same_end(tmp_path / "calm" / folder, tmp_path / "killed" / folder)
    for folder in ("2-sft", "4-rl"):
        same_end(tmp_path / "calm-student" / folder, tmp_path / "killed-student" / folder)


def same_end(calm_folder: Path, killed_folder: Path) -> None:
    """Equal weights, bit for bit, and equal numbers."""
    calm, killed = read_done(calm_folder), read_done(killed_folder)
    assert calm is not None
    assert killed is not None
    ours, theirs = (
        read_tensors(folder / one.checkpoint, "transformer.safetensors")
        for folder, one in ((calm_folder, calm), (killed_folder, killed))
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours), calm_folder
    told, told_too = ([(row.name, row.values) for row in read_measured(one)] for one in (calm_folder, killed_folder))
    assert told
    assert told == told_too, calm_folder
