"""A rubric against one holistic score: what does taking a prompt apart gain, by the same judge at the same compute?

    base --GRPO on trained pairs--> arm `rubric`:    requirements weighted, the essential ones a gate
                                '-> arm `one score`: the chance that all of it holds, one number of the same answers
    held-out pairs, fixed noise, no guidance --judges that neither climbs--> requirements met, diversity

Both arms start from the same weights, see equally many pictures, and ask the same judge the same questions; they differ in what
is made of its answers. A requirement counts as met where the shipped judge names the style, or the thing, that was asked for;
prompts are pairs that no model and no reward was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

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
from benchmarks.experiments.drawn import NUM_SHOWN
from benchmarks.experiments.ground import Form, Ground, stand
from benchmarks.experiments.results import opening, publish, without_pixels
from benchmarks.krablet.rounds import commit, machine
from pleinair.config import config_digest, to_document
from pleinair.pages import Section, page

RUBRIC, ONE = "rubric", "one score"
ARMS: dict[str, Form] = {RUBRIC: "rubric", ONE: "holistic"}
KEPT = 0.95
"""Share of the diversity that the rubric is to keep."""
MEASURES = {
    "satisfied": "requirements met",
    "concept": "thing named",
    "style": "style named",
    "gold_rubric": "gold judge's rubric",
    "reward_rubric": "climbed judge's rubric",
    "diversity": "different pictures of a prompt",
    "gold_artefacts": "with artefacts, by gold",
}


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """Both arms with every seed, then the page; returns it. What is done is kept under `runs` and not done again."""
    plan = SMALL_CLIMB if small else ClimbPlan()
    ground = stand(runs, base, small)
    kept = runs / f"rubric-{config_digest([ground.identity, to_document(plan)])[:12]}"
    probe = Probe(ground, ground.unseen_prompts, plan)
    rows = [
        climbed(ground, arm, ground.mix({"rubric": 1.0}, form), [form], plan, probe, seed, kept)
        for seed in plan.seeds
        for arm, form in ARMS.items()
    ]
    told = {"verdicts": verdicts(rows), "plan": asdict(plan), "rewards": {n: f.told for n, f in ground.fitted.items()}}
    document = {"rows": without_pixels(rows), **told}
    return publish(out, "rubric", document, report(rows, ground, probe, plan))


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What was to be reached, and whether it was."""
    mean, half = apart(rows, RUBRIC, ONE, "satisfied")
    word = "reached" if mean - half > 0 else "reached within the noise" if mean > 0 else "not reached"
    base = rows[0]["points"][0]["diversity"]
    own, other = (float(np.mean(last_of(rows, arm, "diversity"))) for arm in (RUBRIC, ONE))
    kept = min(own / other, own / base)
    return [
        f"The rubric meets {mean:+.3f} \u00b1 {half:.3f} more of what held-out prompts require than one score; to reach: more, "
        f"{word}.",
        f"Different pictures of a prompt: base {base:.2f}, rubric {own:.2f}, one score {other:.2f}. Of both others' the rubric "
        f"keeps {kept:.0%} at least; to reach: {KEPT:.0%}, {'reached' if kept >= KEPT else 'not reached'}.",
    ]


def report(rows: Sequence[Row], ground: Ground, probe: Probe, plan: ClimbPlan) -> str:
    """The page."""
    drawn = probe.draw(ground.sampler())[:: probe.each][:NUM_SHOWN]
    sections = [
        Section(heading="Numbers", body=arms_table(rows, MEASURES)),
        Section(heading="Requirements met", body=curves(rows, "satisfied", "of held-out prompts")),
        Section(heading="Diversity", body=curves(rows, "diversity", "different pictures of a prompt")),
        Section(heading="The same prompts and noise", body=last_pictures(rows, probe, drawn)),
        Section(heading="The rewards", body=ground.facts()),
    ]
    how = f"{plan.num_iterations} iterations of {plan.num_groups * plan.group_size} pictures, seeds {plan.seeds}"
    footer = f"make experiment-rubric, commit {commit()}, {machine()}. {how}; base {ground.base}."
    return page("A rubric against one score", opening(__doc__, verdicts(rows)), sections, footer=footer)
