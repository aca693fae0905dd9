"""Alignment without homogenisation: what a chain of post-training keeps of the base, against stages that stand alone.

    base -> SFT -> STPO -> RL with a reward for diversity -> TDM, 8 steps          the chain
       '--> DPO | DPO+SFT | GRPO without that reward | TDM alone                   baselines, at the chain's gold reward
    each --open and told prompts, the seed's noise--> default-mode diversity, can it, transfer, near copies: two judges

With each seed all is trained anew, and the base is drawn again from the seed's noise: differences are paired by prompt and by
seed, and count where both the interval over seeds and the one over prompts say so, by both judges. Of every baseline that
checkpoint is measured whose gold reward, of a judge that nothing climbed, is that of the chain's end; where none comes near
enough, it never reaches it. SFT is a few epochs of the same drawings at a tenth of the rate, decayed to nothing. Pairs are of
prompts of all styles. GRPO and TDM, of chain and baselines, get prompts that leave the style open beside those that name it, and
never the open ones that are measured. All models are drawn without guidance, the base too: that is its most diverse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.climbing import SMALL_CLIMB, ClimbPlan, Probe, climb
from benchmarks.experiments.drawn import SIDE
from benchmarks.experiments.exploring import FULL as ASKED
from benchmarks.experiments.exploring import Explorer, open_explorer
from benchmarks.experiments.ground import Ground, stand
from benchmarks.experiments.homogenisation_page import BASE, BASELINES, REAL, Row, report, values_of, verdicts
from benchmarks.experiments.results import footer, named, once, publish
from benchmarks.experiments.stpo_arms import Arm
from benchmarks.experiments.stpo_training import prompts_of
from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import list_checkpoints, read_manifest
from pleinair.cli.progress import ProgressLine
from pleinair.config import config_digest, to_document
from pleinair.evaluation.exploration.requests import Plan as Asking
from pleinair.packing.delta_pairs import DeltaConfig, make_delta_pairs
from pleinair.packing.pair_drawing import Source
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pairs import Anchored, PairLoader, PairLoaderConfig, Pairs
from pleinair.packs.plan import LoaderConfig
from pleinair.posttraining.distilling import few_step_stage, student_of
from pleinair.sampling import SamplingConfig
from pleinair.sampling.stored import sampling_of
from pleinair.training.engine import EngineConfig, Parent, Phase, train
from pleinair.training.hooks.progress import EachStep
from pleinair.training.optimisers import HeadConfig, OptimiserConfig
from pleinair.training.prompts import PromptLoader, encode_prompts
from pleinair.training.stages.grpo import GrpoConfig
from pleinair.training.stages.preference import FrozenCopy, Preference
from pleinair.training.stages.tdm import TdmConfig

GUIDANCE = 3.0
"""Of the base where it is drawn with guidance, g: winners of pairs, and the teacher of TDM alone."""
PREFERENCES = ("STPO", "DPO", "DPO+SFT")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What decides weights."""

    guidance: float = GUIDANCE
    sft_steps: int = 60
    sft_batch: int = 64
    num_pairs: int = 256
    winner_steps: int = 16
    pair_level: int = 1
    """Of the strengths that the experiment on preference optimisation sweeps: the middle one, for all options."""
    pair_steps: int = 120
    pair_batch: int = 16
    pair_rate: float = 3e-5
    climb: ClimbPlan = field(default_factory=lambda: replace(ClimbPlan(), num_iterations=24))
    rewards: Mapping[str, float] = field(default_factory=lambda: {"rubric": 1.0, "artefact": 0.5})
    """What both runs of GRPO climb, by weight."""
    diversity: float = 0.5
    """Weight of the chain's reward for diversity beside them."""
    tdm_updates: int = 300
    tdm_batch: int = 16
    tdm_steps: int = 8
    chain_guidance: float = 1.0
    """Of the teacher in the chain, which has been climbed without any."""
    num_kept: int = 8
    """Checkpoints along a baseline, among which the one at equal reward is looked for."""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How much is measured; nothing is trained anew when it changes."""

    asking: Asking = ASKED
    drawing_steps: int = 16
    """Of a model that is no student."""
    num_probed: int = 80
    """Held-out prompts of the gold reward."""
    probe_each: int = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is trained and measured."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    training: Training = field(default_factory=Training)
    measuring: Measuring = field(default_factory=Measuring)


SMALL = Plan(
    seeds=(0, 1),
    training=Training(
        sft_steps=2, sft_batch=4, num_pairs=4, winner_steps=3, pair_steps=2, pair_batch=2, climb=SMALL_CLIMB, tdm_updates=2,
        tdm_batch=2, num_kept=2,
    ),
    measuring=Measuring(
        asking=Asking(prompts={"default": 3, "specified": 20, "unseen": 3}, seeds={"default": 2}), drawing_steps=2,
        num_probed=3,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Materials:
    """What all trainings and measurements need."""

    ground: Ground
    plan: Training
    measuring: Measuring
    explorer: Explorer
    probe: Probe

    @cached_property
    def home(self) -> Path:
        """Where weights are kept, all that they depend on in its name: defaults of the losses too."""
        losses = [Arm(name=name, level=self.plan.pair_level, seed=0).config for name in PREFERENCES]
        told = [
            self.ground.identity,
            self.plan,
            losses,
            TdmConfig(),
            GrpoConfig(),
            sorted(self.explorer.open_prompts()),
        ]
        return self.ground.runs / f"homogenisation-{config_digest(told)[:12]}"

    @cached_property
    def measurements(self) -> Path:
        """Where measurements are kept; each has the name of the weights it is of."""
        told = [self.ground.identity, self.measuring, self.explorer.identity, [one for one, _, _ in self.probe.prompts]]
        return self.ground.runs / f"homogenisation-measured-{config_digest(told)[:12]}"

    def engine(self, seed: int, rule: OptimiserConfig, num_steps: int) -> EngineConfig:
        """The same loop for all."""
        return EngineConfig(
            seed=seed, precision="fp32", optimiser=rule, keep_checkpoints=1, keep_every=stretch(num_steps, self.plan.num_kept),
            num_threads=self.plan.climb.threads,
        )  # fmt: skip

    def digest(self, *told: object) -> str:
        """Of a run: all settings are in the folder's name."""
        return config_digest([self.home.name, *map(str, told)])

    @cached_property
    def styled(self) -> list[str]:
        """Prompts of trained pairs."""
        return list(dict.fromkeys(prompt for prompt, _, _ in self.ground.trained_prompts))

    @cached_property
    def left_open(self) -> list[str]:
        """Prompts that name a thing and no style, of which the reward can tell something; not those that are measured."""
        measured = self.explorer.open_prompts()
        asked = [one.prompt for one in self.explorer.requests if one.kind == "default" and one.prompt not in measured]
        empty = self.ground.fitted["reward"].rubric().unanswerable(asked)
        return [one for one in asked if one not in empty]

    @cached_property
    def climbed(self) -> list[str]:
        """What both runs of GRPO draw: as many prompts that name a style as leave it open."""
        places = np.linspace(0, len(self.styled) - 1, min(len(self.left_open), len(self.styled))).round().astype(int)
        return [*(self.styled[place] for place in places), *self.left_open]


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """The chain and the baselines with every seed, then the page; returns it. What is done is not done again."""
    plan, ground = SMALL if small else Plan(), stand(runs, base, small)
    asked = plan.measuring
    explorer = open_explorer(ground, asked.asking, runs / ground.plan.name / "witnesses")
    probing = replace(plan.training.climb, num_probed=asked.num_probed, probe_each=asked.probe_each)
    made = Materials(ground, plan.training, asked, explorer, Probe(ground, ground.unseen_prompts, probing))
    rows: list[Row] = [{"model": REAL, "seed": 0, "axes": once(made.measurements / "real.json", explorer.real_axes)}]
    for seed in plan.seeds:
        chain = [measured(made, name, seed, place) for name, place in chain_of(made, seed).items()]
        rows += [*chain, *baselines_of(made, seed, chain[-1]["gold"])]
    told = {"verdicts": verdicts(rows), "plan": to_document(plan)}
    told["rewards"] = {name: one.told for name, one in ground.fitted.items()}
    texts = [made.probe.prompts[row][0] for row in made.probe.shown]
    foot = footer(
        runs, "homogenisation", f"{len(plan.seeds)} seeds, settings in homogenisation.json; base {named(ground.base)}"
    )
    page = report(__doc__, rows, texts, ground.facts(), foot)
    return publish(out, "homogenisation", {"rows": [published(row) for row in rows], **told}, page)


