"""E7: a style reference. Does the style come over, and does anything else?

    trial = reference picture (style S, thing R), prompt (thing P), strength, result
    hit           the result is judged S
    leak          the result is judged R, minus how often pictures of P from the same prompts without a reference are
    kept          the result still shows P
    strength      hits must not fall as the strength rises; a mix of two references must lie between them

Two by two controls say what a measure can see: real pictures that are right in (style, thing), in one, in neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pleinair.evaluation.exploration.measured import Measured, mean_by_unit, measured
from pleinair.evaluation.exploration.sheet import NUM_GUESSES, among_first
from pleinair.model.judge import JudgeScores


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one result should and should not show; indices into the judges' names."""

    reference_style: int
    reference_concept: int
    prompt_concept: int
    strength: float = 1.0
    mixed_with_style: int = -1
    """The second reference's style in a mix; -1 for none."""

    @property
    def unit(self) -> str:
        """Trials of one prompt and one style are one unit."""
        return f"{self.prompt_concept} in {self.reference_style}"


def style_reference(trials: Sequence[Trial], with_it: JudgeScores, without_it: JudgeScores) -> list[Measured]:
    """`reference_hit`, `reference_leak`, `reference_kept`; row by row the result with the reference and the one without.

    Raises ValueError when trials and rows differ in number.
    """
    if not len(trials) == len(with_it.style_logits) == len(without_it.style_logits):
        raise ValueError(
            f"{len(trials)} trials, {len(with_it.style_logits)} and {len(without_it.style_logits)} results"
        )
    units, references = [trial.unit for trial in trials], [trial.reference_concept for trial in trials]
    hit = with_it.style_logits.argmax(axis=1) == [trial.reference_style for trial in trials]
    leaks = [among_first(scores.concept_logits, references, NUM_GUESSES) for scores in (with_it, without_it)]
    kept = among_first(with_it.concept_logits, [trial.prompt_concept for trial in trials], NUM_GUESSES)
    return [
        measured("reference_hit", mean_by_unit(units, hit), len(trials)),
        measured("reference_leak", mean_by_unit(units, leaks[0].astype(float) - leaks[1]), len(trials)),
        measured("reference_kept", mean_by_unit(units, kept), len(trials)),
    ]


def hits_by_strength(trials: Sequence[Trial], scores: JudgeScores) -> dict[float, float]:
    """Share of hits at each strength, weakest first."""
    hit = scores.style_logits.argmax(axis=1) == [trial.reference_style for trial in trials]
    strengths = np.array([trial.strength for trial in trials])
    return {float(strength): float(hit[strengths == strength].mean()) for strength in np.unique(strengths)}


def rises(shares: Sequence[float], tolerance: float = 0.0) -> bool:
    """Whether no share is lower than one before it by more than the tolerance."""
    highest = np.maximum.accumulate(np.asarray(shares))
    return bool((np.asarray(shares) >= highest - tolerance).all())


def mix_lies_between(trials: Sequence[Trial], scores: JudgeScores) -> npt.NDArray[np.bool_]:
    """(N,) whether the two likeliest styles of each mixed result are those of its references."""
    likeliest = np.argsort(-scores.style_logits, axis=1)[:, :2]
    return np.array(
        [
            set(row.tolist()) == {trial.reference_style, trial.mixed_with_style}
            for trial, row in zip(trials, likeliest, strict=True)
        ]
    )
