"""Our transformer against diffusers' Krea2Transformer2DModel: same weights, same inputs, interleaved rounds.

    python -m benchmarks.model [--rounds 7] [--output benchmarks/model/results.json]

Each round runs both models once in alternating order; a figure is the median CPU time of the process over the rounds,
and a ratio compares medians of the same run. CPU time rather than wall time, so that a shared machine does little harm.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from torch import Tensor
from torch.nn import functional as F

from pleinair.model.attention import attend
from pleinair.model.formats import diffusers_config
from pleinair.model.transformer import Transformer, TransformerConfig, patchify

MODEL = TransformerConfig(
    width=256,
    num_layers=8,
    num_heads=8,
    num_kv_heads=2,
    in_channels=16,
    patch_size=1,
    text_dim=192,
    num_text_layers=4,
    text_num_heads=3,
    text_num_kv_heads=3,
)


@dataclass(frozen=True)
class Case:
    """One shape of batch."""

    name: str
    batch: int
    side: int
    """Image tokens per side."""
    num_text: int
    """Text rows, padding included."""
    shortest: int
    """Valid text rows run evenly from this to num_text over the batch."""


CASES = (
    Case("64 image + 16 text tokens, batch 32", 32, 8, 16, 16),
    Case("256 image + 64 text tokens, batch 8", 8, 16, 64, 64),
    Case("64 image + 4 to 16 of 32 text tokens, batch 32", 32, 8, 32, 4),
)
ATTENTION_SHAPES = ((32, 16), (32, 80), (8, 320), (5, 512))
"""(batch, tokens) at which attention is measured alone."""


def make_inputs(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Latents, timesteps, text features and mask."""
    generator = torch.Generator().manual_seed(0)
    longest = case.num_text if case.shortest == case.num_text else case.num_text // 2
    lengths = torch.linspace(case.shortest, longest, case.batch).long()
    mask = torch.arange(case.num_text) < lengths[:, None]
    latents = torch.randn(case.batch, MODEL.latent_channels, case.side, case.side, generator=generator)
    features = torch.randn(case.batch, case.num_text, MODEL.num_text_layers, MODEL.text_dim, generator=generator)
    return latents, torch.rand(case.batch, generator=generator), features, None if mask.all() else mask


def make_models() -> tuple[Transformer, torch.nn.Module]:
    """Ours and diffusers', with equal weights that make every path do something."""
    torch.manual_seed(0)
    ours = Transformer(MODEL)
    torch.nn.init.normal_(ours.time_mod_proj.weight, std=0.02)
    torch.nn.init.normal_(ours.final_layer.linear.weight, std=0.05)
    settings = {key: value for key, value in diffusers_config(MODEL).items() if not key.startswith("_")}
    theirs = diffusers.Krea2Transformer2DModel(**settings)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def make_calls(case: Case) -> dict[str, Callable[[], Tensor]]:
    """Both models' forward passes on the same batch, as functions without arguments."""
    ours, theirs = make_models()
    latents, timestep, features, mask = make_inputs(case)
    position_ids = torch.zeros(case.num_text + case.side**2, 3)
    position_ids[case.num_text :, 1] = torch.arange(case.side).repeat_interleave(case.side)
    position_ids[case.num_text :, 2] = torch.arange(case.side).repeat(case.side)

    def diffusers_forward() -> Tensor:
        output: Tensor = theirs(patchify(latents, MODEL.patch_size), features, timestep, position_ids, mask).sample
        return output

    return {"ours": lambda: ours(latents, timestep, features, mask), "peer": diffusers_forward}


def make_attention_calls(batch: int, length: int) -> dict[str, Callable[[], Tensor]]:
    """Attention alone in bfloat16: ours, and torch's kernel on the same tensors."""
    generator = torch.Generator().manual_seed(0)
    head_counts = (MODEL.num_heads, MODEL.num_kv_heads, MODEL.num_kv_heads)
    shapes = [(batch, length, count, MODEL.head_dim) for count in head_counts]
    q, k, v = (torch.randn(shape, generator=generator).bfloat16().requires_grad_() for shape in shapes)

    def kernel() -> Tensor:
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), enable_gqa=True)
        return out.transpose(1, 2)

    return {"ours": lambda: attend(q, k, v, None), "peer": kernel}


def cpu_seconds(forward: Callable[[], Tensor], backward: bool, dtype: torch.dtype) -> float:
    """CPU time of one pass."""
    start = time.process_time()
    with torch.set_grad_enabled(backward), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = forward()
    if backward:
        torch.autograd.backward(output.float().square().mean())
    return time.process_time() - start


def compare(
    calls: dict[str, Callable[[], Tensor]], backward: bool, dtype: torch.dtype, rounds: int
) -> dict[str, float]:
    """Median milliseconds of each of `calls`."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(-1, rounds):  # round -1 warms up
        for name in sorted(calls, reverse=round_number % 2 == 0):
            seconds = cpu_seconds(calls[name], backward, dtype)
            if round_number >= 0:
                taken[name].append(1000 * seconds)
    return {name: statistics.median(milliseconds) for name, milliseconds in taken.items()}


def measure(
    name: str, peer: str, calls: dict[str, Callable[[], Tensor]], dtypes: Sequence[torch.dtype], rounds: int
) -> Iterator[dict[str, str | float]]:
    """One printed line and one row of results per dtype and pass."""
    for dtype, backward in itertools.product(dtypes, (False, True)):
        milliseconds = compare(calls, backward, dtype, rounds)
        passes = "forward + backward" if backward else "forward"
        what = f"{passes}, {str(dtype).removeprefix('torch.')}, {name}"
        ours, theirs = round(milliseconds["ours"], 1), round(milliseconds["peer"], 1)
        ratio = milliseconds["peer"] / milliseconds["ours"]
        print(f"{ratio:5.2f}x  {ours:8.1f} ms  {theirs:8.1f} ms  {what}", flush=True)
        yield {"name": what, "value": ours, "unit": "ms CPU", "peer": f"{peer}: {theirs} ms", "ratio": round(ratio, 2)}


def run(rounds: int) -> Iterator[dict[str, str | float]]:
    """All measurements."""
    peer = f"diffusers {diffusers.__version__}"
    for case in CASES:
        yield from measure(case.name, peer, make_calls(case), (torch.bfloat16, torch.float32), rounds)
    for batch, length in ATTENTION_SHAPES:
        name = f"attention alone, {length} tokens, batch {batch}"
        calls = make_attention_calls(batch, length)
        yield from measure(name, "torch scaled_dot_product_attention", calls, (torch.bfloat16,), 3 * rounds)


def machine() -> str:
    """CPU model, threads and torch version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{cpu}, {torch.get_num_threads()} thread, torch {torch.__version__}"


def main() -> None:
    """Print ratio, our time, the peer's time and what was measured; write results.json."""
    parser = argparse.ArgumentParser(description="our transformer against diffusers'")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    where = {"commit": commit or "uncommitted", "machine": machine()}
    results = [{**row, **where} for row in run(options.rounds)]
    options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
