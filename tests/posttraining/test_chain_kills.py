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

ROOT = Path(__file__).parents[2]
NUM_STEPS = 3 + 2 * 2 + 3 + 3 + 4 + 2
NUM_KILLED = 6
"""Steps that were made when the chain was killed, and are made again."""


@pytest.mark.slow
def test_a_chain_killed_in_every_link_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.posttraining.killed_chain", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"calm": NUM_STEPS, "killed": NUM_STEPS + NUM_KILLED}, (
        "only the steps that were under way are made again"
    )
    for folder in ("1-midtrain", "2-sft", "3-stpo", "3b-calibrate", "4-rl", "5-tdm"):
        calm, killed = (read_done(tmp_path / name / folder) for name in ("calm", "killed"))
        assert calm is not None
        assert killed is not None
        ours, theirs = (
            read_tensors(tmp_path / name / folder / one.checkpoint, "transformer.safetensors")
            for name, one in (("calm", calm), ("killed", killed))
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), folder
