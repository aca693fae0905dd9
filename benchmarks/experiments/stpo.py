"""Preference optimisation that drifts less: STPO beside Diffusion-DPO, DPO+SFT, DPOP, Diffusion-SDPO and MaPO, at equal reward.

A base model draws pairs of known order: winners as usual, with guidance and many steps; losers without guidance, with few steps,
or from half the prompt. Every option trains on the same pairs from the same base. What the pictures are worth is told by a gold
reward that no pair and no update has seen: how likely a judge of its own holds style and thing of held-out prompts, drawn
without guidance from fixed noise. Options move at different speeds, so they are compared where each has won a quarter of what
guidance adds to the base's gold reward, a target that is fixed before: how far the velocity has drifted on held-out rows of the
pretraining data, and how many winners of held-out pairs got worse.

DPO, DPO+SFT and STPO have three levels of strength each; the level is chosen on one seed and compared on five others. Nothing is
clipped; all share AdamW and its rate. There are 32 runs of 240 steps, eight snapshots of each are measured; with the last
checkpoints they take 10 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.experiments.ground import stand
from benchmarks.experiments.results import footer, named, publish
from benchmarks.experiments.stpo_arms import Arm, compared, extras, sweep
from benchmarks.experiments.stpo_measures import MeasurePlan, Measures
from benchmarks.experiments.stpo_page import Measured, chosen_levels, report
from benchmarks.experiments.stpo_training import Ground, PairPlan, TrainPlan, ready, trained

PILOT = ("DPO", "STPO")
PILOT_RATES = (3e-5, 1e-4)
LEAST_DRIFT = 0.005
"""Where a rate moves DPO less than this, the next higher one is taken."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is run; only what `pairs` and `training` say belongs to a run itself."""

    pairs: PairPlan = field(default_factory=PairPlan)
    training: TrainPlan = field(default_factory=TrainPlan)
    measuring: MeasurePlan = field(default_factory=MeasurePlan)
    levels: tuple[int, ...] = (0, 1, 2)
    """That are swept."""
    sweep_seed: int = 100
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the headline comparison."""


FULL = Plan()
SMALL = Plan(
    pairs=PairPlan(num_pairs=12, num_steps=3),
    training=TrainPlan(num_steps=4, every=2, batch_size=4),
    measuring=MeasurePlan(num_prompts=2, each=2, num_steps=2, num_pairs=4, num_rows=4),
    levels=(1,),
    seeds=(0, 1),
)


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """Everything; returns the page. `base` is another model of the demo's architecture than its own."""
    plan = SMALL if small else FULL
    ground, measures = prepared(runs, base, plan, small)
    target = measures.target(plan.seeds)
    measured = [measure(arm, ground, measures, plan) for arm in sweep(plan.sweep_seed, plan.levels)]
    levels = chosen_levels(measured, target)
    more = [*compared(levels, plan.seeds), *extras(levels["STPO"], plan.seeds[0])]
    measured += [measure(arm, ground, measures, plan) for arm in more]
    gap = gap_of(ground)
    document = {
        "size": "small" if small else "full",
        "gap": gap,
        "plan": asdict(plan),
        "levels": levels,
        "target": target,
        "rows": [one.numbers() for one in measured],
    }
    looks = measures.of_base(plan.seeds[0])
    foot = footer(runs, "stpo", f"{len(plan.seeds)} seeds; base {named(ground.shared.base)}")
    bases = {f"base, {way}": np.array(one["pictures"], np.uint8) for way, one in looks.items()}
    return publish(
        out, "stpo", document, report(__doc__ or "", measured, levels, target, bases, measures.shown, gap, foot)
    )


def prepared(runs: Path, base: str | None, plan: Plan, small: bool) -> tuple[Ground, Measures]:
    """Base, rewards, pairs, and who measures."""
    ground = ready(stand(runs, base, small), runs, plan.pairs)
    return ground, Measures(ground, plan.measuring)


def measure(arm: Arm, ground: Ground, measures: Measures, plan: Plan) -> Measured:
    """Train an arm and measure it, or find either done."""
    return measures.of_run(arm, trained(arm, ground, plan.training), swept=arm.seed == plan.sweep_seed)


def gap_of(ground: Ground) -> str:
    """How sure the order of the pairs is."""
    gap = ground.pairs.manifest.gap
    assert gap is not None
    return (
        f"{gap.num_right} of {gap.num_judged} winners are better by {gap.judged_by}, by {gap.mean_gap:.2f} on average"
    )


def pilot(runs: Path, base: str | None = None, small: bool = False) -> Iterator[str]:
    """DPO and STPO at the middle level on the sweep's seed, at either rate: lines to fix constants by. What it trains is kept."""
    plan = SMALL if small else FULL
    ground, measures = prepared(runs, base, plan, small)
    yield f"order of the pairs: {gap_of(ground)}"
    target = measures.target(plan.seeds)
    yield f"target: gold {target:+.3f} above the base's, a quarter of what guidance adds"
    for rate in PILOT_RATES:
        at_rate = replace(plan, training=replace(plan.training, learning_rate=rate))
        for arm in sweep(plan.sweep_seed, (1,)):
            if arm.name in PILOT:
                yield from told_of(measure(arm, ground, measures, at_rate), rate, target)
    yield f"take the lowest rate at which DPO's drift ends above {LEAST_DRIFT} and both reach the target before the last step"


def told_of(one: Measured, rate: float, target: float) -> Sequence[str]:
    """A run's curve as lines of text."""
    names = ("step", "gold", "drift", "winners_worse", "winner_rise", "loser_rise", "margin_accuracy")
    lines = [
        f"{one.arm}, {one.strength}, rate {rate:g}: {one.seconds:.0f} s of steps",
        "  ".join(f"{n:>15}" for n in names),
    ]
    lines += [
        "  ".join(f"{value:15.4f}" for value in point) for point in zip(*(one.curve[n] for n in names), strict=True)
    ]
    step, drift = one.at(target, "step"), one.at(target, "drift")
    return [
        *lines,
        f"gains {one.gain:+.3f}; target at step {step:.0f} with drift {drift:.4f}; ends at {one.end('drift'):.4f}",
    ]
