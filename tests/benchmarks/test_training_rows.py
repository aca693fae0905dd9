"""What the benchmarks of training make of their measurements."""

from __future__ import annotations

from xml.etree import ElementTree

import torch

from benchmarks.training.checkpoints import METHODS, WAITED_FOR, Sample, draw_frontier, frontier_table, rows
from benchmarks.training.clocks import Took
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


def saves() -> list[dict[str, object]]:
    """Figures of two rounds of every method; those in the background lose half a second in slowed steps."""
    took = Took(wall=2.0, cpu=1.5)
    waits = [Sample(2.0, 2.0, took=took), Sample(4.0, 4.0, took=took)]
    beside = [Sample(0.1, 3.0, 1.25, 0.5, took), Sample(0.3, 5.0, 1.75, 0.5, took)]
    return rows({name: waits if name in WAITED_FOR else beside for name in METHODS})


def test_saves_beside_steps_have_the_steps_times_and_saves_that_are_waited_for_both_clocks() -> None:
    found = {str(row["name"]).removeprefix("checkpoint_"): row for row in saves()}
    beside, waits = found["frontier_copied"], found["frontier_blocking"]
    fields = ("value", "durable_seconds", "step_ratio", "slowed_seconds")
    assert [beside[field] for field in fields] == [0.2, 4.0, 1.5, 0.5]
    assert [waits[field] for field in fields] == [3.0, 3.0, 1.0, 0.0]
    assert (waits["wall_seconds"], waits["cpu_seconds"]) == (2.0, 1.5)
    assert "cpu_seconds" not in beside
    assert (found["total"]["peer_cpu_seconds"], found["cost"]["ratio"]) == (1.5, 0.25)


def test_every_save_is_a_line_of_the_table_and_a_dot_on_either_panel_of_the_frontier() -> None:
    lines = frontier_table(saves()).splitlines()
    assert lines[2] == "| torch.save + fsync | 3.00 s | 3.00 s |  |  |"
    assert lines[5] == "| ours, copied before the next step | 0.20 s | 4.00 s | 1.50 x | 0.50 s |"
    drawing = ElementTree.fromstring(draw_frontier(saves()))
    circles = [one for one in drawing.iter() if one.tag.endswith("circle")]
    assert len(circles) == len(METHODS) * (1 + 2), "one in the legend, one on each panel"