def published(row: Row) -> Row:
    """A row without pictures and prompts: values by measure and judge."""
    told = {key: value for key, value in row.items() if key not in ("pixels", "axes")}
    return {**told, "values": values_of(row)}


def chain_of(made: Materials, seed: int) -> dict[str, Path]:
    """The base's and the chain's checkpoints, by stage."""
    plan = made.plan
    sft = fine_tuned(made, seed)
    stpo = preferred(made, "STPO", sft, seed)
    climbed = climbed_from(made, "RL", stpo, {**plan.rewards, "diversity": plan.diversity}, seed)
    tdm = distilled(made, "TDM", climbed, plan.chain_guidance, seed)
    return {BASE: made.ground.base, "SFT": sft, "STPO": stpo, "RL": climbed, "TDM": tdm}


def baselines_of(made: Materials, seed: int, gold: float) -> list[Row]:
    """Every baseline at its checkpoint of nearest gold reward."""
    base, plan = made.ground.base, made.plan
    steps = plan.climb.num_iterations * plan.climb.num_groups * plan.climb.group_size // plan.climb.batch_size
    plain = "GRPO without diversity"
    ways: dict[str, tuple[int, Callable[[int], Path]]] = {
        "DPO": (plan.pair_steps, lambda every: preferred(made, "DPO", base, seed)),
        "DPO+SFT": (plan.pair_steps, lambda every: preferred(made, "DPO+SFT", base, seed)),
        plain: (steps, lambda every: climbed_from(made, plain, base, plan.rewards, seed, every)),
        "TDM alone": (plan.tdm_updates, lambda every: distilled(made, "TDM alone", base, plan.guidance, seed)),
    }
    rows = []
    for name in BASELINES:
        num_steps, train_by = ways[name]
        every = stretch(num_steps, plan.num_kept)
        found = nearest(made, train_by(every), every, gold)
        rows.append({**measured(made, name, seed, found), "wanted": gold})
    return rows


