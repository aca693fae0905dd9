"""Does reinforcement learning without guidance bring plain samples near guided ones?

    base --GRPO, no guidance in rollout or update--> climbed
    base, climbed --drawn plain and with guidance, same prompts and noise--> gap before, gap after

The gap is what guidance adds to the base: the measure of guided pictures less that of plain ones, on held-out pairs, by judges that
nobody climbed. It is closed by what the climbed model's plain pictures gain of it; that its own guided ones come down to its
plain ones is told beside it and closes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from benchmarks.experiments.climbing import SMALL_CLIMB, ClimbPlan, Probe, Row, climbed
from benchmarks.experiments.drawn import shown, spread
from benchmarks.experiments.ground import Ground, stand
from benchmarks.experiments.paired import Interval, verdict
from benchmarks.experiments.results import footer, named, once, opening, publish, without_pixels
from pleinair.config import config_digest, to_document
from pleinair.pages import GridCell, GridRow, Html, Section, grid, page, table

GUIDANCE = 3.0
WEIGHTS = {"rubric": 1.0, "artefact": 0.5}
WAYS = {"plain": 0.0, "guided": GUIDANCE}
LONG = replace(ClimbPlan(), num_iterations=80, probe_every=16)
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
    plan = SMALL_CLIMB if small else LONG
    ground = stand(runs, base, small)
    kept = runs / f"guidance-{config_digest([ground.identity, to_document(plan), WEIGHTS, GUIDANCE])[:12]}"
    probe = Probe(ground, ground.unseen_prompts, plan)
    arms = [climbed(ground, "climbed", ground.mix(WEIGHTS), [WEIGHTS], plan, probe, seed, kept) for seed in plan.seeds]
    rows = [both_ways(ground, probe, "base", 0, ground.base, kept)]
    rows += [both_ways(ground, probe, "climbed", arm["seed"], kept / arm["checkpoint"], kept) for arm in arms]
    told = {"verdicts": verdicts(rows), "plan": asdict(plan), "rewards": {n: f.told for n, f in ground.fitted.items()}}
    plain = [{**row, **{way: without_pixels([row[way]])[0] for way in WAYS}} for row in rows]
    document = {"rows": plain, "curves": without_pixels(arms), **told}
    return publish(out, "guidance", document, report(rows, ground, probe, plan))


def both_ways(ground: Ground, probe: Probe, name: str, seed: int, checkpoint: Path, home: Path) -> Row:
    """A model's pictures with and without guidance, measured."""

    def made() -> Row:
        sampler, found = ground.sampler(checkpoint), {}
        for way, guidance in WAYS.items():
            pixels = probe.draw(sampler, guidance)
            found[way] = {
                **probe.values(pixels),
                "by_prompt": probe.by_prompt(pixels),
                "pixels": pixels[list(probe.shown)].tolist(),
            }
        return found

    return {"model": name, "seed": seed, **once(home / f"ways-{name}-{seed}.json", made)}


def gap_of(row: Row, key: str) -> tuple[float, float]:
    """What guidance adds to a model, and half of its 95% interval over prompts."""
    guided, plain = (np.array(row[way]["by_prompt"][key]) for way in ("guided", "plain"))
    return spread((guided - plain).tolist())


def beyond_by_prompt(base: Row, climbed_rows: Sequence[Row], key: str) -> Interval:
    """95% over prompts of what climbing adds to plain pictures beyond the wanted share of the gap."""
    guided, plain = (np.array(base[way]["by_prompt"][key]) for way in ("guided", "plain"))
    after = np.mean([row["plain"]["by_prompt"][key] for row in climbed_rows], axis=0)
    mean, half = spread((after - plain - CLOSED * (guided - plain)).tolist())
    return mean - half, mean + half


def verdicts(rows: Sequence[Row]) -> list[str]:
    """How much of each gap is closed, and whether that is enough."""
    told = []
    (base,) = [row for row in rows if row["model"] == "base"]
    climbed_rows = [row for row in rows if row["model"] == "climbed"]
    for key, says in HEADLINE.items():
        gap, half = gap_of(base, key)
        start, plain = base["plain"][key], [row["plain"][key] for row in climbed_rows]
        guided = shown([row["guided"][key] for row in climbed_rows])
        beside = f"Plain pictures go from {start:.3f} to {shown(plain)}, guided ones from {base['guided'][key]:.3f} to {guided}."
        if not gap - half > 0:
            told.append(f"{says}: guidance adds {gap:+.3f} \u00b1 {half:.3f} to the base, so there is no gap. {beside}")
            continue
        share = [(one - start) / gap for one in plain]
        beyond = [one - start - CLOSED * gap for one in plain]
        told.append(
            f"{says}: guidance adds {gap:+.3f} \u00b1 {half:.3f} to the base; plain pictures close {shown(share, '.0%')} of it; to "
            f"reach: {CLOSED:.0%}, {verdict(beyond, beyond_by_prompt(base, climbed_rows, key))} over seeds and prompts. {beside}"
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
    texts = [probe.prompts[row][0] for row in probe.shown]
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
    return page(
        "Plain samples near guided ones",
        opening(__doc__, verdicts(rows)),
        sections,
        footer=footer(ground.runs, "guidance", f"{how}, seeds {plan.seeds}; base {named(ground.base)}"),
    )
