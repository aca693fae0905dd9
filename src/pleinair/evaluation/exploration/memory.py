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
    open_prompts = sheet.of_kind("default")
    nearer, halves = [], []
    references = {label: _references(sheet, label, seed) for label in set(open_prompts.labels)}
    for place, label in enumerate(open_prompts.labels):
        trained, held_out = references[label]
        picture_D = open_prompts.copies[place]
        if len(held_out):
            nearest = [float((real_copies_ND[side] @ picture_D).max()) for side in (trained, held_out)]
            nearer.append(float(nearest[0] > nearest[1]))
            halves.append(open_prompts.units[place])
    copied = np.array([likeness > threshold for _, likeness in nearest_trained(open_prompts, real_copies_ND)])
    measures = [measured("near_copies", mean_by_unit(open_prompts.units, copied), len(copied))]
    if len(set(halves)) > 1:
        measures.append(measured("nearer_to_trained", mean_by_unit(halves, np.array(nearer)), len(nearer)))
    return measures


def nearest_trained(sheet: Sheet, real_copies_ND: Features) -> list[tuple[int, float]]:
    """Of each picture the training picture of its thing that it is most like, as a row of the world, and how much."""
    world = sheet.world
    found: list[tuple[int, float]] = []
    for label, picture_D in zip(sheet.labels, sheet.copies, strict=True):
        rows = world.rows_of_concept[world.concept_of_label[label]]
        rows = rows[~world.held_out[rows]]
        likeness = real_copies_ND[rows] @ picture_D
        best = int(likeness.argmax()) if len(rows) else -1
        found.append((int(rows[best]), float(likeness[best])) if len(rows) else (-1, -1.0))
    return found


def _references(sheet: Sheet, label: str, seed: int) -> tuple[npt.NDArray[np.int64], ...]:
    """As many trained as held-out pictures of a thing, whatever else is asked."""
    world = sheet.world
    concept = world.concept_of_label[label]
    rows, rng = world.rows_of_concept[concept], np.random.default_rng([seed, concept])
    trained, held_out = rows[~world.held_out[rows]], rows[world.held_out[rows]]
    num = min(len(trained), len(held_out))
    return rng.choice(trained, num, replace=False), rng.choice(held_out, num, replace=False)
