"""What the benchmarks of training make of their measurements."""

from __future__ import annotations

import torch

from benchmarks.training.cluster import of_fault, told
from benchmarks.training.kills import row
from benchmarks.training.sampling import NUM_SLOTS, make_prompt
from pleinair.cluster.goodput import Repair


def test_a_prompt_in_fewer_slots_keeps_its_valid_rows_in_order() -> None:
    prompt = make_prompt(10, torch.float32, 0)
    short = prompt.in_slots(16)
    assert (prompt.features_1TLD.shape[1], short.features_1TLD.shape[1]) == (NUM_SLOTS, 16)
    assert short.mask_1T.tolist() == [[True] * 5 + [False] * 6 + [True] * 5]
    kept, before = (one.features_1TLD[one.mask_1T] for one in (short, prompt))
    assert torch.equal(kept, before)


def test_of_several_repairs_the_middle_and_the_worst_are_told_with_their_parts() -> None:
    repairs = [Repair(at=0.0, detect=seconds, start=2.0) for seconds in (3.0, 1.0, 5.0)]
    middle, worst = of_fault("kill", repairs)
    assert (middle["name"], middle["value"], worst["name"], worst["value"]) == (
        "rank_kill_seconds",
        5.0,
        "rank_kill_seconds_worst",
        7.0,
    )
    assert middle["peer"] == f"parts: {told(repairs[0])}"
    assert told(repairs[0]) == "detect 3.0, decide 0.0, start 2.0, load 0.0, warm-up 0.0, recompute 0.0"


def test_a_run_that_lost_a_step_counts_for_nothing() -> None:
    assert row(1, [True, True, False, True], True, 3)["value"] == 0.75
    assert row(2, [True, True], False, 1)["value"] == 0.0
    assert row(2, [True, True], False, 1)["name"] == "resume_bit_equal_2_ranks"
