"""The exploration suite's second judge as a gold reward: linear heads on features of a network that never saw drawings.

    prompt --parser--> requirements --SecondOpinion: P(thing), P(style)--> RubricReward --> Gold, watched and never climbed

The judge that tells judge accuracy and the judges of rewards are small networks of one kind, taught the same pictures. This
one shares neither weights nor architecture with them, so that a rise which it does not see is a rise of theirs alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pleinair.evaluation.features import PictureFeatures
from pleinair.evaluation.prompted import at_judges_size
from pleinair.evaluation.second_judge import SecondJudge
from pleinair.model.digest import part_digest
from pleinair.model.judge import JudgeScores
from pleinair.records.rewards import Pictures
from pleinair.rewards.calibration import sigmoid
from pleinair.rewards.gold import Gold
from pleinair.rewards.parser import PromptParser
from pleinair.rewards.picture_judge import evidence_of
from pleinair.rewards.requirements import Requirement, Rubric
from pleinair.rewards.rubric import Probabilities, RubricReward
from pleinair.rewards.vocabulary import Vocabulary


@dataclass(frozen=True)
class SecondOpinion:
    """Answers `object` and `style`; of all else it says nothing (NaN)."""

    judge: SecondJudge
    features: PictureFeatures

    @cached_property
    def identity(self) -> str:
        """Digest of the heads and of what their features are made by."""
        return part_digest(self.judge, self.features.name)

    @cached_property
    def parts(self) -> frozenset[str]:
        """The heads, and the network below them by its name."""
        return frozenset({part_digest(self.judge), self.features.name})

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What it can name."""
        return Vocabulary(self.judge.config.concept_names, self.judge.config.style_names)

    def parser(self) -> PromptParser:
        """A parser of prompts that knows these names."""
        return self.vocabulary.parser()

    def knows(self, requirement: Requirement) -> bool:
        """Whether it has a name for it."""
        return self._class_of(requirement) is not None

    def answer(self, pictures: Pictures, rubrics: Sequence[Rubric]) -> list[Probabilities]:
        """Each picture's probabilities, by the softmax of the heads, as they were fitted."""
        scores = self.judge.judge(self.features.of(at_judges_size(pictures)))
        return [
            np.array([self._chance(scores, row, one) for one in rubric], np.float32)
            for row, rubric in enumerate(rubrics)
        ]

    def _class_of(self, requirement: Requirement) -> int | None:
        if requirement.kind == "style":
            return self.vocabulary.style(requirement.value)
        return self.vocabulary.thing(requirement.subject) if requirement.kind == "object" else None

    def _chance(self, scores: JudgeScores, row: int, one: Requirement) -> float:
        if (number := self._class_of(one)) is None:
            return math.nan
        logits = scores.style_logits if one.kind == "style" else scores.concept_logits
        return float(sigmoid(evidence_of(logits[row : row + 1], np.array([number])))[0])


def second_gold(judge: SecondJudge, features: PictureFeatures) -> Gold:
    """The rubric as this judge answers it, under `gold.rubric`."""
    opinion = SecondOpinion(judge, features)
    return Gold(RubricReward(opinion.parser(), opinion))
