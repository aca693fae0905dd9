"""Alignment without homogenisation: what a chain of post-training keeps of the base, against stages that stand alone.

    base -> SFT -> STPO -> RL with a reward for diversity -> TDM, 8 steps          the chain
       '--> DPO | DPO+SFT | GRPO without that reward | TDM alone                   baselines, at the chain's gold reward
    each --open and told prompts--> default-mode diversity, can it, transfer, near copies: two judges

Of every baseline that checkpoint is measured whose gold reward, of a judge that nothing climbed, is nearest to that of the chain's
end; how near stands in the table. SFT is a few epochs of the same drawings at a tenth of the rate, decayed to nothing. All models
are drawn without guidance, the base too: that is its most diverse. A claim is made where both judges say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.climbing import SMALL_CLIMB, ClimbPlan, Probe, climb
from benchmarks.experiments.drawn import NUM_SHOWN, SIDE, shown
from benchmarks.experiments.exploring import FULL, Explorer, open_explorer
from benchmarks.experiments.ground import Ground, stand
from benchmarks.experiments.results import once, opening, publish, without_pixels
from benchmarks.experiments.stpo import Arm
from benchmarks.krablet.rounds import commit, machine
from pleinair.checkpoint.manifests import identity
from pleinair.checkpoint.store import list_checkpoints, read_manifest
from pleinair.cli.progress import ProgressLine
from pleinair.config import config_digest, to_document
from pleinair.evaluation.exploration.ledger import AXES
from pleinair.evaluation.exploration.requests import Plan as Asking
from pleinair.evaluation.exploration.suite import NO_JUDGE
from pleinair.packing.delta_pairs import DeltaConfig, make_delta_pairs
from pleinair.packing.pair_drawing import Source
from pleinair.packs.loader import LatentLoader
from pleinair.packs.pairs import Anchored, PairLoader, PairLoaderConfig, Pairs
from pleinair.packs.plan import LoaderConfig
from pleinair.pages import GridCell, GridRow, Html, Section, grid, page, table
from pleinair.posttraining.distilling import few_step_stage, student_of
from pleinair.sampling import SamplingConfig
from pleinair.sampling.stored import sampling_of
from pleinair.training.engine import EngineConfig, Parent, Phase, train
from pleinair.training.hooks.progress import EachStep
from pleinair.training.optimisers import HeadConfig, OptimiserConfig
from pleinair.training.prompts import PromptLoader, encode_prompts
from pleinair.training.stages.preference import FrozenCopy, Preference
from pleinair.training.stages.tdm import TdmConfig

Row = dict[str, Any]
CHAIN = ("SFT", "STPO", "RL", "TDM")
BASELINES = ("DPO", "DPO+SFT", "GRPO without diversity", "TDM alone")
BASE = "base"
REWARDS = {"rubric": 1.0, "artefact": 0.5}
DIVERSITY = 0.5
"""Weight of the diversity reward in the chain."""
KEPT = 0.95
"""Share of the base's default-mode diversity that the chain's end is to have."""
LEVEL = 1
"""Of the strengths that the experiment on preference optimisation sweeps: the middle one, for all options."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is trained and measured."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    sft_steps: int = 60
    sft_batch: int = 64
    num_pairs: int = 256
    winner_steps: int = 16
    pair_steps: int = 120
    pair_batch: int = 16
    pair_rate: float = 3e-5
    climb: ClimbPlan = field(
        default_factory=lambda: replace(ClimbPlan(), num_iterations=24, num_probed=32, probe_each=2)
    )
    tdm_updates: int = 120
    tdm_batch: int = 16
    tdm_steps: int = 8
    chain_guidance: float = 1.0
    """Of the teacher in the chain, which has been climbed without any."""
    alone_guidance: float = 3.0
    """Of the teacher of TDM alone."""
    num_kept: int = 4
    """Checkpoints along a baseline, among which the one at equal reward is looked for."""
    asking: Asking = FULL
    drawing_steps: int = 16


SMALL = Plan(
    seeds=(0,), sft_steps=2, sft_batch=4, num_pairs=4, winner_steps=3, pair_steps=2, pair_batch=2, climb=SMALL_CLIMB,
    tdm_updates=2, tdm_batch=2, num_kept=2, drawing_steps=2,
    asking=Asking(prompts={"default": 3, "specified": 20, "unseen": 3}, seeds={"default": 2}),
)  # fmt: skip


