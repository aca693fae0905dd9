"""Does reinforcement learning without guidance bring plain samples near guided ones?

    base --GRPO, no guidance in rollout or update--> climbed
    base, climbed --drawn plain and with guidance, same prompts and noise--> gap before, gap after

The gap is what guidance adds: the measure of guided pictures less that of plain ones, on held-out pairs. It is told by judges that
nobody climbed. A gap counts as closed by what is gone of it; the climbed model's plain pictures are also set against the
base's guided ones, since a gap can close from above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.experiments.climbing import SMALL_CLIMB, ClimbPlan, Probe, Row, climbed
from benchmarks.experiments.drawn import NUM_SHOWN, shown
from benchmarks.experiments.ground import Ground, stand
from benchmarks.experiments.results import once, opening, publish, without_pixels
from benchmarks.krablet.rounds import commit, machine
from pleinair.config import config_digest, to_document
from pleinair.pages import GridCell, GridRow, Html, Section, grid, page, table

GUIDANCE = 3.0
WEIGHTS = {"rubric": 1.0, "artefact": 0.5}
WAYS = {"plain": 0.0, "guided": GUIDANCE}
CLOSED = 0.5
"""Share of the gap that is to be gone."""
HEADLINE = {"satisfied": "requirements met", "gold_rubric": "gold judge's rubric"}
MEASURES = {
    **HEADLINE,
    "concept": "thing named",
    "style": "style named",
    "diversity": "different pictures of a prompt",
    "gold_artefacts": "with artefacts, by gold",
    "fine_detail": "fine detail",
    "saturation": "saturation",
}


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """Every seed, before and after, then the page; returns it. What is done is kept under `runs` and not done again."""
    plan = SMALL_CLIMB if small else ClimbPlan()
    ground = stand(runs, base, small)
    kept = runs / f"guidance-{config_digest([ground.identity, to_document(plan), WEIGHTS])[:12]}"
    probe = Probe(ground, ground.unseen_prompts, plan)
    arms = [climbed(ground, "climbed", ground.mix(WEIGHTS), [WEIGHTS], plan, probe, seed, kept) for seed in plan.seeds]
    rows = [both_ways(ground, probe, "base", 0, ground.base, kept)]
    rows += [both_ways(ground, probe, "climbed", arm["seed"], Path(arm["checkpoint"]), kept) for arm in arms]
    told = {"verdicts": verdicts(rows), "plan": asdict(plan), "rewards": {n: f.told for n, f in ground.fitted.items()}}
    plain = [
        {**row, "plain": without_pixels([row["plain"]])[0], "guided": without_pixels([row["guided"]])[0]}
        for row in rows
    ]
    document = {"rows": plain, "curves": without_pixels(arms), **told}
    return publish(out, "guidance", document, report(rows, ground, probe, plan))


def both_ways(ground: Ground, probe: Probe, name: str, seed: int, checkpoint: Path, home: Path) -> Row:
    """A model's pictures with and without guidance, measured."""

    def made() -> Row:
        sampler, found = ground.sampler(checkpoint), {}
        for way, guidance in WAYS.items():
            pixels = probe.draw(sampler, guidance)
            found[way] = {**probe.values(pixels), "pixels": pixels[:: probe.each][:NUM_SHOWN].tolist()}
        return found

    return {"model": name, "seed": seed, **once(home / f"ways-{name}-{seed}.json", made)}


def gaps(rows: Sequence[Row], key: str) -> tuple[float, list[float]]:
    """What guidance adds to the base, and to each seed's climbed model."""
    found = [(row["model"], row["guided"][key] - row["plain"][key]) for row in rows]
    (before,) = [gap for name, gap in found if name == "base"]
    return before, [gap for name, gap in found if name == "climbed"]


def verdicts(rows: Sequence[Row]) -> list[str]:
    """How much of each gap is gone, and whether that is enough."""
    told = []
    (base,) = [row for row in rows if row["model"] == "base"]
    for key, says in HEADLINE.items():
        before, after = gaps(rows, key)
        plain = shown([row["plain"][key] for row in rows if row["model"] == "climbed"])
        beside = (
            f"Plain pictures go from {base['plain'][key]:.3f} to {plain}; guided ones of the base have "
            f"{base['guided'][key]:.3f}."
        )
        if before <= 0:
            told.append(f"{says}: guidance adds {before:+.3f} to the base, so there is no gap to close. {beside}")
            continue
        gone = [1 - gap / before for gap in after]
        word = "reached" if float(np.mean(gone)) >= CLOSED else "not reached"
        told.append(
            f"{says}: guidance adds {before:+.3f} before and {np.mean(after):+.3f} after, {shown(gone, '.0%')} of the gap is gone; "
            f"to reach: {CLOSED:.0%}, {word}. {beside}"
        )
    return told


def ways_table(rows: Sequence[Row]) -> Html:
    """Both models, both ways, means over seeds with intervals."""
    cells = []
    for model in ("base", "climbed"):
        of = [row for row in rows if row["model"] == model]
        for way in WAYS:
            cells.append([f"{model}, {way}", *(shown([row[way][key] for row in of]) for key in MEASURES)])
    return table(["pictures", *MEASURES.values()], cells)


def report(rows: Sequence[Row], ground: Ground, probe: Probe, plan: ClimbPlan) -> str:
    """The page."""
    columns = {
        f"{row['model']}, {way}": np.array(row[way]["pixels"], np.uint8)
        for row in rows
        if row["seed"] == plan.seeds[0] or row["model"] == "base"
        for way in WAYS
    }
    texts = [prompt for prompt, _, _ in probe.prompts[:: probe.each][:NUM_SHOWN]]
    listed = [
        GridRow(name=text, cells=[GridCell(picture=pixels[place], alt=text) for pixels in columns.values()])
        for place, text in enumerate(texts)
    ]
    sections = [
        Section(heading="Numbers", body=ways_table(rows)),
        Section(heading="The same prompts and noise", body=grid(list(columns), listed)),
        Section(heading="The rewards", body=ground.facts()),
    ]
    how = f"{plan.num_iterations} iterations of {plan.num_groups * plan.group_size} pictures, guidance {GUIDANCE:g}"
    footer = f"make experiment-guidance, commit {commit()}, {machine()}. {how}, seeds {plan.seeds}; base {ground.base}."
    return page("Plain samples near guided ones", opening(__doc__, verdicts(rows)), sections, footer=footer)
