"""Two sharded ranks draw, assess and learn what one process does."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from pleinair.training.engine import read_records
from pleinair.training.rollouts.stored import part_name, read_rollout
from tests.training.ranks import run_ranks
from tests.training.rollout_ranks import NUM_ITERATIONS, WORLD_SIZE, train_rank
from tests.training.small_rollouts import run_grpo


def test_ranks_draw_whole_groups_stop_together_and_learn_what_one_process_learns(tmp_path: Path) -> None:
    many, alone = tmp_path / "many", tmp_path / "alone"
    answers = run_ranks(WORLD_SIZE, functools.partial(train_rank, many), 1)
    told = "reward 'brightness' cannot be reached from rank 1: start its server, then run again"
    # Of three iterations the first was stored before the failure, so each rank draws its group of 4 in the two others.
    assert answers == [(8, told), (8, told)]
    run_grpo(alone, NUM_ITERATIONS)
    for iteration in range(NUM_ITERATIONS):
        ours, theirs = (read_rollout(run / "rollouts" / f"iteration-{iteration:08d}") for run in (many, alone))
        assert (many / "rollouts" / f"iteration-{iteration:08d}" / part_name(1)).exists()
        assert ours.facts.prompts == theirs.facts.prompts
        assert ours.facts.seeds == theirs.facts.seeds
        assert torch.allclose(ours.trajectory.samples_BCHW, theirs.trajectory.samples_BCHW, atol=1e-3)
    records = [read_records(run / "steps.jsonl") for run in (many, alone)]
    for one, other in zip(*records, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-3)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=0.02)
        assert one.metrics["reward"] == pytest.approx(other.metrics["reward"], abs=1e-3)
