"""What the experiments on post-training stand on, measured before any of them: is there something to learn, and who can tell?

    ground --kept checkpoints, drawn without guidance--> is the reward neither at its floor nor at its ceiling?
           --base, several guidances--> which one helps, on held-out prompts, by judges that nobody climbs
           --GRPO and DiffusionNFT with three learning rates each, one seed--> which one moves, and which one breaks

Settings of the experiments are chosen by these numbers and by none of their own. The reward is taken on trained prompts without
guidance, as rollouts are drawn; a group is flat where all of its pictures earn the same, so that it teaches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.experiments.climbing import SMALL_CLIMB, ClimbPlan, Probe, climbed
from benchmarks.experiments.drawn import SIDE, Scorer
from benchmarks.experiments.ground import Ground, stand
from benchmarks.experiments.results import footer, named, once, opening, publish, without_pixels
from pleinair.checkpoint.store import list_checkpoints
from pleinair.config import config_digest, to_document
from pleinair.pages import Html, Section, page, table
from pleinair.records.rewards import RewardContext
from pleinair.sampling import SamplingConfig

GUIDANCES = (0.0, 1.0, 2.0, 3.0, 4.5)
CLIMBS: tuple[tuple[Literal["grpo", "nft"], float], ...] = (
    ("grpo", 1e-5), ("grpo", 3e-5), ("grpo", 1e-4), ("nft", 1e-4), ("nft", 3e-4), ("nft", 5e-4),
)  # fmt: skip
WEIGHTS = {"rubric": 1.0, "artefact": 0.5}
SHORT = replace(ClimbPlan(), seeds=(0,), num_iterations=24)
NUM_FEATURES = 24
START = {
    "reward": "rubric",
    "within": "deviation in a group",
    "flat": "flat groups",
    "passes": "passes the gate",
    "unsound": "with artefacts",
}
GUIDED = {
    "satisfied": "requirements met",
    "concept": "thing named",
    "style": "style named",
    "gold_rubric": "gold judge's rubric",
    "gold_artefacts": "with artefacts, by gold",
    "unlikeness": "unlikeness of recognised pictures",
    "frechet": "Frechet distance",
    "saturation": "saturation",
}
CLIMBED = {
    "reward_rubric": "climbed judge's rubric",
    "gold_rubric": "gold judge's rubric",
    "satisfied": "requirements met",
    "gold_artefacts": "with artefacts, by gold",
}


def run(runs: Path, home: Path | None, out: Path, base: str | None = None, small: bool = False) -> Path:
    """The ground, then the page; returns it. What is done is kept under `runs` and not done again."""
    plan = SMALL_CLIMB if small else SHORT
    ground = stand(runs, base, small)
    kept = runs / f"ground-{config_digest([ground.identity, to_document(plan), GUIDANCES, WEIGHTS])[:12]}"
    trained, unseen = (Probe(ground, prompts, plan) for prompts in (ground.trained_prompts, ground.unseen_prompts))
    found = {
        "starts": [once(kept / f"start-{one.name}.json", partial(start_of, ground, trained, one)) for one in bases(ground)],
        "guidance": [once(kept / f"guidance-{g:g}.json", partial(guided, ground, unseen, g)) for g in GUIDANCES],
        "rates": without_pixels([rate_row(ground, unseen, plan, *climb, kept) for climb in CLIMBS]),
        "real": once(kept / "real.json", lambda: without_pixels([scorer(ground).of_real()])[0]),
        "num_prompts": {"trained": len(ground.trained_prompts), "unseen": len(ground.unseen_prompts)},
    }  # fmt: skip
    return publish(out, "ground", found, report(found, ground))


def bases(ground: Ground) -> list[Path]:
    """The base and its kept earlier checkpoints, the earliest first."""
    return list_checkpoints(ground.base.parent)


def start_of(ground: Ground, probe: Probe, checkpoint: Path) -> dict[str, Any]:
    """What climbing would begin with: rewards on trained prompts, without guidance."""
    pixels = probe.draw(ground.sampler(checkpoint))
    texts = [prompt for prompt, _, _ in probe.prompts]
    context = RewardContext(seeds=(0,) * len(pixels), groups=tuple(np.arange(len(pixels)) // probe.each))
    assessed = ground.mix(WEIGHTS).assess(texts, pixels, context)
    rubric = assessed.values["rubric"].reshape(-1, probe.each)
    advantages = assessed.advantages.reshape(-1, probe.each)
    said = ground.fitted["reward"].rubric().score(texts, pixels, context)
    return {
        "checkpoint": checkpoint.name,
        "reward": float(rubric.mean()),
        "within": float(rubric.std(axis=1).mean()),
        "flat": float((np.ptp(advantages, axis=1) == 0).mean()),
        "passes": float(said.gates["rubric.essential"].mean()),
        "unsound": float((ground.fitted["gold"].artefacts.sound(pixels) < 0.5).mean()),
    }


def guided(ground: Ground, probe: Probe, guidance: float) -> dict[str, Any]:
    """The base's held-out prompts drawn with some guidance, and what is said of them."""
    sampler = ground.sampler()
    config = SamplingConfig(num_steps=28, guidance=guidance, resolution=SIDE)
    drawn = scorer(ground).of_model(sampler, config)
    return {"guidance": guidance, **probe.values(probe.draw(sampler, guidance, 28)), "frechet": drawn["frechet"]}


def scorer(ground: Ground) -> Scorer:
    """Over all held-out pictures."""
    return Scorer([one for one in ground.pictures if one.held_out], ground.pictures, NUM_FEATURES)


def rate_row(
    ground: Ground, probe: Probe, plan: ClimbPlan, method: Literal["grpo", "nft"], rate: float, kept: Path
) -> dict[str, Any]:
    """A short climb by one method with one learning rate."""
    own = replace(plan, method=method, learning_rate=rate)
    return climbed(ground, f"{method} {rate:g}", ground.mix(WEIGHTS), [WEIGHTS], own, probe, plan.seeds[0], kept)


def rows_of(rows: Sequence[dict[str, Any]], name: str, keys: dict[str, str]) -> Html:
    """A table with a row for each."""
    return table([name, *keys.values()], [[str(row[name]), *(f"{row[key]:.3f}" for key in keys)] for row in rows])


def report(found: dict[str, Any], ground: Ground) -> str:
    """The page."""
    real, counts = found["real"], found["num_prompts"]
    facts = [
        f"{counts['trained']} prompts may be climbed, {counts['unseen']} of held-out pairs measure.",
        f"The shipped judge names the thing of {real['concept']:.3f} and the style of {real['style']:.3f} of the real "
        f"held-out pictures at 32 px through the autoencoder ({real['raw_concept']:.3f} and {real['raw_style']:.3f} before it).",
    ]
    ends = [{"arm": row["arm"], **row["points"][-1]} for row in found["rates"]]
    first = {"arm": "base", **found["rates"][0]["points"][0]}
    sections = [
        Section(heading="What climbing begins with", body=rows_of(found["starts"], "checkpoint", START)),
        Section(heading="Guidance", body=rows_of(found["guidance"], "guidance", GUIDED)),
        Section(heading="Climbs by method and learning rate", body=rows_of([first, *ends], "arm", CLIMBED)),
        Section(heading="The rewards", body=ground.facts()),
    ]
    return page(
        "What the experiments on post-training stand on",
        opening(__doc__, facts),
        sections,
        footer=footer(ground.runs, "ground", f"Base {named(ground.base)}"),
    )
