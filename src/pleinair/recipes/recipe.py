"""What a whole run is made of. A recipe is a function that returns one of these; the command line overrides its fields."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pleinair.model.parallelize import ParallelConfig
from pleinair.model.tensor_parallel import check_tensor_parallel
from pleinair.model.transformer import TransformerConfig
from pleinair.packs.plan import LoaderConfig
from pleinair.records.errors import ConfigError
from pleinair.sampling import SamplingConfig
from pleinair.training.engine import EngineConfig
from pleinair.training.hooks.watching import WatchConfig
from pleinair.training.stages.pretrain import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A stretch of training at one resolution."""

    resolution: int
    """Side of the pictures in pixels."""
    num_steps: int
    """Optimiser steps."""
    batch_size: int
    """Pictures per step."""
    decays: bool = False
    """The learning rate decays from the first phase that says so; if none does, `engine.optimiser.decay_share` tells."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is drawn for the page and the numbers."""

    num_train_pairs: int = 200
    """Trained (concept, style) pairs that are drawn and judged, chosen at random."""
    samples_per_heldout_pair: int = 1
    """Pictures drawn for each held-out pair."""
    grid_concepts: tuple[str, ...] = ()
    """Rows of the page's grid, by label; empty for all."""
    num_nearest: int = 8
    """Samples shown beside their nearest training pictures."""
    num_bootstrap: int = 1000
    """Resamples behind every interval."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run from a source of pictures to a page."""

    name: str
    """Name of the run and its directory."""
    title: str
    """One line for the page."""
    source: str = "drawings"
    """What is ingested."""
    concepts: tuple[str, ...]
    """Labels that are trained on; the others only teach the autoencoder and the judge."""
    transformer: TransformerConfig
    """The model."""
    text_dim: int = 192
    """Text features per layer after projection; equals the model's text width."""
    phases: tuple[PhaseConfig, ...]
    """Progressive resolution, lowest first."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The loop."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the model is spread over ranks; it may differ when a run resumes."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """What is looked for while training; it may differ when a run resumes."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """Training timesteps."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Caption choice; its batch size is set by the phase."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the judged pictures are drawn."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What is judged and shown."""
    minutes: dict[str, float] = field(default_factory=dict)
    """Expected minutes of each step on 2 cores, printed at the start."""

    def __post_init__(self) -> None:
        if not self.phases:
            raise ConfigError(f"recipe {self.name} has no phases: give at least one resolution to train at")
        if list(self.resolutions) != sorted(self.resolutions):
            raise ConfigError(f"phases of {self.name} go {self.resolutions} px: order them from low to high resolution")
        check_tensor_parallel(self.transformer, self.parallel.mesh.tensor)

    def loader_of(self, phase: PhaseConfig) -> LoaderConfig:
        """The loader's settings for a phase."""
        return replace(self.loader, batch_size=phase.batch_size, seed=self.engine.seed)

    def training_part(self) -> tuple[object, ...]:
        """The settings that training depends on; a run resumes only while they stay."""
        return (self.transformer, self.phases, self.engine, self.pretrain, self.loader)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Resolutions in the order they are trained."""
        return tuple(phase.resolution for phase in self.phases)
