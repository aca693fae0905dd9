"""What training a LoRA on the released size takes, and which of it fits on a card of 12, 16 and 24 GiB.

    python -m benchmarks.training.fine_tuning [--rank 16] [--output FILE]

The plans run the step on shapes alone; tests/model/test_lora_memory.py holds the same counting against a real process.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.krablet.rounds import commit, machine, result
from pleinair.model.fine_tuning_plan import MemoryPlan, fine_tuning_plan
from pleinair.model.lora import LoraConfig
from pleinair.model.transformer import TransformerConfig

GIB = 2**30
CARDS_GIB = (12, 16, 24)
MARGIN_BYTES = 1_000_000_000
"""Left for the library's context and the allocator's rounding."""
SETTINGS: dict[str, dict[str, Any]] = {
    f"{'8-bit' if bits == 8 else 'bf16'} base, {'offloaded' if offload else 'resident'}, {resolution} px": {
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


def main() -> None:
    """Print every plan and write the totals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("fine_tuning.json"))
    options = parser.parse_args()
    where = {"commit": commit(), "machine": f"{machine()}, torch {torch.__version__}, planned on shapes"}
    rows = []
    for name, settings in SETTINGS.items():
        plan = fine_tuning_plan(TransformerConfig(), LoraConfig(rank=options.rank), **settings)
        print(f"{name}: {plan}; {smallest_card(plan)}", flush=True)
        rows.append({**result(f"fine_tuning_plan, rank {options.rank}, {name}", plan.total / 1e9, "GB"), **where})
    options.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
