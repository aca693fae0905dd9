"""What a whole run is made of. A recipe is a function that returns one of these; the command line overrides its fields."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from pleinair.model.lora import LoraConfig
from pleinair.model.parallelize import ParallelConfig
from pleinair.model.tensor_parallel import check_tensor_parallel
from pleinair.model.transformer import TransformerConfig
from pleinair.packs.plan import LoaderConfig
from pleinair.records.errors import ConfigError
from pleinair.sampling import SamplingConfig
from pleinair.training.engine import EngineConfig
from pleinair.training.hooks.watching import WatchConfig
from pleinair.training.stages.pretrain import PretrainConfig
from pleinair.training.stages.repa import RepaConfig


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

    def __post_init__(self) -> None:
        for name in ("resolution", "num_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a phase is {getattr(self, name)}: give at least 1")


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
class FinetuneConfig:
    """A LoRA on the frozen weights of the parent, in place of training all of them."""

    lora: LoraConfig = field(default_factory=LoraConfig)
    """Where it is attached and how large it is."""
    base_bits: Literal[8, 16, 32] = 32
    """How the frozen weights are stored: 8, the blocks' matrices in int8 with a scale per row and the rest in bfloat16; 16,
    all in bfloat16; 32, all in float32."""
    offload: bool = False
    """Leave the frozen blocks in the CPU's memory and bring them one at a time."""


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
    styles: tuple[str, ...] = ()
    """Author sets that are trained on; empty for all ten."""
    pack: str | None = None
    """A pack made elsewhere, of a mix or by another run; None for the one that `pack` writes into the run."""
    text_encoder: str | None = None
    """A folder with the language model whose features are packed as they are, for a model that reads them itself (K2 reads
    12 layers of Qwen3-VL); a pipeline's folder will do. None for SmolLM2 through a projection that is fitted."""
    autoencoder: str | None = None
    """Whose latents are packed and learned: a folder in diffusers' layout, a packaged file, or the name of a shipped one;
    None for the run's own. A parent that does not say whose latents it knows is taken to know these."""
    transformer: TransformerConfig
    """The model."""
    text_dim: int = 192
    """Text features per layer after projection; equals the model's text width. Those of a named text encoder have its own."""
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
    repa: RepaConfig | None = None
    """iREPA in the first phases, with patch features beside the pack; None for none."""
    repa_phases: int = 1
    """Phases that have it, from the first on."""
    parent: str | None = None
    """Where training starts: a checkpoint or a run, weights in any layout, a packaged model or the name of a shipped one."""
    with_optimiser: bool = False
    """Go on with the parent's moments, to continue or to anneal; else they start from zero."""
    finetune: FinetuneConfig | None = None
    """Train a LoRA on the parent alone; None trains all weights."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Caption choice; its batch size is set by the phase."""
    pack_text: bool = False
    """Lay a batch's prompts end to end, with equal text rows on every rank and step, instead of padding them."""
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
        self._check_sizes()
        self._check_repa()
        self._check_parent()
        self._check_packed_text()
        self._check_precision()

    def _check_sizes(self) -> None:
        if self.pack is None and self.text_dim != self.transformer.text_dim:
            raise ConfigError(
                f"text_dim is {self.text_dim} and transformer.text_dim {self.transformer.text_dim}: what is packed is what "
                "the transformer reads, set both to the same"
            )
        ranks, pieces = self.parallel.mesh.num_data_ranks, self.engine.num_micro_batches
        for phase in self.phases:
            if phase.batch_size % ranks == 0 and phase.batch_size // ranks % pieces:
                raise ConfigError(
                    f"engine.num_micro_batches is {pieces} and a rank has {phase.batch_size // ranks} rows of a step at "
                    f"{phase.resolution} px: give a divisor of its rows in every phase"
                )

    def _check_repa(self) -> None:
        if self.repa is None:
            return
        if self.repa.depth > self.transformer.num_layers:
            raise ConfigError(
                f"repa.depth is {self.repa.depth} and the transformer has {self.transformer.num_layers} blocks: give fewer"
            )
        if not 1 <= self.repa_phases <= len(self.phases):
            raise ConfigError(
                f"repa_phases is {self.repa_phases} of {len(self.phases)} phases: give at least 1 of them"
            )
        if self.finetune is not None:
            raise ConfigError("repa aligns a whole model, and finetune trains a LoRA: leave one")

    def _check_parent(self) -> None:
        if self.parent is None and (self.with_optimiser or self.finetune is not None):
            what = "with_optimiser" if self.with_optimiser else "finetune"
            raise ConfigError(f"{what} needs the weights it goes on from: give parent, or --parent")
        if self.finetune is not None and self.parallel.mesh.num_ranks > 1:
            raise ConfigError(
                f"finetune trains a LoRA in one process and parallel.mesh has {self.parallel.mesh.num_ranks} ranks: leave "
                "out --nproc and the mesh"
            )
        if self.with_optimiser and self.finetune is not None:
            raise ConfigError(
                "with_optimiser goes on with moments of all weights, and finetune trains a LoRA: leave one"
            )

    def _check_precision(self) -> None:
        if self.engine.precision == "fp8" and self.finetune is not None:
            raise ConfigError("engine.precision is fp8 and finetune trains a LoRA on frozen weights: use bf16")

    def _check_packed_text(self) -> None:
        if not self.pack_text:
            return
        model = self.transformer
        if model.dual_layers or model.timestep_tokens:
            raise ConfigError(
                f"pack_text with stream {model.stream} and timestep {model.timestep}: dual streams and timestep tokens take "
                "padded text, set pack_text=False"
            )
        if self.parallel.mesh.tensor > 1:
            raise ConfigError(
                f"pack_text with parallel.mesh.tensor {self.parallel.mesh.tensor}: tensor parallelism splits padded text "
                "only, set pack_text=False or shard instead"
            )
        if self.loader.remainder != "drop":
            raise ConfigError(
                f"pack_text with loader.remainder {self.loader.remainder!r}: packed text takes whole batches, set it to 'drop'"
            )

    def loader_of(self, phase: PhaseConfig) -> LoaderConfig:
        """The loader's settings for a phase."""
        return replace(self.loader, batch_size=phase.batch_size, seed=self.engine.seed)

    def training_part(self) -> tuple[object, ...]:
        """The settings that training depends on; a run resumes only while they stay."""
        settings: tuple[object, ...] = (self.transformer, self.phases, self.engine, self.pretrain, self.loader)
        if self.pack_text:
            settings += ("pack_text",)
        if self.repa is not None:
            settings += (self.repa, self.repa_phases)
        if self.parent is not None:
            settings += (self.with_optimiser, self.finetune)
        return settings

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Resolutions in the order they are trained."""
        return tuple(phase.resolution for phase in self.phases)
