"""What a chain of post-training is made of: settings of links in their one order, each of which may be left out.

base -> 1-midtrain -> 2-sft -> 3-stpo -> 3b-calibrate (where there are events of people) -> 4-rl -> 5-tdm
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pleinair.evaluation.exploration.subjects import SIDE
from pleinair.packing.delta_pairs import DeltaConfig
from pleinair.packs.plan import LoaderConfig
from pleinair.records.errors import ConfigError
from pleinair.rewards.statistics import StatisticsConfig
from pleinair.sampling import SamplingConfig
from pleinair.training.engine import EngineConfig
from pleinair.training.hooks.divergence import DivergenceConfig
from pleinair.training.hooks.watching import WatchConfig
from pleinair.training.optimisers import HeadConfig, OptimiserConfig
from pleinair.training.rollouts.loader import RolloutConfig
from pleinair.training.rollouts.pool import PoolConfig
from pleinair.training.stages.grpo import GrpoConfig
from pleinair.training.stages.nft import NftConfig
from pleinair.training.stages.on_policy_distillation import OnPolicyConfig
from pleinair.training.stages.preference import PreferenceConfig
from pleinair.training.stages.tdm import TdmConfig

LinkName = Literal["midtrain", "sft", "stpo", "calibrate", "rl", "tdm"]
LINKS: dict[LinkName, str] = {
    "midtrain": "1-midtrain",
    "sft": "2-sft",
    "stpo": "3-stpo",
    "calibrate": "3b-calibrate",
    "rl": "4-rl",
    "tdm": "5-tdm",
}
"""In the order of the chain, each with its folder; `calibrate` is the second part of `stpo`."""
ALL = "all"
"""The pack of all domains."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """One student of all specialists, on its own trajectories, with what they all descend from as its anchor."""

    num_steps: int = 120
    """Optimiser steps; the domains' captions take turns."""
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(rule="muon", learning_rate=3e-4, warmup_steps=10, decay_share=0.5)
    )
    """Rule and rate."""
    distillation: OnPolicyConfig = field(default_factory=lambda: OnPolicyConfig(anchor_weight=0.02))
    """How it samples, where it is compared, and how much the anchor counts."""


@dataclass(frozen=True, kw_only=True)
class FlowLink:
    """Pretraining's loss on other data: midtraining, or supervised fine-tuning."""

    num_steps: int
    """Optimiser steps, of each specialist where there are several."""
    batch_size: int = 64
    """Pictures a step; prompts a step of a student."""
    optimiser: OptimiserConfig
    """Rule and rate."""
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    """Caption choice; batch size and seed are set by the chain."""
    domains: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Author sets of each specialist, by name: several become one model by `combine`. Empty for one model of all pictures."""
    combine: Literal["merge", "on_policy"] = "merge"
    """`merge`: the parent and an equal part of what each specialist learned; `on_policy`: a student that all of them teach."""
    student: StudentConfig = field(default_factory=StudentConfig)
    """With `on_policy`, how the student learns."""

    def __post_init__(self) -> None:
        if taken := {"merged", "student"} & self.domains.keys():
            raise ConfigError(f"a domain is named {min(taken)!r}, as the folder of the whole: give it another name")
        if self.combine == "on_policy" and len(self.domains) < 2:
            raise ConfigError(
                f"combine is 'on_policy' and there are {len(self.domains)} domains: name two or more, a teacher for each"
            )

    @property
    def packs(self) -> tuple[str, ...]:
        """Names of the packs it trains on."""
        return tuple(self.domains) or (ALL,)


@dataclass(frozen=True, kw_only=True)
class GatesConfig:
    """What is measured while preferences are trained and is too dear for every step: held-out loss, and pictures."""

    every: int = 10
    """Steps between measurements; the last step is always measured. 0 for none."""
    num_rows: int = 16
    """Held-out rows whose flow loss and drift are measured by timestep."""
    num_pictures: int = 12
    """Pictures whose high frequencies and gold reward are measured, of one prompt each."""
    num_steps: int = 8
    """Euler steps of each."""

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ConfigError(f"gates.every is {self.every}: give a number of steps, or 0 for none")
        for name in ("num_rows", "num_pictures", "num_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"gates.{name} is {getattr(self, name)}: give at least 1, or set gates.every=0")


@dataclass(frozen=True, kw_only=True)
class PreferenceLink:
    """Preference optimisation on pairs that the model itself draws, or on what people chose among its pictures."""

    num_steps: int
    """Optimiser steps at most."""
    batch_size: int = 16
    """Pairs a step, and as many rows of the pack to anchor."""
    optimiser: OptimiserConfig
    """Rule and rate."""
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    """The loss."""
    num_pairs: int = 512
    """Pairs that are drawn; of events all are taken."""
    pairs: DeltaConfig | None = None
    """How they are drawn; None for pairs of the chain's `events`."""
    divergence: DivergenceConfig | None = field(default_factory=DivergenceConfig)
    """Where the link ends itself."""
    clip_norm: float = 1e9
    """Largest gradient norm: a clipped gradient undoes the difference between a won pair and an open one."""
    gates: GatesConfig = field(default_factory=GatesConfig)
    """What is watched beside what every step logs."""
    least_on_policy: float = 0.5
    """More than this share of the pairs must hold a picture that the parent drew."""


