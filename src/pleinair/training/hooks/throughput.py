"""Throughput as FLOP/s and MFU: the model's own matrix products over what the hardware could do.

    MFU = 3 * forward FLOPs of the batch / seconds / peak FLOP/s          (backward is twice forward)

A padded batch counts as long as its longest prompt, a packed one as its prompts are. Recomputation for activation
checkpointing is not counted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pleinair.model.flops import forward_flops
from pleinair.model.transformer import TransformerConfig
from pleinair.packs.loader import LatentBatch
from pleinair.packs.packed_loader import PackedLatentBatch
from pleinair.records.errors import ConfigError
from pleinair.training.engine import Run
from pleinair.training.records import StepRecord

BACKWARD_AND_FORWARD = 3


def training_flops(config: TransformerConfig, batch: LatentBatch | PackedLatentBatch) -> float:
    """FLOPs of forward and backward of this rank's rows."""
    rows, _, height, width = batch.latents_BCHW.shape
    if isinstance(batch, PackedLatentBatch):
        rows_by_length = Counter(batch.text.lengths)
    else:
        rows_by_length = Counter({batch.text_features_BTLD.shape[1]: rows})
    forward = sum(count * forward_flops(config, height, width, length) for length, count in rows_by_length.items())
    return BACKWARD_AND_FORWARD * forward


def measure_peak(device: torch.device, dtype: torch.dtype, side: int = 1024, seconds: float = 0.5) -> float:
    """FLOP/s of the fastest of repeated square matrix products: what this device really reaches now."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


class Throughput:
    """The hook: adds `throughput/flops_per_second`, and `throughput/mfu` given a peak, both of one device."""

    def __init__(self, flops_of: Callable[[Any], float], peak_flops_per_second: float | None = None) -> None:
        if peak_flops_per_second is not None and peak_flops_per_second <= 0:
            raise ConfigError(f"peak_flops_per_second is {peak_flops_per_second}: give a positive one, or None")
        self.flops_of, self.peak = flops_of, peak_flops_per_second

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """From the step's own rate."""
        assert run.phase is not None
        seconds = run.phase.batch_size / record.samples_per_second
        speed = self.flops_of(run.batch) / seconds
        mfu = {} if self.peak is None else {"throughput/mfu": speed / self.peak}
        return {"throughput/flops_per_second": speed, **mfu}
