"""How a checkpoint is sampled: what its documents say, for weights that belong to a schedule, else the defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pleinair.checkpoint.store import read_document, read_manifest
from pleinair.config import from_document
from pleinair.records.errors import ConfigError
from pleinair.sampling.sampler import SamplingConfig

SAMPLING_DOCUMENT = "sampling.json"
"""A checkpoint has it when its weights know some steps alone."""


def sampling_of(checkpoint: Path) -> SamplingConfig:
    """The settings stored with a checkpoint, or the defaults."""
    if SAMPLING_DOCUMENT not in read_manifest(checkpoint).files:
        return SamplingConfig()
    return from_document(SamplingConfig, read_document(checkpoint, SAMPLING_DOCUMENT))


def with_choices(config: SamplingConfig, num_steps: int | None, guidance: float | None) -> SamplingConfig:
    """The settings with what somebody chose; a distilled model refuses others than its own.

    Raises ConfigError for them, ValueError for settings out of range.
    """
    chosen = {"num_steps": num_steps, "guidance": guidance}
    changes = {name: value for name, value in chosen.items() if value is not None and value != getattr(config, name)}
    if config.distilled and changes:
        name, value = next(iter(changes.items()))
        raise ConfigError(
            f"{name} is {value:g} and the model was distilled for {config.num_steps} steps without guidance: leave it out"
        )
    return replace(config, **changes)  # type: ignore[arg-type]
