"""How much of what a prompt requires its picture shows: R = sum w p / sum w, gated by what is essential.

    prompts --Decompose, once each--> requirements --RequirementJudge--> probabilities --> rubric in 0..1, gate

A judge may say nothing of a requirement; it is left out, so judges of different reach can be compared on the same
prompts only. `form="holistic"` asks the same judge the same questions and keeps one number, the chance that all of it
holds: what a single question "does the picture fit the prompt?" would be worth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from pleinair.records.errors import ConfigError, RewardError
from pleinair.records.rewards import Pictures, RewardContext, RewardValues
from pleinair.rewards.requirements import KINDS, Decompose, Requirement, Rubric

Probabilities = npt.NDArray[np.float32]
"""(R,), one for each requirement of a picture; NaN where the judge has nothing to say."""


class RequirementJudge(Protocol):
    """Anything that can say how likely it is that a picture meets a requirement."""

    @property
    def identity(self) -> str:
        """What decides its answers: weights, settings, version."""
        ...

    @property
    def parts(self) -> frozenset[str]:
        """The networks behind it, as digests or names."""
        ...

    def knows(self, requirement: Requirement) -> bool:
        """Whether it can answer at all, whatever the picture."""
        ...

    def answer(self, pictures: Pictures, rubrics: Sequence[Rubric]) -> list[Probabilities]:
        """For each picture, the probability of each requirement in its rubric; NaN for those it does not know."""
        ...


@dataclass(frozen=True, kw_only=True)
class RubricConfig:
    """How answers become a reward."""

    form: Literal["rubric", "holistic"] = "rubric"
    """`rubric`: the weighted mean; `holistic`: the chance that all holds at once, without weights and gate."""
    essential_above: float = 0.5
    """A picture passes the gate where every essential requirement is at least this likely; 0: there is no gate."""

    def __post_init__(self) -> None:
        if not 0 <= self.essential_above < 1:
            raise ConfigError(f"essential_above is {self.essential_above}: give a probability from 0 to below 1")


class RubricReward:
    """Prompt following, one requirement at a time; values `rubric` and `rubric.KIND`, gate `rubric.essential`."""

    pointwise = True
    bounds = (0.0, 1.0)

    def __init__(
        self, decompose: Decompose, judge: RequirementJudge, config: RubricConfig | None = None, *, name: str = "rubric"
    ) -> None:
        self.decompose, self.judge, self.config, self.name = decompose, judge, config or RubricConfig(), name
        self._rubrics: dict[str, Rubric] = {}

    @property
    def identity(self) -> str:
        """Of judge, settings, and what writes the rubrics, where that tells; by rules, a rubric follows from its prompt."""
        written_by = getattr(self.decompose, "identity", "")
        return hashlib.sha256(f"{self.judge.identity} {self.config} {self.name}{written_by}".encode()).hexdigest()

    @property
    def parts(self) -> frozenset[str]:
        """The judge's."""
        return self.judge.parts

    def rubrics(self, prompts: Sequence[str]) -> list[Rubric]:
        """The requirements of each prompt; a prompt is decomposed once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rubrics]
        if new:
            self._rubrics.update(zip(new, self.decompose(new), strict=True))
        return [self._rubrics[prompt] for prompt in prompts]

    def unanswerable(self, prompts: Sequence[str]) -> list[str]:
        """The prompts of which the judge can check nothing: better left out of a prompt pool than met in a run."""
        return [
            prompt
            for prompt, rubric in zip(prompts, self.rubrics(prompts), strict=True)
            if not any(self.judge.knows(requirement) for requirement in rubric)
        ]

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        """The rubric's value of each picture. Raises RewardError for a prompt of which nothing can be checked."""
        if empty := self.unanswerable(list(dict.fromkeys(prompts))):
            raise RewardError(
                f"{self.name}: nothing that {empty[0]!r:.200} requires can be checked by {self.judge.identity:.60}: leave it "
                "out (`unanswerable` lists such prompts), or give another judge"
            )
        rubrics = self.rubrics(prompts)
        answers = self.judge.answer(pictures, rubrics)
        self._check(prompts, rubrics, answers)
        pairs = list(zip(rubrics, answers, strict=True))
        if self.config.form == "holistic":
            return RewardValues(values={self.name: np.array([all_hold(found) for _, found in pairs], np.float32)})
        values = {self.name: np.array([weighted_mean(rubric, found) for rubric, found in pairs], np.float32)}
        kinds, applies = self._by_kind(rubrics, answers)
        gates = {}
        if self.config.essential_above:
            passes = [self._passes(rubric, found) for rubric, found in pairs]
            gates[f"{self.name}.essential"] = np.array(passes, np.bool_)
        return RewardValues(values=values | kinds, gates=gates, applies=applies)

    def _passes(self, rubric: Rubric, found: Probabilities) -> bool:
        essential = np.array([one.essential for one in rubric], np.bool_) & ~np.isnan(found)
        return bool((found[essential] >= self.config.essential_above).all())

    def _by_kind(
        self, rubrics: Sequence[Rubric], answers: Sequence[Probabilities]
    ) -> tuple[dict[str, Probabilities], dict[str, npt.NDArray[np.bool_]]]:
        """Mean probability of each kind of requirement that occurs, and for which pictures it does: for logs."""
        values, applies = {}, {}
        for kind in KINDS:
            of_kind = [
                found[np.array([one.kind == kind for one in rubric], np.bool_)]
                for rubric, found in zip(rubrics, answers, strict=True)
            ]
            told = np.array([bool((~np.isnan(found)).any()) for found in of_kind], np.bool_)
            if told.any():
                name = f"{self.name}.{kind}"
                means = [np.nanmean(found) if has else 0.0 for found, has in zip(of_kind, told, strict=True)]
                values[name], applies[name] = np.array(means, np.float32), told
        return values, applies

    def _check(self, prompts: Sequence[str], rubrics: Sequence[Rubric], answers: Sequence[Probabilities]) -> None:
        """Raise RewardError for answers that are none."""
        if len(answers) != len(rubrics):
            raise RewardError(
                f"{self.name}: the judge answered for {len(answers)} of {len(rubrics)} pictures: see its log"
            )
        for prompt, rubric, found in zip(prompts, rubrics, answers, strict=True):
            known = found[~np.isnan(found)] if len(found) == len(rubric) else found[:0]
            if not len(known) or known.min() < 0 or known.max() > 1:
                raise RewardError(
                    f"{self.name}: the judge answered {np.round(found, 3).tolist()} to the {len(rubric)} requirements of "
                    f"{prompt!r:.200}: it must give a probability for at least one it knows"
                )


def weighted_mean(rubric: Rubric, found: Probabilities) -> float:
    """sum w p / sum w over the requirements that were answered."""
    known = ~np.isnan(found)
    weights = np.array([one.weight for one in rubric])[known]
    return float((weights * found[known]).sum() / weights.sum())


def all_hold(found: Probabilities) -> float:
    """The chance that all that was answered holds, taken for independent."""
    return float(np.prod(found[~np.isnan(found)].astype(np.float64)))
