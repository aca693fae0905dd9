"""A small known world without a picture worth looking at, and sheets whose judges never err: what measures are tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pleinair.curation.heldout import held_out
from pleinair.evaluation.exploration.requests import Asked, Request
from pleinair.evaluation.exploration.sheet import JUDGES, Seen, Sheet
from pleinair.evaluation.exploration.world import World
from pleinair.model.judge import JudgeScores

STYLES = ("ink", "oil", "chalk", "pixel", "paper")
LABELS = tuple(f"thing {number:02}" for number in range(24))
WIDTH = 64


def small_world() -> World:
    """Every thing in every style; which pairs are held out is the product's own rule."""
    cells = [(concept, style) for concept in range(len(LABELS)) for style in range(len(STYLES))]
    return World(
        keys=[f"{LABELS[concept]}/{STYLES[style]}" for concept, style in cells],
        pictures=np.zeros((len(cells), 64, 64, 3), np.uint8),
        styles=np.array([style for _, style in cells]),
        concepts=np.array([concept for concept, _ in cells]),
        held_out=np.array([held_out(LABELS[concept], STYLES[style]) for concept, style in cells]),
        style_names=STYLES,
        concept_names=LABELS,
        concept_of_label={label: number for number, label in enumerate(LABELS)},
        trained_labels=LABELS,
    )


WORLD = small_world()
FEATURES = np.random.default_rng(5).normal(size=(len(WORLD.keys), WIDTH)).astype(np.float32)
"""One vector per real picture; things share a part, so that a classifier can learn them."""
FEATURES += 2 * np.random.default_rng(6).normal(size=(len(LABELS), WIDTH)).astype(np.float32)[WORLD.concepts]
COPIES = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)

Answer = Callable[[Asked], int | None]
"""The row of the world that a subject answers with; None for nothing that anyone could name."""


def asked(seeds: int = 6) -> list[Asked]:
    """Open prompts, told pairs, and pairs kept from training."""
    open_prompts = [Request(kind="default", prompt=label, label=label) for label in LABELS]
    told = [
        Request(
            kind="unseen" if held_out(label, style) else "specified",
            prompt=f"{label}, {style}",
            label=label,
            style=style,
        )
        for label in LABELS
        for style in STYLES
    ]
    return [Asked(one, 1000 * place + again) for place, one in enumerate(open_prompts) for again in range(seeds)] + [
        Asked(one, 77 * place) for place, one in enumerate(told)
    ]


def real(one: Asked) -> int:
    """A right answer."""
    style = one.request.style or STYLES[int(np.random.default_rng(one.seed).integers(len(STYLES)))]
    row = WORLD.row(one.request.label, style)
    assert row is not None
    return row


def sheet_of(answer: Answer, requests: Sequence[Asked] | None = None) -> Sheet:
    """The sheet of a subject's answers, with judges that see what is there."""
    requests = asked() if requests is None else requests
    rows = [answer(one) for one in requests]
    rng = np.random.default_rng(9)
    style, concept = np.zeros((len(rows), len(STYLES))), np.zeros((len(rows), len(LABELS)))
    features = rng.normal(size=(len(rows), WIDTH)).astype(np.float32)
    for place, row in enumerate(rows):
        if row is not None:
            style[place, WORLD.styles[row]] = concept[place, WORLD.concepts[row]] = 9
            features[place] = FEATURES[row]
        else:
            # A judge that knows nothing guesses: it names something, and seldom what was asked.
            style[place, rng.integers(len(STYLES))] = 1
            concept[place] = rng.normal(size=len(LABELS))
    scores = JudgeScores(
        style_logits=style.astype(np.float32), concept_logits=concept.astype(np.float32), embedding=features
    )
    copies = features / np.linalg.norm(features, axis=1, keepdims=True)
    pictures = np.zeros((len(rows), 64, 64, 3), np.uint8)
    return Sheet(WORLD, list(requests), pictures, dict.fromkeys(JUDGES, scores), features, copies, [Seen()] * len(rows))