def stretch(num_steps: int, num_kept: int) -> int:
    """Steps between two checkpoints that are kept."""
    return max(num_steps // num_kept, 1)


def nearest(made: Materials, last: Path, every: int, gold: float) -> Path:
    """Of the checkpoints along a run the one whose gold reward is nearest."""
    return min(along(last, every), key=lambda place: abs(gold_of(made, place) - gold))


def along(last: Path, every: int) -> list[Path]:
    """The checkpoints that a run keeps, whatever the clock saved beside them, and its last one."""
    return [place for place in list_checkpoints(last.parent) if place == last or not read_manifest(place).step % every]


def gold_of(made: Materials, checkpoint: Path) -> float:
    """Mean of the gold judge's rubric on held-out prompts."""
    return float(probed(made, checkpoint)["gold"])


def probed(made: Materials, checkpoint: Path) -> Row:
    """What the judges that nothing climbed say, always of the same prompts and noise, and a few pictures."""

    def measure() -> Row:
        pixels = made.probe.draw(made.ground.sampler(checkpoint), num_steps=drawing(made, checkpoint).num_steps)
        values, few = made.probe.values(pixels), pixels[list(made.probe.shown)].tolist()
        return {"gold": values["gold_rubric"], "artefacts": values["gold_artefacts"], "pixels": few}

    return dict(once(made.measurements / f"gold-{short(checkpoint)}.json", measure))


def drawing(made: Materials, checkpoint: Path) -> SamplingConfig:
    """Without guidance, and a student in its own steps."""
    stored = sampling_of(checkpoint)
    if stored.distilled:
        return replace(stored, resolution=SIDE)
    return SamplingConfig(num_steps=made.measuring.drawing_steps, guidance=0.0, resolution=SIDE)


def measured(made: Materials, name: str, seed: int, checkpoint: Path) -> Row:
    """A model's gold reward, its axes from the seed's noise, and a few pictures."""

    def measure() -> Any:
        return made.explorer.axes(made.ground.sampler(checkpoint), drawing(made, checkpoint), seed)

    axes = once(made.measurements / f"axes-{short(checkpoint)}-{seed}.json", measure)
    step = read_manifest(checkpoint).step
    return {"model": name, "seed": seed, "step": step, "axes": axes, **probed(made, checkpoint)}


def short(checkpoint: Path) -> str:
    """A name by its weights."""
    return identity(read_manifest(checkpoint))[:12]


def slug(name: str) -> str:
    """For file names."""
    return name.replace(" ", "-").replace("+", "-")


def climbed_from(
    made: Materials, name: str, start: Path, weights: Mapping[str, float], seed: int, keep_every: int = 0
) -> Path:
    """GRPO from a model."""
    told, directory = [dict(weights), made.home.name], made.home / f"{slug(name)}-{seed}"
    mix = made.ground.mix(dict(weights))
    return climb(
        made.ground, start, mix, told, made.plan.climb, seed, directory, keep_every=keep_every, prompts=made.climbed
    )


def fine_tuned(made: Materials, seed: int) -> Path:
    """The base's drawings again, at a tenth of the rate."""
    plan, ground = made.plan, made.ground
    loader = LatentLoader(ground.pack, SIDE, LoaderConfig(batch_size=plan.sft_batch, seed=seed))
    rule = OptimiserConfig(rule="muon", learning_rate=3e-4, warmup_steps=5, decay_share=0.9)
    return train(
        student_of(ground.base), [Phase("drawings", plan.sft_steps, plan.sft_batch, loader)],
        made.engine(seed, rule, plan.sft_steps), made.home / f"SFT-{seed}", config_digest=made.digest("SFT", seed, rule),
        hooks=[progress(f"SFT {seed}")], parent=Parent(checkpoint=ground.base), on_message=say,
    )  # fmt: skip


def preferred(made: Materials, name: str, start: Path, seed: int) -> Path:
    """One option of preference optimisation, from a model on pairs of its own."""
    plan, ground = made.plan, made.ground
    pairs, own = pairs_of(made, start), identity(read_manifest(start))
    pretrain = student_of(start)
    config = Arm(name=name, level=plan.pair_level, seed=seed).config
    stage = Preference(pretrain, FrozenCopy(pretrain.model), config, reference_identity=own)
    loader = Anchored(
        PairLoader(pairs, PairLoaderConfig(batch_size=plan.pair_batch, seed=seed), own),
        LatentLoader(ground.pack, SIDE, LoaderConfig(batch_size=plan.pair_batch, seed=seed)),
    )
    rule = OptimiserConfig(learning_rate=plan.pair_rate, warmup_steps=10, decay_share=0.0, weight_decay=0.0)
    return train(
        stage, [Phase("pairs", plan.pair_steps, plan.pair_batch, loader)],
        replace(made.engine(seed, rule, plan.pair_steps), clip_norm=1e9), made.home / f"{slug(name)}-{seed}",
        config_digest=made.digest(name, own, seed, rule), hooks=[progress(f"{name} {seed}")],
        parent=Parent(checkpoint=start), on_message=say,
    )  # fmt: skip


def pairs_of(made: Materials, start: Path) -> Pairs:
    """Pairs of known order that a model draws, drawn once."""
    plan = made.plan
    source = Source(made.ground.sampler(start), identity(read_manifest(start)))
    sampling = SamplingConfig(num_steps=plan.winner_steps, guidance=plan.guidance, resolution=SIDE)
    config = DeltaConfig(sampling=sampling, fewer_steps=2, when_unsure="say", ways=("guidance", "steps", "prompt"))
    prompts = prompts_of(made.ground, 0, plan.num_pairs)
    directory = made.home / f"pairs-{source.identity[:12]}"
    made.home.mkdir(parents=True, exist_ok=True)
    make_delta_pairs(directory, prompts, source, config, on_progress=ProgressLine("pairs").update)
    return Pairs(directory)


def distilled(made: Materials, name: str, start: Path, guidance: float, seed: int) -> Path:
    """A student of few steps."""
    plan, ground = made.plan, made.ground
    stage = few_step_stage(start, TdmConfig(num_steps=plan.tdm_steps, guidance=guidance), ground.encoder)
    codec = ground.sampler().codec
    shape = (codec.latent_channels, SIDE // codec.downscale, SIDE // codec.downscale)
    prompts = encode_prompts([*made.styled, *made.left_open], ground.encoder, stage.pretrain.projection)
    rule = OptimiserConfig(
        learning_rate=1e-4, betas=(0.0, 0.95), warmup_steps=20, decay_share=0.3, head=HeadConfig(rate_factor=5.0)
    )
    return train(
        stage, [Phase("prompts", plan.tdm_updates, plan.tdm_batch, PromptLoader(prompts, shape, plan.tdm_batch, seed=seed))],
        made.engine(seed, rule, plan.tdm_updates), made.home / f"{slug(name)}-{seed}",
        config_digest=made.digest(name, identity(read_manifest(start)), guidance, seed, rule),
        hooks=[progress(f"{name} {seed}")], parent=Parent(checkpoint=start), on_message=say,
    )  # fmt: skip


def progress(name: str) -> EachStep:
    """A line on the terminal."""
    line = ProgressLine(name)
    return EachStep(lambda record, total: line.update(record.step + 1, total, f"loss {record.loss:.4f}"))


def say(said: str) -> None:
    """What the engine has to say."""
    print(f"  {said}", flush=True)
