"""E4 and E5: what is new, what is a copy?

E4  unseen pairs    of pairs told by style, those kept from training against those trained on: hit by both style and thing
E5  near copies     pictures of open prompts: share over the copy threshold to a training picture of the same thing, and
                    share nearer to a trained picture than to a held-out one, of equally many: one half where nothing is
                    copied, as which pairs were held out is chance
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pleinair.evaluation.exploration.measured import Measured, mean_by_unit, measured
from pleinair.evaluation.exploration.sheet import Sheet
from pleinair.evaluation.features import Features


def unseen_pairs(sheet: Sheet, judge: str) -> list[Measured]:
    """`can_unseen`: style and thing of pairs kept from training; `unseen_gap`: trained pairs minus those, by thing."""
    told = sheet.of_kind("specified", "unseen")
    hit = told.style_hit(judge) & told.concept_hit(judge)
    unseen = np.array([one.request.kind == "unseen" for one in told.asked])
    if unseen.all() or not unseen.any():
        raise ValueError(f"{int(unseen.sum())} of {len(unseen)} pairs drawn are held out: draw pairs of both kinds")
    sums: dict[str, list[float]] = {}
    for label, right, new in zip(told.labels, hit, unseen, strict=True):
        unit = sums.setdefault(label, [0.0] * 4)
        unit[2 * new] += right
        unit[2 * new + 1] += 1
    kept = [unit for unit, new in zip(told.units, unseen, strict=True) if new]
    return [
        measured("can_unseen", mean_by_unit(kept, hit[unseen]), int(unseen.sum())),
        measured("unseen_gap", sums, len(told)),
    ]


def near_copies(sheet: Sheet, real_copies_ND: Features, threshold: float, *, seed: int = 0) -> list[Measured]:
    """`near_copies` and `nearer_to_trained`; `real_copies_ND` is the copy embedding of the world's pictures, row by row."""
    world, open_prompts = sheet.world, sheet.of_kind("default")
    rng = np.random.default_rng(seed)
    copies, nearer, halves = [], [], []
    references = {label: _references(sheet, label, rng) for label in dict.fromkeys(open_prompts.labels)}
    for place, label in enumerate(open_prompts.labels):
        rows = world.rows_of_concept[world.concept_of_label[label]]
        trained, held_out = references[label]
        picture_D = open_prompts.copies[place]
        copies.append((real_copies_ND[rows[~world.held_out[rows]]] @ picture_D).max(initial=-1.0) > threshold)
        if len(held_out):
            nearest = [float((real_copies_ND[side] @ picture_D).max()) for side in (trained, held_out)]
            nearer.append(float(nearest[0] > nearest[1]))
            halves.append(open_prompts.units[place])
    measures = [measured("near_copies", mean_by_unit(open_prompts.units, np.array(copies)), len(copies))]
    if nearer:
        measures.append(measured("nearer_to_trained", mean_by_unit(halves, np.array(nearer)), len(nearer)))
    return measures


def _references(sheet: Sheet, label: str, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], ...]:
    """As many trained as held-out pictures of a thing."""
    world = sheet.world
    rows = world.rows_of_concept[world.concept_of_label[label]]
    trained, held_out = rows[~world.held_out[rows]], rows[world.held_out[rows]]
    num = min(len(trained), len(held_out))
    return rng.choice(trained, num, replace=False), rng.choice(held_out, num, replace=False)
