"""A rubric against one holistic score: what does taking a prompt apart gain, by the same judge at the same compute?

    base --GRPO on trained pairs--> arm `rubric`:    requirements weighted, the essential ones a gate
                                '-> arm `one score`: the chance that all of it holds, one number of the same answers
                                '-> arm `no gate`:   the rubric without its gate, one seed: which half does it
    held-out pairs, fixed noise, no guidance --judges that neither climbs--> requirements met, diversity

Both arms start from the same weights, see equally many pictures, and ask the same judge the same questions; they differ in what
is made of its answers. A requirement counts as met where the shipped judge names the style, or the thing, that was asked for;
prompts are pairs that no model and no reward was trained on, and ask for two things each, so much of what a rubric can add is not
in reach here. Diversity is how unlike the pictures of a prompt are among those that show what was asked for: broken pictures are
unlike too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.experiments.climbing import (
    SMALL_CLIMB,
    ClimbPlan,
    Probe,
    Row,
    apart,
    arms_table,
    climbed,
    curves,
    last_of,
    last_pictures,
)
from benchmarks.experiments.drawn import shown, spread
from benchmarks.experiments.ground import Ground, stand
from benchmarks.experiments.paired import word
from benchmarks.experiments.results import footer, named, opening, publish, without_pixels
from pleinair.config import config_digest, to_document
from pleinair.pages import Section, page
from pleinair.rewards.rubric import RubricConfig

RUBRIC, ONE, NO_GATE = "rubric", "one score", "no gate"
ARMS: dict[str, RubricConfig] = {
    RUBRIC: RubricConfig(),
    ONE: RubricConfig(form="holistic"),
    NO_GATE: RubricConfig(essential_above=0.0),
}
LONG = replace(ClimbPlan(), num_iterations=80, probe_every=16)
KEPT = 0.95
"""Share of the diversity that the rubric is to keep."""
MEASURES = {
    "satisfied": "requirements met",
    "concept": "thing named",
    "style": "style named",
    "gold_rubric": "gold judge's rubric",
    "reward_rubric": "climbed judge's rubric",
    "unlikeness": "unlikeness of recognised pictures of a prompt",
    "diversity": "different pictures of a prompt, broken ones counted",
    "gold_artefacts": "with artefacts, by gold",
}


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """Both arms with every seed, then the page; returns it. What is done is kept under `runs` and not done again."""
    plan = SMALL_CLIMB if small else LONG
    ground = stand(runs, base, small)
    kept = runs / f"rubric-{config_digest([ground.identity, to_document(plan), to_document(ARMS)])[:12]}"
    probe = Probe(ground, ground.unseen_prompts, plan)
    rows = [
        climbed(ground, arm, ground.mix({"rubric": 1.0}, config), [to_document(config)], plan, probe, seed, kept)
        for seed in plan.seeds
        for arm, config in ARMS.items()
        if arm != NO_GATE or seed == plan.seeds[0]
    ]
    told = {"verdicts": verdicts(rows), "plan": asdict(plan), "rewards": {n: f.told for n, f in ground.fitted.items()}}
    document = {"rows": without_pixels(rows), **told}
    return publish(out, "rubric", document, report(rows, ground, probe, plan))


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What was to be reached, and whether it was."""
    more, base = apart(rows, RUBRIC, ONE, "satisfied"), rows[0]["points"][0]
    own, other, bare = (last_of(rows, arm, "unlikeness") for arm in (RUBRIC, ONE, NO_GATE))
    kept = spread([one / two if two else math.nan for one, two in zip(own, other, strict=True)])
    gate = last_of(rows, NO_GATE, "satisfied")[0]
    return [
        f"The rubric meets {more[0]:+.3f} \u00b1 {more[1]:.3f} more of what held-out prompts require than one score "
        f"({shown(last_of(rows, RUBRIC, 'satisfied'))} against {shown(last_of(rows, ONE, 'satisfied'))}; the base "
        f"{base['satisfied']:.3f}, seed {rows[0]['seed']} without the gate {gate:.3f}); to reach: more, {word(*more)}.",
        f"Unlikeness of recognised pictures of a prompt: base {base['unlikeness']:.3f}, rubric {shown(own)}, one score "
        f"{shown(other)}, without the gate {bare[0]:.3f}. The rubric has {kept[0]:.0%} \u00b1 {kept[1]:.0%} of one score's; to "
        f"reach: {KEPT:.0%}, {word(*kept, KEPT)}.",
    ]


def report(rows: Sequence[Row], ground: Ground, probe: Probe, plan: ClimbPlan) -> str:
    """The page."""
    drawn = probe.draw(ground.sampler(), rows=probe.shown)
    sections = [
        Section(heading="Numbers", body=arms_table(rows, MEASURES)),
        Section(heading="Requirements met", body=curves(rows, "satisfied", "of held-out prompts")),
        Section(heading="Diversity", body=curves(rows, "unlikeness", "of recognised pictures of a prompt")),
        Section(heading="The same prompts and noise", body=last_pictures(rows, probe, drawn)),
        Section(heading="The rewards", body=ground.facts()),
    ]
    how = f"{plan.num_iterations} iterations of {plan.num_groups * plan.group_size} pictures, seeds {plan.seeds}"
    return page(
        "A rubric against one score",
        opening(__doc__, verdicts(rows)),
        sections,
        footer=footer(ground.runs, "rubric", f"{how}; base {named(ground.base)}"),
    )
