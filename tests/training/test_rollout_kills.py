import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pleinair.checkpoint.store import read_tensors
from pleinair.tensor_files import read_tensors as read_file
from pleinair.training.engine import read_records
from pleinair.training.rollouts.stored import part_name, read_facts

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_killed_while_drawing_writing_or_learning_goes_on_bit_for_bit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.killed_rollouts", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assessed = json.loads(done.stdout.splitlines()[-1])
    assert assessed == [0, 1, 1, 2, 2, 3, 4], "only what was not stored is drawn and assessed again"
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    records = [[(r.step, r.loss, r.grad_norm) for r in read_records(run / "steps.jsonl")] for run in (calm, killed)]
    assert len(records[0]) == 10
    assert records[1] == records[0]
    for name in ("transformer.safetensors", "optimiser.safetensors"):
        ours, theirs = (read_tensors(run / "checkpoints" / "step-00000010", name) for run in (killed, calm))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    stored = sorted(path.name for path in (calm / "rollouts").iterdir())
    assert sorted(path.name for path in (killed / "rollouts").iterdir()) == stored
    assert len(stored) == 5
    for name in stored:
        assert read_facts(killed / "rollouts" / name) == read_facts(calm / "rollouts" / name)
        ours, theirs = (read_file(run / "rollouts" / name / part_name(0)) for run in (killed, calm))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
