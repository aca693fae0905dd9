"""A style reference by its two by two controls: right in style and thing, in one of them, in neither."""

from __future__ import annotations

import numpy as np
import pytest

from pleinair.evaluation.exploration.reference import Trial, hits_by_strength, mix_lies_between, rises, style_reference
from pleinair.model.judge import JudgeScores

NUM_STYLES, NUM_CONCEPTS = 4, 30
TRIALS = [
    Trial(reference_style=style, reference_concept=20 + style, prompt_concept=thing)
    for style in range(NUM_STYLES)
    for thing in range(10)
]


def seen(styles: list[int], concepts: list[int]) -> JudgeScores:
    """What judges say of pictures in these styles of these things; other things all alike."""
    style, concept = np.eye(NUM_STYLES)[styles], np.eye(NUM_CONCEPTS)[concepts]
    return JudgeScores(style_logits=style, concept_logits=concept, embedding=concept)


OWN_STYLE = seen([(trial.reference_style + 1) % NUM_STYLES for trial in TRIALS], [one.prompt_concept for one in TRIALS])


@pytest.mark.parametrize(
    ("style_comes_over", "thing_stays", "expected"),
    [(True, True, (1, 0, 1)), (True, False, (1, 1, 0)), (False, True, (0, 0, 1)), (False, False, (0, 1, 0))],
)
def test_controls_are_told_apart(style_comes_over: bool, thing_stays: bool, expected: tuple[int, int, int]) -> None:
    styles = [(one.reference_style + (not style_comes_over)) % NUM_STYLES for one in TRIALS]
    things = [one.prompt_concept if thing_stays else one.reference_concept for one in TRIALS]
    found = style_reference(TRIALS, seen(styles, things), OWN_STYLE)
    assert tuple(one.value for one in found) == expected


def test_a_thing_that_is_seen_without_the_reference_as_well_did_not_leak() -> None:
    everywhere = seen([0] * len(TRIALS), [one.reference_concept for one in TRIALS])
    assert style_reference(TRIALS, everywhere, everywhere)[1].value == 0


def test_hits_rise_with_strength_or_it_is_said() -> None:
    trials = [
        Trial(reference_style=1, reference_concept=20, prompt_concept=0, strength=strength)
        for strength in (0.0, 0.5, 1.0)
        for _ in range(4)
    ]
    scores = seen([0] * 4 + [0, 0, 1, 1] + [1] * 4, [0] * 12)
    shares = hits_by_strength(trials, scores)
    assert shares == {0.0: 0.0, 0.5: 0.5, 1.0: 1.0}
    assert rises(list(shares.values()))
    assert not rises([0.2, 0.9, 0.5])
    assert rises([0.2, 0.9, 0.85], tolerance=0.1)


def test_a_mix_shows_both_references() -> None:
    trial = Trial(reference_style=0, reference_concept=20, prompt_concept=0, mixed_with_style=2)
    logits = np.array([[3.0, 0, 2, 0], [3, 2, 0, 0]])
    scores = JudgeScores(style_logits=logits, concept_logits=logits, embedding=logits)
    assert mix_lies_between([trial, trial], scores).tolist() == [True, False]


def test_results_without_a_trial_each_are_refused() -> None:
    with pytest.raises(ValueError, match="3 trials, 40 and 40 results"):
        style_reference(TRIALS[:3], OWN_STYLE, OWN_STYLE)