@dataclass(frozen=True, kw_only=True)
class RewardLink:
    """Reinforcement learning on rewards."""

    method: Literal["grpo", "nft"] = "grpo"
    """The stage."""
    num_iterations: int
    """Rollouts."""
    batch_size: int = 32
    """Pictures an update."""
    optimiser: OptimiserConfig
    """Rule and rate."""
    weights: dict[str, float] = field(default_factory=lambda: {"rubric": 1.0, "artefact": 0.5, "diversity": 0.25})
    """What is climbed, by the name of a reward's value."""
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    """When a reward is taken for broken; a run goes on with other limits."""
    grpo: GrpoConfig = field(default_factory=lambda: GrpoConfig(kl_weight=0.01))
    """How far an update of GRPO may go."""
    nft: NftConfig = field(default_factory=NftConfig)
    """The same of DiffusionNFT."""
    rollout: RolloutConfig
    """Size of an iteration and how it is drawn."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    """How prompts are chosen."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError("rl.weights is empty: name at least one value, such as {'rubric': 1.0}")
        if self.method == "nft" and self.rollout.drawing.window_size:
            raise ConfigError("rl.method is nft, which needs no window: set rl.rollout.drawing.window_size=0")

    @property
    def num_steps(self) -> int:
        """Updates."""
        rollout = self.rollout
        return self.num_iterations * (rollout.num_pictures // self.batch_size) * rollout.num_epochs


@dataclass(frozen=True, kw_only=True)
class DistilLink:
    """A student of few steps without guidance."""

    num_steps: int
    """Updates."""
    batch_size: int = 16
    """Prompts an update."""
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            learning_rate=1e-4,
            betas=(0.0, 0.95),
            warmup_steps=20,
            decay_share=0.3,
            head=HeadConfig(rate_factor=5.0),
        )
    )
    """The student's rule; the head is the fake model."""
    tdm: TdmConfig = field(default_factory=TdmConfig)
    """Its steps and how it is matched."""


Link = FlowLink | PreferenceLink | RewardLink | DistilLink