@dataclass(frozen=True)
class Materials:
    """What all pieces need."""

    ground: Ground
    plan: Plan
    explorer: Explorer
    probe: Probe
    home: Path

    def engine(self, seed: int, rule: OptimiserConfig, num_steps: int) -> EngineConfig:
        """The same loop for all."""
        return EngineConfig(
            seed=seed, precision="fp32", optimiser=rule, keep_checkpoints=1, keep_every=max(num_steps // self.plan.num_kept, 1),
            num_threads=self.plan.climb.threads,
        )  # fmt: skip

    def digest(self, *told: object) -> str:
        """Of a run: all pieces' settings are in the folder's name."""
        return config_digest([self.home.name, *map(str, told)])


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """The chain and the baselines with every seed, then the page; returns it. What is done is not done again."""
    plan, ground = SMALL if small else Plan(), stand(runs, base, small)
    kept = runs / f"homogenisation-{config_digest([ground.identity, to_document(plan)])[:12]}"
    explorer = open_explorer(ground, plan.asking, runs / ground.plan.name / "witnesses")
    made = Materials(ground, plan, explorer, Probe(ground, ground.unseen_prompts, plan.climb), kept)
    rows = [measured(made, BASE, 0, ground.base)]
    for seed in plan.seeds:
        chain = [measured(made, name, seed, place) for name, place in chain_of(made, seed).items()]
        rows += [*chain, *baselines_of(made, seed, chain[-1]["gold"])]
    told = {"verdicts": verdicts(rows), "plan": to_document(plan)}
    told["rewards"] = {name: one.told for name, one in ground.fitted.items()}
    return publish(out, "homogenisation", {"rows": without_pixels(rows), **told}, report(rows, made))


def chain_of(made: Materials, seed: int) -> dict[str, Path]:
    """The chain's checkpoints, by stage."""
    plan = made.plan
    sft = fine_tuned(made, seed)
    stpo = preferred(made, "STPO", sft, seed)
    weights = {**REWARDS, "diversity": DIVERSITY}
    directory = made.home / f"RL-{seed}"
    climbed = climb(made.ground, stpo, made.ground.mix(weights), [weights, made.home.name], plan.climb, seed, directory)
    return {"SFT": sft, "STPO": stpo, "RL": climbed, "TDM": distilled(made, "TDM", climbed, plan.chain_guidance, seed)}


def baselines_of(made: Materials, seed: int, gold: float) -> list[Row]:
    """Every baseline at its checkpoint whose gold reward is nearest."""
    base, plan = made.ground.base, made.plan
    steps = plan.climb.num_iterations * plan.climb.num_groups * plan.climb.group_size // plan.climb.batch_size

    def climbed() -> Path:
        directory, mix = made.home / f"GRPO-without-diversity-{seed}", made.ground.mix(REWARDS)
        told, every = [REWARDS, made.home.name], max(steps // plan.num_kept, 1)
        return climb(made.ground, base, mix, told, plan.climb, seed, directory, keep_every=every)

    ways: dict[str, Callable[[], Path]] = {
        "DPO": lambda: preferred(made, "DPO", base, seed),
        "DPO+SFT": lambda: preferred(made, "DPO+SFT", base, seed),
        "GRPO without diversity": climbed,
        "TDM alone": lambda: distilled(made, "TDM alone", base, plan.alone_guidance, seed),
    }
    rows = []
    for name in BASELINES:
        found = nearest(made, name, seed, ways[name](), gold)
        rows.append(measured(made, name, seed, found))
    return rows


def nearest(made: Materials, name: str, seed: int, last: Path, gold: float) -> Path:
    """Of a run's kept checkpoints the one whose gold reward is nearest."""
    golds = {}
    for place in list_checkpoints(last.parent):
        kept = made.home / f"gold-{slug(name)}-{seed}-{place.name}.json"
        golds[place] = once(kept, lambda place=place: gold_of(made, place))  # type: ignore[misc]
    return min(golds, key=lambda place: abs(golds[place] - gold))


def gold_of(made: Materials, checkpoint: Path) -> float:
    """Mean of the gold judge's rubric on held-out prompts."""
    pixels = made.probe.draw(made.ground.sampler(checkpoint), num_steps=drawing(made, checkpoint).num_steps)
    return made.probe.values(pixels)["gold_rubric"]


def drawing(made: Materials, checkpoint: Path) -> SamplingConfig:
    """Without guidance, and a student in its own steps."""
    stored = sampling_of(checkpoint)
    if stored.distilled:
        return replace(stored, resolution=SIDE, precision="fp32")
    return SamplingConfig(num_steps=made.plan.drawing_steps, guidance=0.0, resolution=SIDE, precision="fp32")


def measured(made: Materials, name: str, seed: int, checkpoint: Path) -> Row:
    """A model's gold reward, its axes, and a few pictures."""

    def measure() -> Row:
        sampler, config = made.ground.sampler(checkpoint), drawing(made, checkpoint)
        pixels = made.probe.draw(sampler, num_steps=config.num_steps)
        values = made.probe.values(pixels)
        return {
            "gold": values["gold_rubric"],
            "artefacts": values["gold_artefacts"],
            "axes": made.explorer.axes(sampler, config),
            "step": read_manifest(checkpoint).step,
            "pixels": pixels[:: made.probe.each][:NUM_SHOWN].tolist(),
        }

    return {"model": name, "seed": seed, **once(made.home / f"measured-{slug(name)}-{seed}.json", measure)}


def slug(name: str) -> str:
    """For file names."""
    return name.replace(" ", "-").replace("+", "-")


def fine_tuned(made: Materials, seed: int) -> Path:
    """The base's drawings again, at a tenth of the rate."""
    plan, ground = made.plan, made.ground
    loader = LatentLoader(ground.pack, SIDE, LoaderConfig(batch_size=plan.sft_batch, seed=seed))
    rule = OptimiserConfig(rule="muon", learning_rate=3e-4, warmup_steps=5, decay_share=0.9)
    return train(
        student_of(ground.base), [Phase("drawings", plan.sft_steps, plan.sft_batch, loader)],
        made.engine(seed, rule, plan.sft_steps), made.home / f"SFT-{seed}", config_digest=made.digest("SFT", seed),
        hooks=[progress(f"SFT {seed}")], parent=Parent(checkpoint=ground.base), on_message=say,
    )  # fmt: skip


def preferred(made: Materials, name: str, start: Path, seed: int) -> Path:
    """One option of preference optimisation, from a model on pairs of its own."""
    plan, ground = made.plan, made.ground
    pairs, own = pairs_of(made, start), identity(read_manifest(start))
    pretrain = student_of(start)
    config = Arm(name=name, level=LEVEL, seed=seed).config
    stage = Preference(pretrain, FrozenCopy(pretrain.model), config, reference_identity=own)
    loader = Anchored(
        PairLoader(pairs, PairLoaderConfig(batch_size=plan.pair_batch, seed=seed), own),
        LatentLoader(ground.pack, SIDE, LoaderConfig(batch_size=plan.pair_batch, seed=seed)),
    )
    rule = OptimiserConfig(learning_rate=plan.pair_rate, warmup_steps=10, decay_share=0.0, weight_decay=0.0)
    return train(
        stage, [Phase("pairs", plan.pair_steps, plan.pair_batch, loader)],
        replace(made.engine(seed, rule, plan.pair_steps), clip_norm=1e9), made.home / f"{slug(name)}-{seed}",
        config_digest=made.digest(name, own, seed), hooks=[progress(f"{name} {seed}")], parent=Parent(checkpoint=start),
        on_message=say,
    )  # fmt: skip


def pairs_of(made: Materials, start: Path) -> Pairs:
    """Pairs of known order that a model draws, drawn once."""
    plan, known = made.plan, made.ground.trained_prompts
    source = Source(made.ground.sampler(start), identity(read_manifest(start)))
    sampling = SamplingConfig(num_steps=plan.winner_steps, resolution=SIDE, precision="fp32")
    config = DeltaConfig(sampling=sampling, fewer_steps=2, when_unsure="say", ways=("guidance", "steps", "prompt"))
    prompts, line = [known[number % len(known)][0] for number in range(plan.num_pairs)], ProgressLine("pairs")
    directory = made.home / f"pairs-{source.identity[:12]}"
    made.home.mkdir(parents=True, exist_ok=True)
    make_delta_pairs(directory, prompts, source, config, on_progress=line.update)
    return Pairs(directory)


def distilled(made: Materials, name: str, start: Path, guidance: float, seed: int) -> Path:
    """A student of few steps."""
    plan, ground = made.plan, made.ground
    stage = few_step_stage(start, TdmConfig(num_steps=plan.tdm_steps, guidance=guidance), ground.encoder)
    codec = ground.sampler().codec
    shape = (codec.latent_channels, SIDE // codec.downscale, SIDE // codec.downscale)
    texts = list(dict.fromkeys(prompt for prompt, _, _ in ground.trained_prompts))
    prompts = encode_prompts(texts, ground.encoder, stage.pretrain.projection)
    rule = OptimiserConfig(
        learning_rate=1e-4, betas=(0.0, 0.95), warmup_steps=20, decay_share=0.3, head=HeadConfig(rate_factor=5.0)
    )
    return train(
        stage, [Phase("prompts", plan.tdm_updates, plan.tdm_batch, PromptLoader(prompts, shape, plan.tdm_batch, seed=seed))],
        made.engine(seed, rule, plan.tdm_updates), made.home / f"{slug(name)}-{seed}",
        config_digest=made.digest(name, identity(read_manifest(start)), guidance, seed), hooks=[progress(f"{name} {seed}")],
        parent=Parent(checkpoint=start), on_message=say,
    )  # fmt: skip


def progress(name: str) -> EachStep:
    """A line on the terminal."""
    line = ProgressLine(name)
    return EachStep(lambda record, total: line.update(record.step + 1, total, f"loss {record.loss:.4f}"))


def say(said: str) -> None:
    """What the engine has to say."""
    print(f"  {said}", flush=True)


def of_base(rows: Sequence[Row], axis: str) -> dict[str, float]:
    """The base's value of an axis, by judge."""
    (base,) = [row["axes"][axis] for row in rows if row["model"] == BASE]
    return dict(base)


def share_kept(rows: Sequence[Row], model: str) -> dict[str, list[float]]:
    """By judge and seed, a model's default-mode diversity over the base's; no judge that sees none in the base."""
    own = [row["axes"]["diversity"] for row in rows if row["model"] == model]
    return {
        judge: [one[judge] / value for one in own] for judge, value in of_base(rows, "diversity").items() if value > 0
    }


def gained(rows: Sequence[Row], model: str, axis: str) -> dict[str, list[float]]:
    """By judge and seed, how much more than the base's a model's value is."""
    own = [row["axes"][axis] for row in rows if row["model"] == model]
    return {judge: [one[judge] - value for one in own] for judge, value in of_base(rows, axis).items()}


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What the chain was to reach, judge by judge, and what the baselines keep."""
    end = CHAIN[-1]
    kept = share_kept(rows, end)
    if not kept:
        return ["No judge sees the base draw what it is asked for: it has no diversity to keep."]
    word = _word([float(np.mean(of)) >= KEPT for of in kept.values()])
    told = [f"Default-mode diversity kept by the chain: {_listed(kept, '.0%')}; to reach: {KEPT:.0%}, {word}."]
    for axis, says in (("can_both", "can it"), ("transfer", "transfer")):
        more = gained(rows, end, axis)
        word = _word([float(np.mean(of)) > 0 for of in more.values()])
        told.append(f"{says}: {_listed(more, '+.3f')} since the base; to reach: more, {word}.")
    golds = {name: float(np.mean([row["gold"] for row in rows if row["model"] == name])) for name in (end, *BASELINES)}
    for name in BASELINES:
        told.append(
            f"{name} keeps {_listed(share_kept(rows, name), '.0%')} of the diversity, can_both "
            f"{_listed(gained(rows, name, 'can_both'), '+.3f')}, at a gold reward of {golds[name]:.3f} (chain: {golds[end]:.3f})."
        )
    return told


def _listed(by_judge: Mapping[str, Sequence[float]], form: str) -> str:
    """`97% +- 2% (first judge), ...`."""
    return ", ".join(
        shown(of, form) + ("" if judge == NO_JUDGE else f" ({judge} judge)") for judge, of in by_judge.items()
    )


def _word(reached: Sequence[bool]) -> str:
    if len(set(reached)) > 1:
        return "the judges disagree"
    return "reached" if reached[0] else "not reached"


def ledger_table(rows: Sequence[Row]) -> Html:
    """Models by axes, each by each judge that tells it; means over seeds with intervals."""
    columns = [(axis, judge) for axis in AXES if axis in rows[0]["axes"] for judge in rows[0]["axes"][axis]]
    names = [axis if judge == NO_JUDGE else f"{axis}, {judge} judge" for axis, judge in columns]
    cells = []
    for name in (BASE, *CHAIN, *BASELINES):
        own = [row for row in rows if row["model"] == name]
        values = [shown([row["axes"][axis][judge] for row in own]) for axis, judge in columns]
        plain = [shown([row[key] for row in own]) for key in ("gold", "artefacts")]
        cells.append([name, *plain, *values, ", ".join(str(row["step"]) for row in own)])
    return table(
        ["model", "gold reward", "with artefacts, by gold", *names, "steps of the measured checkpoints"], cells
    )


def report(rows: Sequence[Row], made: Materials) -> str:
    """The page."""
    first = [row for row in rows if row["seed"] == made.plan.seeds[0]]
    texts = [prompt for prompt, _, _ in made.probe.prompts[:: made.probe.each][:NUM_SHOWN]]
    pictures = [
        GridRow(
            name=text, cells=[GridCell(picture=np.array(row["pixels"][place], np.uint8), alt=text) for row in first]
        )
        for place, text in enumerate(texts)
    ]
    sections = [
        Section(heading="Ledger", body=ledger_table(rows)),
        Section(heading="The same prompts and noise", body=grid([row["model"] for row in first], pictures)),
        Section(heading="The rewards", body=made.ground.facts()),
    ]
    footer = f"make experiment-homogenisation, commit {commit()}, {machine()}. Seeds {made.plan.seeds}; base {made.ground.base}."
    return page("Alignment without homogenisation", opening(__doc__, verdicts(rows)), sections, footer=footer)
