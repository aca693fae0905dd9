"""What training a LoRA on the released size takes, which of it fits on a card of 12, 16 and 24 GiB, and all weights' plans.

The plans run the step on shapes alone; tests/model/test_lora_memory.py holds the same counting against a real process.
"""

from __future__ import annotations

from typing import Any

from benchmarks.aims import Aim
from benchmarks.krablet.rounds import Result, result
from pleinair.model.fine_tuning_plan import MemoryPlan, fine_tuning_plan
from pleinair.model.full_fine_tuning import Rule, full_fine_tuning_plan, largest_trained
from pleinair.model.lora import LoraConfig
from pleinair.model.transformer import TransformerConfig

AIMS = (
    Aim(what="a LoRA of rank 16 on the 12.82B model, planned", name="fine_tuning_plan_*", note="no aim in numbers"),
    Aim(what="all weights of the 12.82B model at 512 px, planned", name="full_plan_*", note="no aim in numbers"),
    Aim(what="largest model of its shape that 24 GiB train at 512 px", name="full_largest_*", note="no aim in numbers"),
)
GIB = 2**30
RANK = 16
RULES: tuple[Rule, ...] = ("adamw", "muon")
CARDS_GIB = (12, 16, 24)
MARGIN_BYTES = 1_000_000_000
"""Left for the library's context and the allocator's rounding."""
SETTINGS: dict[str, dict[str, Any]] = {
    f"{bits}_bit_{'offloaded' if offload else 'resident'}_{resolution}px": {
        "base_bits": bits,
        "offload": offload,
        "checkpointing": True,
        "resolution": resolution,
        "batch_size": 1,
    }
    for bits, offload in ((8, True), (16, True), (8, False), (16, False))
    for resolution in (512, 1024)
}


def smallest_card(plan: MemoryPlan) -> str:
    """The smallest of the cards that holds the plan and a margin."""
    fitting = [size for size in CARDS_GIB if plan.total + MARGIN_BYTES <= size * GIB]
    return f"fits {fitting[0]} GiB" if fitting else f"needs more than {CARDS_GIB[-1]} GiB"


def measure(rounds: int) -> list[Result]:
    """The total of every plan; `rounds` is not used, nothing is timed."""
    rows = []
    for name, settings in SETTINGS.items():
        plan = fine_tuning_plan(TransformerConfig(), LoraConfig(rank=RANK), **settings)
        print(f"{name}: {plan}; {smallest_card(plan)}", flush=True)
        rows.append(result(f"fine_tuning_plan_{name}", plan.total / 1e9, f"GB on the device, {smallest_card(plan)}"))
    return rows + full_rows()


def full_rows() -> list[Result]:
    """All weights: the released size, and the largest of its shape on the largest card."""
    card, rows = CARDS_GIB[-1] * GIB - MARGIN_BYTES, []
    for rule in RULES:
        plan = full_fine_tuning_plan(TransformerConfig(), card, resolution=512, optimiser=rule)
        largest = largest_trained(TransformerConfig(), card, resolution=512, optimiser=rule)
        assert largest is not None
        sizes = f"width {largest.config.width}, {largest.config.num_layers} blocks"
        print(f"{rule}: {plan}\n{rule}: {largest}; {sizes}", flush=True)
        rows.append(result(f"full_plan_{rule}", plan.memory.peak / 1e9, "GB on the device, does not fit 24 GiB"))
        rows.append(result(f"full_largest_{rule}", largest.num_parameters / 1e9, f"billion weights, {sizes}"))
    return rows
