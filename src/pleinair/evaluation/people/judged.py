"""The judges before the same trials: their answers go through the same log, marked `synthetic`, and are never people's.

    pictures of a side --judge--> how many styles, how often the style, how often the thing --more--> left, right or same

No judge is asked which side it would go on with: that is taste.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pleinair.evaluation.exploration.measured import effective_number
from pleinair.evaluation.exploration.sheet import NUM_GUESSES, among_first
from pleinair.evaluation.exploration.world import Pictures
from pleinair.evaluation.people.shown import Showing
from pleinair.evaluation.people.sitting import Answered, Sitting
from pleinair.evaluation.people.trials import Comparison, Half, Trial, session
from pleinair.model.judge import JudgeScores
from pleinair.records.preferences import Answer, Attribute, PreferenceLog

JUDGED: tuple[Attribute, ...] = ("styles", "follows_style", "shows_thing")
MARGIN: Mapping[Attribute, float] = {"styles": 0.5}
"""Differences up to it are `same`; 0 where missing."""
Look = Callable[[Pictures], Mapping[str, JudgeScores]]
"""Pictures -> what each judge says, by its name."""


def answer_as_judges(
    showing: Showing,
    possible: Sequence[Comparison],
    known: Sequence[Comparison],
    log: PreferenceLog,
    look: Look,
    style_names: Sequence[str],
    concept_of_label: Mapping[str, int],
) -> int:
    """Let each judge answer every comparison it can, with its repeats and controls; how many answers are new."""
    possible, known = ([one for one in of if one.attribute in JUDGED] for of in (possible, known))
    scores = look_once(possible, known, look)
    num = 0
    for judge in sorted({judge for by_judge in scores.values() for judge in by_judge}):
        of_judge = {place: by_judge[judge] for place, by_judge in scores.items()}
        sitting = Sitting(showing, session(possible, known, judge, len(possible), 0), log, judge, "synthetic")
        answered = sitting.answers

        def answer(trial: Trial, of_judge: Mapping[tuple[str, int], JudgeScores] = of_judge) -> Answered:
            merits = [
                merit(trial.comparison.attribute, half, of_judge, style_names, concept_of_label)
                for half in (trial.left, trial.right)
            ]
            said = preferred(merits[0], merits[1], MARGIN.get(trial.comparison.attribute, 0.0))
            return Answered(event=str(uuid.uuid4()), trial=trial.trial, answer=said, seconds=0.0)

        new = [answer(one) for one in sitting.trials.values() if one.trial not in answered]
        sitting.answer(new)
        num += len(new)
    return num


def look_once(
    possible: Sequence[Comparison], known: Sequence[Comparison], look: Look
) -> dict[tuple[str, int], Mapping[str, JudgeScores]]:
    """What the judges say of every picture that is shown, by gallery and row, each looked at once."""
    pictures: dict[tuple[str, int], Pictures] = {}
    for half in (half for one in [*possible, *known] for half in one.halves):
        for row in half.rows:
            pictures.setdefault((half.gallery.identity, row), half.gallery.pictures[row])
    if not pictures:
        return {}
    found = look(np.stack(list(pictures.values())))
    return {
        place: {judge: scores.take(np.array([number])) for judge, scores in found.items()}
        for number, place in enumerate(pictures)
    }


def merit(
    attribute: Attribute,
    half: Half,
    scores: Mapping[tuple[str, int], JudgeScores],
    style_names: Sequence[str],
    concept_of_label: Mapping[str, int],
) -> float:
    """How much of the attribute a judge sees on a side: styles it is worth, or the share of pictures that have it."""
    of = [scores[half.gallery.identity, row] for row in half.rows]
    requests = [half.gallery.asked[row].request for row in half.rows]
    if attribute == "shows_thing":
        logits_NC = np.concatenate([one.concept_logits for one in of])
        concepts = [concept_of_label[one.label] for one in requests]
        return float(among_first(logits_NC, concepts, NUM_GUESSES).mean())
    named = np.concatenate([one.style_logits for one in of]).argmax(axis=1)
    if attribute == "follows_style":
        return float((named == [list(style_names).index(one.style) for one in requests]).mean())
    shares = np.bincount(named, minlength=len(style_names)) / len(named)
    return float(effective_number(shares[None])[0])


def preferred(left: float, right: float, margin: float) -> Answer:
    """The side with more, beyond the margin."""
    if abs(left - right) <= margin:
        return "same"
    return "left" if left > right else "right"
