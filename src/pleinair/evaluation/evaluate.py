"""Named sets of pictures -> the numbers of a run, under the keys of metrics.json.

    sets: train, heldout            what the model drew for pairs it trained on, and for pairs it never saw
          ceiling                   real drawings of held-out pairs
          reconstruction            those drawings through the autoencoder
          floor                     what an untrained model drew
          real                      real drawings of the pairs in train and heldout, for the Frechet distance

The judge always chooses among all concepts and all styles, whatever a set contains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pleinair.evaluation.metrics import (
    Estimate,
    Indices,
    concept_top1,
    concept_top5,
    frechet_distance,
    spread_of,
    style_accuracy,
    vendi_score,
)
from pleinair.model.judge import Judge, JudgeScores, judge_pictures

SET_NAMES = ("train", "heldout", "ceiling", "reconstruction", "floor", "real")
ACCURACIES = ("style_accuracy", "concept_top1", "concept_top5")

Metrics = dict[str, float | int | list[float]]


@dataclass(frozen=True, kw_only=True)
class JudgedSet:
    """Pictures, (N, 64, 64, 3) uint8, with what they should show: (N,) indices into the judge's names."""

    pictures: npt.NDArray[np.uint8]
    styles: Indices
    concepts: Indices

    def __post_init__(self) -> None:
        counts = (len(self.pictures), len(self.styles), len(self.concepts))
        if len(set(counts)) > 1 or not counts[0]:
            raise ValueError(f"{counts[0]} pictures with {counts[1]} styles and {counts[2]} concepts: give one of each")


def evaluate(judge: Judge, sets: Mapping[str, JudgedSet]) -> Metrics:
    """Every number about the sets given; sets left out leave their keys out.

    Beside each number `<key>` stand `<key>_interval` (95%, two numbers) and `<key>_n` (pictures).
    """
    unknown = sorted(set(sets) - set(SET_NAMES))
    if unknown:
        raise ValueError(f"unknown picture set '{unknown[0]}': the names are {', '.join(SET_NAMES)}")
    scores = {name: judge_pictures(judge, one.pictures) for name, one in sets.items()}
    metrics: Metrics = {}
    for name in sets:
        if name != "real":
            for key, estimate in accuracies(scores[name], sets[name]).items():
                metrics |= entries(f"{key}_{name}", estimate)
    return metrics | ratios(metrics) | distances(scores)


def accuracies(scores: JudgeScores, pictures: JudgedSet) -> dict[str, Estimate]:
    """The three accuracies of one set."""
    return {
        "style_accuracy": style_accuracy(scores.style_logits, pictures.styles),
        "concept_top1": concept_top1(scores.concept_logits, pictures.concepts),
        "concept_top5": concept_top5(scores.concept_logits, pictures.concepts),
    }


def ratios(metrics: Metrics) -> Metrics:
    """Held-out, train and reconstruction accuracies as a share of the ceiling: `<key>_<set>_of_ceiling`."""
    shares: Metrics = {}
    for key in ACCURACIES:
        ceiling = metrics.get(f"{key}_ceiling")
        for name in ("heldout", "train", "reconstruction"):
            value = metrics.get(f"{key}_{name}")
            if isinstance(ceiling, float) and ceiling > 0 and isinstance(value, float):
                shares[f"{key}_{name}_of_ceiling"] = value / ceiling
    return shares


def distances(scores: Mapping[str, JudgeScores]) -> Metrics:
    """`frechet` and `diversity` of what the model drew (train and held-out pairs together), and their references.

    `frechet` is measured against `real`; `frechet_reconstruction` and `frechet_floor` likewise, as far as those sets
    are given. `diversity_real` is the Vendi score of the real drawings.
    """
    drawn = [scores[name].embedding for name in ("train", "heldout") if name in scores]
    found: Metrics = {}
    if drawn:
        found |= entries("diversity", spread_of(vendi_score, np.concatenate(drawn)))
    if "real" in scores:
        real = scores["real"].embedding
        found |= entries("diversity_real", spread_of(vendi_score, real))
        compared = {"frechet": np.concatenate(drawn)} if drawn else {}
        compared |= {
            f"frechet_{name}": scores[name].embedding for name in ("reconstruction", "floor") if name in scores
        }
        for key, features in compared.items():
            found |= entries(key, spread_of(frechet_distance, features, real))
    return found


def entries(key: str, estimate: Estimate) -> Metrics:
    """An estimate as three entries of metrics.json."""
    return {key: estimate.value, f"{key}_interval": list(estimate.interval), f"{key}_n": estimate.num}


def accuracy_by_style(
    scores: JudgeScores, pictures: JudgedSet, style_names: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """The three accuracies within each style that occurs."""
    found: dict[str, dict[str, Estimate]] = {}
    for index, name in enumerate(style_names):
        chosen = pictures.styles == index
        if chosen.any():
            part = JudgedSet(
                pictures=pictures.pictures[chosen], styles=pictures.styles[chosen], concepts=pictures.concepts[chosen]
            )
            found[name] = accuracies(scores.take(chosen), part)
    return found
