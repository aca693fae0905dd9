"""E3: does a classifier that learned from these pictures alone know the real ones? (After arXiv 2602.19946.)

    pictures of told pairs --frozen features, linear classifier--> tested on real pictures of pairs kept from training

The classifier sees as many pictures per thing whatever the subject; real pictures of trained pairs give the upper end.
Pretty pictures that all look alike teach little, and neither do diverse ones of the wrong thing.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from pleinair.evaluation.exploration.measured import Measured, mean_by_unit, measured
from pleinair.evaluation.exploration.sheet import Sheet
from pleinair.evaluation.features import Features

STEPS = 150
LEARNING_RATE = 0.01
WEIGHT_DECAY = 0.5
MAX_PER_CONCEPT = 8
"""Pictures of a thing the classifier learns from."""


def transfer(sheet: Sheet, test_rows: npt.NDArray[np.int64], test_features: Features) -> list[Measured]:
    """`transfer`: share of real held-out pictures that are named. `test_rows` are rows of the world, with their features."""
    world, told = sheet.world, sheet.of_kind("specified")
    concepts_N = np.array([world.concept_of_label[label] for label in told.labels], np.int64)
    order = in_turn(told)
    rows = order[few_of_each(concepts_N[order], MAX_PER_CONCEPT)]
    known = np.unique(concepts_N[rows])
    tested = np.isin(world.concepts[test_rows], known)
    if not len(known) or not tested.any():
        raise ValueError("no held-out picture shows a thing that was drawn: draw more prompts with a style")
    logits_NK = classify(
        told.features[rows], np.searchsorted(known, concepts_N[rows]), test_features[tested], len(known)
    )
    right = known[logits_NK.argmax(axis=1)] == world.concepts[test_rows][tested]
    units = [world.concept_names[concept] for concept in world.concepts[test_rows][tested]]
    return [measured("transfer", mean_by_unit(units, right), len(rows))]


def in_turn(sheet: Sheet) -> npt.NDArray[np.int64]:
    """The first picture of every prompt, then the second, and so on, whatever the order of work."""
    units, drawn = sheet.units, Counter[str]()
    keyed: list[tuple[int, str, int]] = []
    for row in sorted(range(len(sheet)), key=lambda row: sheet.asked[row].seed):
        keyed.append((drawn[units[row]], units[row], row))
        drawn[units[row]] += 1
    return np.array([row for *_, row in sorted(keyed)], np.int64)


def few_of_each(concepts_N: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """The first rows of each concept, at most `most`."""
    seen: dict[int, int] = {}
    chosen = []
    for row, concept in enumerate(concepts_N.tolist()):
        seen[concept] = seen.get(concept, 0) + 1
        if seen[concept] <= most:
            chosen.append(row)
    return np.array(chosen, np.int64)


def classify(
    train_NF: Features, labels_N: npt.NDArray[np.int64], test_MF: Features, num_classes: int
) -> npt.NDArray[np.float32]:
    """(M, K) logits of a linear softmax classifier fitted by full-batch AdamW from zero; the same bits every time."""
    x_NF = F.normalize(torch.from_numpy(train_NF), dim=1)
    y_N = torch.from_numpy(labels_N)
    weights_FK = torch.zeros(x_NF.shape[1], num_classes, requires_grad=True)
    optimiser = torch.optim.AdamW([weights_FK], LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(STEPS):
        optimiser.zero_grad()
        F.cross_entropy(10 * x_NF @ weights_FK, y_N).backward()
        optimiser.step()
    with torch.inference_mode():
        logits: npt.NDArray[np.float32] = (F.normalize(torch.from_numpy(test_MF), dim=1) @ weights_FK).numpy()
    return logits
