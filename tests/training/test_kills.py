"""Runs that are killed for real, at a random moment, and go on with the bits of an undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pleinair.records.run_events import EVENTS, Loaded, read_events
from tests.training.killed_run import LOSSES, ROOT, environment, equal_lives

KILLS = (6, 11)


@pytest.mark.slow
def test_two_ranks_that_are_killed_twice_have_the_losses_of_an_undisturbed_run(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.training.killed_lives", str(tmp_path), "2", "16", *map(str, KILLS)]
    variables = {**os.environ, **environment()}
    done = subprocess.run(words, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"equal": [True, True, True], "steps": 16}
    events = read_events(tmp_path / "killed" / EVENTS)
    begun = [event.step for event in events if isinstance(event, Loaded) and event.rank == 0]
    assert begun[0] == 0
    assert all(0 < step <= kill + 3 for step, kill in zip(begun[1:], KILLS, strict=True)), begun


def test_a_single_other_bit_is_seen(tmp_path: Path) -> None:
    for name, loss in (("calm", 0.1 + 0.2), ("killed", 0.3)):
        (tmp_path / name).mkdir()
        lines = [[1, 0, 1.0, 1.0], [2, 1, loss, 1.0], [3, 1, 0.1 + 0.2, 1.0]]
        (tmp_path / name / LOSSES).write_text("".join(json.dumps(line) + "\n" for line in lines) + "[3, 2, 1.")
    assert equal_lives(tmp_path / "killed", tmp_path / "calm") == [True, False, True]