@dataclass(frozen=True, kw_only=True)
class SideBySideConfig:
    """What is drawn after every link, always the same prompts from the same noise."""

    num_prompts: int = 64
    """Prompts of held-out pairs."""
    pictures_per_prompt: int = 4
    """Pictures of each, from different noise: 2 at least, for diversity within a prompt."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How; a distilled model is drawn by its own steps. Resolution is the chain's."""
    unguided: bool = True
    """Draw everything without guidance too."""
    num_features: int = 32
    """Directions of the judge's features that the Frechet distance is taken in."""
    num_shown: int = 12
    """Prompts whose pictures the page shows."""
    explore: Literal["none", "ends", "all"] = "none"
    """Whose last checkpoints the suite `exploration` measures, in its quick size, for the ledger: nobody's, the base's and
    the last link's, or everybody's. It knows pictures of 64 px."""

    def __post_init__(self) -> None:
        if self.num_prompts < 1 or self.pictures_per_prompt < 2:
            raise ConfigError(
                f"side_by_side draws {self.num_prompts} prompts and {self.pictures_per_prompt} pictures of each: give at "
                "least 1 and 2"
            )


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A whole chain; a link that is None is left out, and the next one starts from the one before it."""

    name: str
    """Of its folder."""
    title: str
    """One line for the page."""
    base: str
    """What it starts from: a run, a checkpoint, weights, or a shipped model."""
    resolution: int
    """Side of all pictures in pixels."""
    midtrain: FlowLink | None = None
    """All pictures with long captions."""
    sft: FlowLink | None = None
    """A few epochs of chosen pictures, or specialists and their merge."""
    stpo: PreferenceLink | None = None
    """Preference optimisation on pairs of known order."""
    calibrate: PreferenceLink | None = None
    """Preference optimisation on what people chose; left out while there are no `events`."""
    rl: RewardLink | None = None
    """Rewards."""
    tdm: DistilLink | None = None
    """Few steps."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """The loop of all links; optimiser and clipping are each link's own."""
    watch: WatchConfig = field(default_factory=WatchConfig)
    """What is looked for while training."""
    side_by_side: SideBySideConfig = field(default_factory=SideBySideConfig)
    """What is drawn after each link."""
    events: str = ""
    """Pairs of what people chose, a folder that `pleinair pairs --events` wrote; empty where nobody has."""
    data: str = "drawings-64"
    """Recipe whose things and styles are packed."""
    call_seconds: float = 0.0
    """Processor seconds that one core needs for one picture through the network once: what a plan reckons with."""

    def __post_init__(self) -> None:
        if not self.links():
            raise ConfigError(f"the chain {self.name} has no link: give one of {', '.join(LINKS)}")
        if self.side_by_side.explore != "none" and self.resolution != SIDE:
            raise ConfigError(
                f"side_by_side.explore is {self.side_by_side.explore!r} and the chain draws {self.resolution} px: the suite's "
                f"judges know pictures of {SIDE}, give 'none'"
            )
        drawn = {}
        if self.stpo is not None:
            if self.stpo.pairs is None:
                raise ConfigError("stpo.pairs is None: say how they are drawn; pairs of events are for calibrate")
            drawn["stpo.pairs.sampling"] = self.stpo.pairs.sampling.resolution
        if self.calibrate is not None and self.calibrate.pairs is not None:
            raise ConfigError("calibrate.pairs is set, and its pairs are of events: set it to None")
        if self.rl is not None:
            drawn["rl.rollout.drawing"] = self.rl.rollout.drawing.resolution
        for where, resolution in drawn.items():
            if resolution != self.resolution:
                raise ConfigError(
                    f"{where}.resolution is {resolution} and the chain's {self.resolution}: give the same resolution"
                )

    def links(self, until: str | None = None) -> dict[LinkName, Link]:
        """Links by name, in order, up to `until`. Raises ConfigError for one that the chain does not have."""
        own: dict[LinkName, Link] = {}
        for name in LINKS:
            link: Link | None = getattr(self, name)
            if link is not None and (self.events or name != "calibrate"):
                own[name] = link
        if until is None:
            return own
        names = list(own)
        if until not in names:
            more = "" if self.events or self.calibrate is None else "; calibrate comes with --events"
            raise ConfigError(f"the chain {self.name} has no link {until!r:.40}: give one of {', '.join(names)}{more}")
        return {name: own[name] for name in names[: names.index(until) + 1]}

    def packs(self, until: str | None = None) -> dict[str, tuple[str, ...]]:
        """Author sets of every pack that is trained on, by name; empty ones stand for all of them."""
        needed: dict[str, tuple[str, ...]] = {ALL: ()}
        for link in self.links(until).values():
            if isinstance(link, FlowLink):
                needed |= link.domains
        return needed


def folder_of(name: LinkName) -> str:
    """The folder of a link below its chain's."""
    return LINKS[name]
