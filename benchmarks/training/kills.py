"""`python -m benchmarks.training kills`: SIGKILL in 20 random steps, with 1 and with 2 ranks, against an undisturbed run.

    undisturbed ────────────────────────────────> every loss and gradient norm
    life 1 ──X  life 2 ──X  ...  life 21 ───────> the same, each life from the checkpoint that the one before left

The program is `tests/training/killed_lives.py`: our engine, FSDP2 over gloo, a checkpoint in the background whenever the one
before is written, and a random rank that is killed at a random moment. Equal means equal bits. `--rounds` has no part in
it; the steps are drawn anew each time and printed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from benchmarks.aims import Aim
from benchmarks.krablet.rounds import Result, result
from tests.training.killed_run import ROOT, environment

NUM_KILLS, NUM_STEPS = 20, 200
AIMS = (
    Aim(what="kills after which every loss is that of an undisturbed run, bit for bit, 1 rank", name="resume_bit_equal", least=1),
    Aim(what="the same, 2 ranks, FSDP2", name="resume_bit_equal_2_ranks", least=1),
)  # fmt: skip


def measure(rounds: int, num_kills: int = NUM_KILLS, num_steps: int = NUM_STEPS) -> list[Result]:
    """The share of lives that had the bits of an undisturbed run."""
    return [killed(ranks, sorted(random.sample(range(1, num_steps - 5), num_kills)), num_steps) for ranks in (1, 2)]


def killed(num_ranks: int, kills: Sequence[int], num_steps: int) -> Result:
    """One run that is killed in these steps beside one that is not, each line printed as it is told."""
    print(f"  {num_ranks} ranks, to be killed in steps {', '.join(map(str, kills))}", flush=True)
    line = "{}"
    with tempfile.TemporaryDirectory(prefix="pleinair-bench-") as folder:
        words = [sys.executable, "-m", "tests.training.killed_lives", folder, str(num_ranks), str(num_steps)]
        variables = {**os.environ, **environment()}
        with subprocess.Popen(
            [*words, *map(str, kills)], cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True
        ) as lives:
            assert lives.stdout is not None
            for line in lives.stdout:
                print(f"  {line}", end="", flush=True)
    assert lives.returncode == 0, f"the lives of the run ended with {lives.returncode}"
    found = json.loads(line)
    return row(num_ranks, found["equal"], found["steps"] == num_steps, len(kills))


def row(num_ranks: int, equal: Sequence[bool], is_whole: bool, num_kills: int) -> Result:
    """A life that is killed in its first step may tell no loss: its bits are in the one after it."""
    share = sum(equal) / len(equal) if is_whole else 0.0
    name = "resume_bit_equal" if num_ranks == 1 else f"resume_bit_equal_{num_ranks}_ranks"
    return result(name, share, f"share of {len(equal)} lives, {num_kills} kills", "an undisturbed run")
