"""The exploration suite's second judge as a gold reward: linear heads on features of a network that never saw drawings.

    prompt --parser--> requirements --SecondOpinion: P(thing), P(style)--> RubricReward --> Gold, watched and never climbed

The judge that tells judge accuracy and the judges of rewards are small networks of one kind, taught the same pictures. This
one shares neither weights nor architecture with them, so that a rise which it does not see is a rise of theirs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pleinair.evaluation.features import PictureFeatures
from pleinair.evaluation.prompted import at_judges_size
from pleinair.evaluation.second_judge import SecondJudge
from pleinair.model.digest import part_digest
from pleinair.model.judge import JudgeScores
from pleinair.records.names import slug
from pleinair.records.rewards import Pictures
from pleinair.rewards.calibration import sigmoid
from pleinair.rewards.gold import Gold
from pleinair.rewards.parser import PromptParser
from pleinair.rewards.picture_judge import evidence_of
from pleinair.rewards.requirements import Requirement, Rubric
from pleinair.rewards.rubric import Probabilities, RubricReward


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
    def things(self) -> dict[str, int]:
        """What it can name, as slugs, to its classes."""
        return {name: number for number, name in enumerate(self.judge.config.concept_names)}

    @cached_property
    def styles(self) -> dict[str, int]:
        """The styles it can name, as slugs."""
        return {slug(name): number for number, name in enumerate(self.judge.config.style_names)}

    def parser(self) -> PromptParser:
        """A parser of prompts that knows these names."""
        return PromptParser(*([name.replace("-", " ") for name in names] for names in (self.things, self.styles)))

    def knows(self, requirement: Requirement) -> bool:
        """Whether it has a name for it."""
        if requirement.kind == "style":
            return slug(requirement.value) in self.styles
        return requirement.kind == "object" and slug(requirement.subject) in self.things

    def answer(self, pictures: Pictures, rubrics: Sequence[Rubric]) -> list[Probabilities]:
        """Each picture's probabilities, by the softmax of the heads, as they were fitted."""
        scores = self.judge.judge(self.features.of(at_judges_size(pictures)))
        return [
            np.array([self._chance(scores, row, one) if self.knows(one) else np.nan for one in rubric], np.float32)
            for row, rubric in enumerate(rubrics)
        ]

    def _chance(self, scores: JudgeScores, row: int, one: Requirement) -> float:
        if one.kind == "style":
            logits, number = scores.style_logits, self.styles[slug(one.value)]
        else:
            logits, number = scores.concept_logits, self.things[slug(one.subject)]
        return float(sigmoid(evidence_of(logits[row : row + 1], np.array([number])))[0])


def second_gold(judge: SecondJudge, features: PictureFeatures) -> Gold:
    """The rubric as this judge answers it, under `gold.rubric`."""
    opinion = SecondOpinion(judge, features)
    return Gold(RubricReward(opinion.parser(), opinion))
