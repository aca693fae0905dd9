"""A person checks a detector: a sheet of numbered pictures, answers as events, and what they say of recall and precision.

    scored pictures --strata: over the threshold, just under, the rest--> sheet (shuffled, no scores shown) --> page
    answers "pictures 3 and 17 show it, the rest do not" --> detector_labels, origin human --> estimate

A sheet shows few of many, more of those that matter, so each answer stands for as many pictures as its stratum has for each
one shown. Answers are about the picture, not the detector, so they measure later versions too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pleinair.config import from_document, write_config
from pleinair.curation.detectors.detector import Manifest
from pleinair.curation.detectors.labels import LabelEvent
from pleinair.curation.detectors.measures import Share
from pleinair.curation.detectors.stage import score_column
from pleinair.krablet import Table
from pleinair.records.errors import ConfigError

OVER, NEAR, UNDER = "over", "near", "under"
_DRAWS = 4000


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Numbered pictures to be checked, and how many each stands for."""

    detector: str
    version: int
    prompt: str
    threshold: float
    names: tuple[str, ...]
    """In the order shown: picture 1 is the first."""
    strata: tuple[str, ...]
    """The stratum of each."""
    sizes: dict[str, int]
    """Pictures in each stratum, shown or not."""


@dataclass(frozen=True)
class Estimate:
    """What answers say of a detector over all scored pictures."""

    precision: Share
    """Of checked pictures over the threshold, those that show it."""
    recall: float
    recall_interval: tuple[float, float]
    """95%, by draws from the posterior of every stratum's share (Jeffreys' prior)."""
    num_answers: int


def draw_sheet(images: Table, manifest: Manifest, *, threshold: float, most: int, seed: int = 0) -> Sheet:
    """Half from over the threshold, a quarter from the scores just under it, a quarter from the rest.

    Raises ConfigError when nothing is scored.
    """
    column = score_column(manifest)
    found = images.read(where=f"{column} IS NOT NULL", columns=["image_name", column])
    scores = {row["image_name"]: row[column] for batch in found for row in batch.to_pylist()}
    if not scores:
        raise ConfigError(
            f"no picture has a score of {manifest.label}: run 'pleinair detector run {manifest.name}' first"
        )
    strata = _strata(scores, threshold, most)
    shares = {OVER: most // 2, NEAR: most // 4, UNDER: most - most // 2 - most // 4}
    shown = [
        (name, stratum)
        for stratum, members in strata.items()
        for name in sorted(members, key=lambda name: _order(name, seed))[: shares[stratum]]
    ]
    shown.sort(key=lambda one: _order(one[0], seed + 1))  # or their places would tell the scores
    return Sheet(
        detector=manifest.name,
        version=manifest.version,
        prompt=manifest.prompt,
        threshold=threshold,
        names=tuple(name for name, _ in shown),
        strata=tuple(stratum for _, stratum in shown),
        sizes={stratum: len(members) for stratum, members in strata.items()},
    )


def _strata(scores: Mapping[str, float], threshold: float, most: int) -> dict[str, list[str]]:
    ordered = sorted(scores, key=lambda name: (-scores[name], name))
    num_over = sum(score > threshold for score in scores.values())
    near = num_over + max(most, round(0.05 * len(ordered)))
    return {OVER: ordered[:num_over], NEAR: ordered[num_over:near], UNDER: ordered[near:]}


def _order(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def sheet_path(folder: Path, name: str) -> Path:
    """Where the newest sheet of a detector is kept."""
    return folder / name / "sheet.json"


def write_sheet(sheet: Sheet, folder: Path) -> None:
    """Keep a sheet; it replaces the one before, whose answers stay."""
    write_config(sheet, sheet_path(folder, sheet.detector))


def read_sheet(folder: Path, name: str) -> Sheet:
    """The newest sheet. Raises ConfigError when there is none."""
    path = sheet_path(folder, name)
    try:
        return from_document(Sheet, json.loads(path.read_text()))
    except (OSError, ValueError) as missing:
        raise ConfigError(
            f"no sheet of {name!r} at {path} ({missing}): run 'pleinair detector check {name}' first"
        ) from None


def answers_of(sheet: Sheet, yes: Sequence[int], no: Sequence[int], rest: str) -> dict[str, bool]:
    """Picture -> whether it shows it. `rest` is `yes`, `no` or `` (not answered). Raises ConfigError for wrong numbers."""
    if both := set(yes) & set(no):
        raise ConfigError(f"picture {min(both)} is answered yes and no: give one")
    if wrong := [number for number in (*yes, *no) if not 1 <= number <= len(sheet.names)]:
        raise ConfigError(f"there is no picture {wrong[0]}: the sheet has pictures 1 to {len(sheet.names)}")
    told = dict.fromkeys(yes, True) | dict.fromkeys(no, False)
    if rest:
        told = dict.fromkeys(range(1, len(sheet.names) + 1), rest == "yes") | told
    if not told:
        raise ConfigError("no answer given: name pictures with --yes or --no, or all others with --rest")
    return {sheet.names[number - 1]: shows for number, shows in sorted(told.items())}


def estimate(sheet: Sheet, answers: Mapping[str, LabelEvent], *, seed: int = 0) -> Estimate:
    """Precision and recall over all scored pictures, from people's answers to this sheet."""
    stratum_of = dict(zip(sheet.names, sheet.strata, strict=True))
    shown = {stratum: [0, 0] for stratum in sheet.sizes}
    for name, event in answers.items():
        if name in stratum_of:
            shown[stratum_of[name]][0] += event.shows
            shown[stratum_of[name]][1] += 1
    shares = {stratum: Share(*counts) for stratum, counts in shown.items()}
    rng = np.random.default_rng(seed)
    draws = {s: sheet.sizes[s] * rng.beta(of.hits + 0.5, of.total - of.hits + 0.5, _DRAWS) for s, of in shares.items()}
    recalls = draws[OVER] / np.maximum(sum(draws.values()), 1e-12)
    low, high = np.quantile(recalls, [0.025, 0.975])
    return Estimate(
        shares[OVER], _recall(sheet, shares), (float(low), float(high)), sum(of.total for of in shares.values())
    )


def _recall(sheet: Sheet, shares: Mapping[str, Share]) -> float:
    """Pictures found of those that show it, strata scaled up; NaN when a stratum has no answer or nothing shows it."""
    if any(sheet.sizes[stratum] and not share.total for stratum, share in shares.items()):
        return float("nan")
    showing = {s: sheet.sizes[s] * share.value if share.total else 0.0 for s, share in shares.items()}
    total = sum(showing.values())
    return showing[OVER] / total if total else float("nan")
