"""What training all weights of a model takes on one card, and the largest model of its shape that a card can train.

    12.82B: float32 weights, gradients and moments --estimate_memory--> more than any card     `full_fine_tuning_plan`
    the same shape, narrower and shallower         --until it fits-->   what 24 GiB can train   `largest_trained`

The engine keeps master weights, gradients and moments in float32 on the device: it has no 8-bit moments and does not offload
what is trained. A card that is too small for a model can still train a LoRA on it, see `fine_tuning_plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pleinair.model.memory import MemoryEstimate, estimate_memory
from pleinair.model.parallelize import ParallelConfig
from pleinair.model.transformer import TransformerConfig, count_parameters
from pleinair.records.errors import ConfigError

Rule = Literal["adamw", "muon"]
IMAGE_TOKEN_PIXELS = 16
BFLOAT16_BYTES = 2


@dataclass(frozen=True, kw_only=True)
class FullPlan:
    """One step of training all weights, on one picture after another with activations recomputed."""

    config: TransformerConfig
    """The model."""
    num_parameters: int
    """Its weights."""
    memory: MemoryEstimate
    """Bytes by what they are for."""
    card_bytes: int
    """What the card may hold, its margin taken off."""

    @property
    def fits(self) -> bool:
        """Whether the card can train it."""
        return self.memory.peak <= self.card_bytes

    def __str__(self) -> str:
        verdict = "fits" if self.fits else "does not fit"
        weights = "" if self.fits else f" (in bfloat16 its weights alone are {self._bfloat16 / 1e9:.1f})"
        return (
            f"{self.num_parameters / 1e9:.2f}B weights: {self.memory.peak / 1e9:.1f} GB, {verdict} {self.card_bytes / 1e9:.1f} "
            f"GB{weights}"
        )

    @property
    def _bfloat16(self) -> int:
        return BFLOAT16_BYTES * self.num_parameters


def full_fine_tuning_plan(
    config: TransformerConfig,
    card_bytes: int,
    *,
    resolution: int,
    optimiser: Rule = "adamw",
    batch_size: int = 1,
    text_tokens: int = 512,
) -> FullPlan:
    """The plan for one card, in bfloat16 autocast. `card_bytes` is what it may hold: leave a gigabyte for the library.

    Raises ConfigError for a resolution that does not divide into tokens.
    """
    if resolution < IMAGE_TOKEN_PIXELS or resolution % IMAGE_TOKEN_PIXELS:
        raise ConfigError(f"resolution is {resolution}: give a multiple of {IMAGE_TOKEN_PIXELS}")
    memory = estimate_memory(
        config,
        ParallelConfig(checkpointing="full"),
        batch=batch_size,
        image_tokens=(resolution // IMAGE_TOKEN_PIXELS) ** 2,
        text_tokens=text_tokens,
        optimiser=optimiser,
    )
    return FullPlan(config=config, num_parameters=count_parameters(config), memory=memory, card_bytes=card_bytes)


def largest_trained(
    config: TransformerConfig, card_bytes: int, *, resolution: int, optimiser: Rule = "adamw", text_tokens: int = 512
) -> FullPlan | None:
    """The plan of the largest `narrowed` model that the card can train; None where even the smallest is too large."""
    groups = config.num_heads // config.num_kv_heads
    low, high, found = 1, config.num_heads // groups, None
    while low <= high:
        middle = (low + high) // 2
        plan = full_fine_tuning_plan(
            narrowed(config, groups * middle), card_bytes, resolution=resolution, optimiser=optimiser,
            text_tokens=text_tokens,
        )  # fmt: skip
        if plan.fits:
            low, found = middle + 1, plan
        else:
            high = middle - 1
    return found


def narrowed(config: TransformerConfig, num_heads: int) -> TransformerConfig:
    """A model of the same shape with fewer heads of the same size and blocks in proportion, reading the same text features.

    Raises ConfigError for heads that do not share keys as the model's do.
    """
    groups = config.num_heads // config.num_kv_heads
    if num_heads % groups or not 0 < num_heads <= config.num_heads:
        raise ConfigError(f"num_heads is {num_heads}: give a multiple of {groups} up to {config.num_heads}")
    return replace(
        config,
        num_heads=num_heads,
        num_kv_heads=num_heads // groups,
        width=config.head_dim * num_heads,
        num_layers=max(1, round(config.num_layers * num_heads / config.num_heads)),
    )
