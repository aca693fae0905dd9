"""How evenly ranks are loaded, and how many shapes and graphs a run has made: what packed text is for.

    token_skew   1 - mean / max over ranks of the tokens computed in a step: what the others wait, if time went with tokens
    time_skew    the same of the seconds of forward and backward, as each rank's clock has them
    padding      share of all tokens computed that are none

With sharded weights forward and backward wait for other ranks' shards inside, so there `time_skew` tells less than there is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pleinair.packs.loader import LatentBatch
from pleinair.packs.packed_loader import PackedLatentBatch
from pleinair.training.engine import Run
from pleinair.training.records import StepRecord
from pleinair.training.reductions import gather_numbers


@dataclass(frozen=True)
class BatchLoad:
    """What a rank computes on for its rows of a step."""

    valid: int
    """Tokens of text and image."""
    computed: int
    """The same with padding."""
    shapes: frozenset[tuple[int, ...]]
    """Of the tokens of each micro-batch: rows, image tokens of a row, text tokens."""


def batch_load(patch_size: int, batch: LatentBatch | PackedLatentBatch, num_parts: int) -> BatchLoad:
    """Of a batch that is computed in so many micro-batches. Padded text is cut to the longest prompt of each."""
    height, width = batch.latents_BCHW.shape[-2:]
    num_image, rows = height * width // patch_size**2, len(batch.keys) // num_parts
    if isinstance(batch, PackedLatentBatch):
        lengths: Sequence[int] = batch.text.lengths
        texts = [batch.text.features_PRLD.shape[1]] * num_parts
    else:
        lengths = batch.text_mask_BT.sum(dim=1).tolist()
        texts = [rows * max(lengths[part * rows : (part + 1) * rows]) for part in range(num_parts)]
    images = num_parts * rows * num_image
    return BatchLoad(sum(lengths) + images, sum(texts) + images, frozenset((rows, num_image, text) for text in texts))


class RankLoads:
    """The hook: adds `ranks/token_skew`, `time_skew`, `padding`, `num_shapes` and `num_graphs`, over all ranks.

    The last two are of the rank with most: token shapes since the process began, and graphs that torch.compile has made.
    """

    def __init__(self, load_of: Callable[[Any, int], BatchLoad]) -> None:
        self.load_of = load_of
        self._shapes: set[tuple[int, ...]] = set()

    def after_step(self, run: Run[Any], record: StepRecord) -> Mapping[str, float]:
        """One small collective."""
        load = self.load_of(run.batch, run.config.num_micro_batches)
        self._shapes |= load.shapes
        own = [load.valid, load.computed, run.compute_seconds, len(self._shapes), num_graphs()]
        valid, computed, seconds, shapes, graphs = gather_numbers(own, run.mesh)
        return {
            "ranks/token_skew": skew(computed),
            "ranks/time_skew": skew(seconds),
            "ranks/padding": 1 - sum(valid) / sum(computed),
            "ranks/num_shapes": max(shapes),
            "ranks/num_graphs": max(graphs),
        }


def skew(loads: Sequence[float]) -> float:
    """Share of all ranks' time that is spent waiting for the one with the largest load; 0 is even."""
    return 1 - sum(loads) / (len(loads) * max(loads)) if max(loads) > 0 else 0.0


def num_graphs() -> int:
    """Graphs that torch.compile has made in this process; its modules are not imported to ask."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])
