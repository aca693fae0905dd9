"""Which hooks watch a run, in the one order that works: what may stop a step, what measures, what writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pleinair.records.errors import ConfigError
from pleinair.training.averaging import MovingAverage
from pleinair.training.engine import Hook, Loader
from pleinair.training.hooks.curves import TensorBoard, Tracker
from pleinair.training.hooks.determinism import Deterministic
from pleinair.training.hooks.divergence import Divergence, DivergenceConfig
from pleinair.training.hooks.pace import Pace, PaceConfig
from pleinair.training.hooks.previews import Draw, Previews
from pleinair.training.hooks.profiler import Profile
from pleinair.training.hooks.rank_loads import BatchLoad, RankLoads
from pleinair.training.hooks.spikes import SpikeConfig, Spikes
from pleinair.training.hooks.throughput import Throughput
from pleinair.training.hooks.validation import TimestepErrors, Validation, ValidationConfig


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What is watched; nothing here but `spikes.policy` and `divergence` changes what is trained."""

    spikes: SpikeConfig = field(default_factory=SpikeConfig)
    """Loss and gradient spikes."""
    pace: PaceConfig = field(default_factory=PaceConfig)
    """Slow and stalled steps."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Where there are held-out rows: a recipe's run packs those of its pairs that are never trained on."""
    divergence: DivergenceConfig | None = None
    """Where preference training ends itself; None lets it run."""
    average_decay: float | None = None
    """Decay of a moving average of the weights, for comparison; None keeps none."""
    preview_every: int = 0
    """Steps between drawings of `preview_prompts`; 0 for none."""
    preview_prompts: tuple[str, ...] = ()
    """What is drawn, always from the same noise."""
    peak_flops_per_second: float | None = None
    """What MFU is a share of; None leaves MFU out."""
    tracker: Literal["none", "trackio", "wandb"] = "none"
    """Where curves go beside TensorBoard."""
    project: str = "pleinair"
    """The tracker's project."""
    profile: tuple[int, int] | None = None
    """First and last step of a trace."""
    deterministic: bool = False
    """Fail on operations without a deterministic kernel."""

    def __post_init__(self) -> None:
        if self.preview_every < 0:
            raise ConfigError(f"preview_every is {self.preview_every}: give a number of steps, or 0 for none")
        if self.preview_every and not self.preview_prompts:
            raise ConfigError(f"preview_every is {self.preview_every} but preview_prompts is empty: say what to draw")
        if self.average_decay is not None and not 0 < self.average_decay < 1:
            raise ConfigError(f"average_decay is {self.average_decay}: give a number between 0 and 1, or None")
        if self.peak_flops_per_second is not None and self.peak_flops_per_second <= 0:
            raise ConfigError(f"peak_flops_per_second is {self.peak_flops_per_second}: give a positive one, or None")
        if self.profile is not None and not 0 <= self.profile[0] <= self.profile[1]:
            raise ConfigError(f"profile is {self.profile}: give a first step that is not after the last, or None")


def watching(
    config: WatchConfig,
    *,
    flops_of: Callable[[Any], float] | None = None,
    load_of: Callable[[Any, int], BatchLoad] | None = None,
    held_out: Loader[Any] | None = None,
    reference: TimestepErrors | None = None,
    draw: Draw | None = None,
) -> list[Hook]:
    """The hooks of a configuration, as far as what they need is given; `reference` is what validation is also held against."""
    hooks: list[Hook] = [Deterministic()] if config.deterministic else []
    hooks.append(Spikes(config.spikes))
    average = None if config.average_decay is None else MovingAverage(config.average_decay)
    if average is not None:
        hooks.append(average)
    if flops_of is not None:
        hooks.append(Throughput(flops_of, config.peak_flops_per_second))
    if load_of is not None:
        hooks.append(RankLoads(load_of))
    if held_out is not None and config.validation.every:
        hooks.append(Validation(held_out, config.validation, average, reference))
    if config.divergence is not None:
        hooks.append(Divergence(config.divergence))
    if draw is not None and config.preview_every:
        hooks.append(Previews(draw, config.preview_every))
    if config.profile is not None:
        hooks.append(Profile(*config.profile))
    hooks += [Pace(config.pace), TensorBoard()]
    if config.tracker != "none":
        hooks.append(Tracker(config.tracker, config.project))
    return hooks
