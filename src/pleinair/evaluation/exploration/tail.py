"""E6: is what is rare in training drawn as well as what is common?"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pleinair.evaluation.exploration.measured import Measured, measured
from pleinair.evaluation.exploration.sheet import Sheet
from pleinair.evaluation.exploration.world import World


def tail(sheet: Sheet, judge: str) -> list[Measured]:
    """`tail_gap`: recognised share of the third of things with most training pictures minus that of the third with least.

    Things are the units; a plan with fewer than three says nothing.
    """
    told = sheet.of_kind("specified", "unseen", "default")
    hit = told.concept_hit(judge)
    rare, common = thirds(sheet.world, set(told.labels))
    if not rare:
        raise ValueError(f"{len(set(told.labels))} things have no rarest third: draw three or more")
    side = dict.fromkeys(rare, 2) | dict.fromkeys(common, 0)
    sums: dict[str, list[float]] = {}
    for label, right in zip(told.labels, hit, strict=True):
        if label in side:
            unit = sums.setdefault(label, [0.0] * 4)
            unit[side[label]] += right
            unit[side[label] + 1] += 1
    return [measured("tail_gap", sums, len(told))]


def thirds(world: World, labels: Iterable[str]) -> tuple[list[str], list[str]]:
    """The things with least training pictures, and those with most; ties go by name."""
    counts = np.bincount(world.concepts[world.trained_rows], minlength=len(world.concept_names))
    things = sorted(labels, key=lambda label: (counts[world.concept_of_label[label]], label))
    third = len(things) // 3
    return things[:third], things[len(things) - third :]


def recall_by_count(sheet: Sheet, judge: str) -> list[tuple[int, float, int]]:
    """Training pictures of a thing, share of its pictures that are recognised, pictures: the curve of the page."""
    told, world = sheet.of_kind("specified", "unseen", "default"), sheet.world
    hit = told.concept_hit(judge)
    counts = np.bincount(world.concepts[world.trained_rows], minlength=len(world.concept_names))
    of = np.array([counts[world.concept_of_label[label]] for label in told.labels])
    return [(int(count), float(hit[of == count].mean()), int((of == count).sum())) for count in np.unique(of)]
