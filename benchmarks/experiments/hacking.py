"""Are rewards hacked without the artefact reward? Prompt following climbed for long, with and without it.

    base --GRPO--> arm `with artefact reward`:    rubric + half of P(sound)
               '-> arm `without artefact reward`: rubric alone
    along both: the climbed judge beside a gold one of another network and seed, and a gold classifier of artefacts

Both arms are pushed at three times the rate and for twice as long as elsewhere, with nothing that holds them near the base. A
reward is hacked where it goes on rising while gold falls from the best it had. The artefact rate is what the gold classifier
holds unsound: neither arm climbs it. In one arm the same faults are climbed by a classifier of another seed; both learned from
one set of pictures, so what they share in blindness is not seen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from benchmarks.experiments.climbing import (
    SMALL_CLIMB,
    ClimbPlan,
    Probe,
    Row,
    apart,
    arms_table,
    change_of,
    climbed,
    curves,
    last_pictures,
)
from benchmarks.experiments.drawn import shown, spread
from benchmarks.experiments.ground import Ground, stand
from benchmarks.experiments.paired import word
from benchmarks.experiments.results import footer, named, opening, publish, without_pixels
from pleinair.config import config_digest, to_document
from pleinair.pages import Section, page

WITH, WITHOUT = "with artefact reward", "without artefact reward"
ARMS: dict[str, dict[str, float]] = {WITH: {"rubric": 1.0, "artefact": 0.5}, WITHOUT: {"rubric": 1.0}}
PUSHED = replace(ClimbPlan(), num_iterations=80, learning_rate=3e-4)
MEASURES = {
    "reward_rubric": "climbed judge's rubric",
    "gold_rubric": "gold judge's rubric",
    "gold_sound": "P(sound), by gold",
    "gold_artefacts": "with artefacts, by gold",
    "reward_artefacts": "with artefacts, by the climbed one",
    "concept": "thing named",
    "style": "style named",
    "fine_detail": "fine detail",
    "saturation": "saturation",
    "diversity": "different pictures of a prompt",
}


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """Both arms with every seed, then the page; returns it. What is done is kept under `runs` and not done again."""
    plan = SMALL_CLIMB if small else PUSHED
    ground = stand(runs, base, small)
    kept = runs / f"hacking-{config_digest([ground.identity, to_document(plan), ARMS])[:12]}"
    probe = Probe(ground, ground.unseen_prompts, plan)
    rows = [
        climbed(ground, arm, ground.mix(weights), [weights], plan, probe, seed, kept)
        for seed in plan.seeds
        for arm, weights in ARMS.items()
    ]
    told = {"verdicts": verdicts(rows), "plan": asdict(plan), "rewards": {n: f.told for n, f in ground.fitted.items()}}
    document = {"rows": without_pixels(rows), **told}
    return publish(out, "hacking", document, report(rows, ground, probe, plan))


def fallen(rows: Sequence[Row], arm: str) -> list[float]:
    """By seed, how far gold ends below what it was where the other seeds have their best: where a seed itself is best, noise is."""
    golds = np.array([[point["gold_rubric"] for point in row["points"]] for row in rows if row["arm"] == arm])
    others = golds.sum(axis=0) - golds if len(golds) > 1 else golds
    best = others.argmax(axis=1)
    fall: list[float] = (golds[np.arange(len(golds)), best] - golds[:, -1]).tolist()
    return fall


def above_zero(values: Sequence[float]) -> bool:
    """Whether the mean over seeds is, beyond its interval where it has one."""
    mean, half = spread(values)
    return mean - (0.0 if np.isnan(half) else half) > 0


def diverges(rows: Sequence[Row], arm: str) -> bool:
    """Whether the climbed judge's values end above the base's while gold fell from its best, beyond the noise."""
    return float(np.mean(change_of(rows, arm, "reward_rubric"))) > 0 and above_zero(fallen(rows, arm))


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What was to be seen, and whether it was."""
    told = [between_arms(rows)]
    for arm, expected in ((WITHOUT, True), (WITH, False)):
        found = diverges(rows, arm)
        climbed_gain, gold_gain, rise = (
            change_of(rows, arm, key) for key in ("reward_rubric", "gold_rubric", "gold_artefacts")
        )
        told.append(
            f"{arm}: the climbed judge gains {shown(climbed_gain, '+.3f')}, gold {shown(gold_gain, '+.3f')}, and ends "
            f"{shown(fallen(rows, arm))} below where it was best. It {'diverges' if found else 'does not diverge'}; expected: it "
            f"{'does' if expected else 'does not'}."
        )
        told.append(
            f"{arm}: the artefact rate changes by {shown(rise, '+.3f')}. It {'rises' if above_zero(rise) else 'does not rise'}; "
            f"expected: it {'does' if expected else 'does not'}."
        )
    return told


def between_arms(rows: Sequence[Row]) -> str:
    """What the artefact reward makes of it, seed by seed: the claim itself."""
    fell = spread([one - other for one, other in zip(fallen(rows, WITHOUT), fallen(rows, WITH), strict=True)])
    rose = apart(rows, WITHOUT, WITH, "gold_artefacts")
    return (
        f"Without the artefact reward gold falls {fell[0]:+.3f} \u00b1 {fell[1]:.3f} further from its best than with it; to reach: "
        f"more, {word(*fell)}. The artefact rate ends {rose[0]:+.3f} \u00b1 {rose[1]:.3f} higher; to reach: more, {word(*rose)}."
    )


def report(rows: Sequence[Row], ground: Ground, probe: Probe, plan: ClimbPlan) -> str:
    """The page."""
    drawn = probe.draw(ground.sampler(), rows=probe.shown)
    sections = [
        Section(heading="Numbers", body=arms_table(rows, MEASURES)),
        Section(heading="What is climbed", body=curves(rows, "reward_rubric", "climbed judge's rubric")),
        Section(heading="Gold", body=curves(rows, "gold_rubric", "gold judge's rubric")),
        Section(heading="Artefacts", body=curves(rows, "gold_artefacts", "share with artefacts, by gold")),
        Section(heading="The same prompts and noise", body=last_pictures(rows, probe, drawn)),
        Section(heading="The rewards", body=ground.facts()),
    ]
    how = f"{plan.num_iterations} iterations of {plan.num_groups * plan.group_size} pictures, seeds {plan.seeds}"
    return page(
        "Rewards with and without the one for artefacts",
        opening(__doc__, verdicts(rows)),
        sections,
        footer=footer(ground.runs, "hacking", f"{how}; base {named(ground.base)}"),
    )
