"""Rewards put together: scored, checked, gated, normalised within groups, summed.

    rewards --score--> answers --checked--> values, gates --gates first--> lowered --normalised in groups--> advantages
    gold ----score--> values, logged                                        |
                                                                            `--> statistics, once all of it was sound

An answer that is none (NaN, a number missing, outside its reward's bounds, far from all that was seen) raises RewardError and
leaves the mix as it was, so that the same pictures can be assessed again when the reward is mended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pleinair.config import config_digest
from pleinair.records.errors import ConfigError, RewardError
from pleinair.records.rewards import Assessment, Gates, Pictures, Reward, RewardContext, RewardValues, Values
from pleinair.rewards.advantages import Floats, Groups, gdpo, grpo, lowered, weighted_sum
from pleinair.rewards.answers import belongs, check_answer, check_bounds, check_question
from pleinair.rewards.gold import Gold, refuse_gold
from pleinair.rewards.identity import Bounds, bounds_of, identity_of
from pleinair.rewards.statistics import Alarm, StatisticsConfig, ValueStatistics, restored

Score = Callable[[Sequence[str], Pictures, RewardContext], RewardValues]
TOTAL = "weighted sum"
"""The weighted sum, among the statistics."""


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """What is climbed, and how it is normalised."""

    weights: Mapping[str, float]
    """By the name of a value; those not named are logged only."""
    normalisation: Literal["gdpo", "grpo"] = "gdpo"
    """`gdpo`: each value in its group, then the sum in the batch; `grpo`: the weighted sum in its group."""
    std_floor: float = 0.05
    """Least spread a group is divided by, as a share of the value's spread over the run."""
    gate_margin: float = 0.5
    """How far below the least of its group a picture that fails a gate is set, in the value's spread over the run."""
    clip: float = 5.0
    """Largest advantage, either way."""
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    """When a value is taken for drifted or broken."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError("weights is empty: name at least one value, such as {'rubric': 1.0}")
        for name, weight in self.weights.items():
            if not 0 < weight < float("inf"):
                raise ConfigError(
                    f"the weight of {name!r} is {weight}: give a number above 0; a value is better the higher it is, and one "
                    "that is only watched has no weight"
                )
        for name in ("std_floor", "gate_margin"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}: give a share from 0")
        if self.normalisation not in ("gdpo", "grpo"):
            raise ConfigError(f"normalisation is {self.normalisation!r:.40}: give gdpo or grpo")
        if not self.clip > 0:
            raise ConfigError(f"clip is {self.clip}: give a number above 0")


class RewardMix:
    """An `Assessor`: several rewards as one, with what was learnt of them on the way."""

    def __init__(self, rewards: Sequence[Reward], config: MixConfig, *, gold: Sequence[Gold] = ()) -> None:
        """Rewards are asked in this order, each knowing what passed the gates of those before: put diversity last.

        Raises ConfigError for two rewards of one name, a weight of no reward's, or gold that would be optimised.
        """
        refuse_gold(rewards, list(config.weights), gold)
        names = [reward.name for reward in rewards] + [held.name for held in gold]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"two rewards are called {twice[0]!r}: give each a name of its own")
        for weighted in config.weights:
            if not any(belongs(weighted, reward.name) for reward in rewards):
                raise ConfigError(f"weights names {weighted!r}, which no reward gives: there are {', '.join(names)}")
        self.rewards, self.gold, self.config = tuple(rewards), tuple(gold), config
        self._known: dict[str, ValueStatistics] = {}

    @property
    def identity(self) -> str:
        """Digest of what decides the answers of a fresh mix: rewards, gold and configuration.

        When an answer is refused is no part of it: a run goes on with other limits.
        """
        rewards = [(reward.name, identity_of(reward)) for reward in self.rewards]
        gold = [(held.name, identity_of(held.reward)) for held in self.gold]
        return config_digest((rewards, gold, replace(self.config, statistics=StatisticsConfig())))

    def assess(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> Assessment:
        """An assessment of N pictures. Raises RewardError when a reward gives no usable answer; nothing is changed then."""
        check_question(prompts, pictures, context)
        values: dict[str, Values] = {}
        gates: dict[str, Gates] = {}
        applies: dict[str, Gates] = {}
        widths: dict[str, float] = {}
        for name, score, bounds in self._all():
            answer = score(prompts, pictures, context)
            check_answer(name, answer, prompts, context)
            check_bounds(name, bounds, answer, prompts, context)
            widths |= dict.fromkeys(answer.values, np.inf if bounds is None else bounds[1] - bounds[0])
            values |= {name: np.asarray(told, np.float32) for name, told in answer.values.items()}
            gates |= {name: np.asarray(told, np.bool_) for name, told in answer.gates.items()}
            if gates:
                context = replace(context, passes=tuple(np.logical_and.reduce(list(gates.values())).tolist()))
            applies |= {name: np.asarray(told, np.bool_) for name, told in answer.applies.items()}
        groups_N = np.array(context.groups, np.int64)
        asked = self._asked(values, applies)
        known = self._seen(values, applies, asked, groups_N)
        self._check_behaviour(values, applies, known)
        self._check_leaps(asked, groups_N, widths)
        assessment = self._assessment(asked, values, gates, applies, groups_N, known)
        self._known = known
        return assessment

    def alarms(self) -> list[Alarm]:
        """What behaves otherwise than at the start of the run, gold included."""
        return [alarm for name, known in sorted(self._known.items()) for alarm in known.alarms(name)]

    def statistics(self) -> dict[str, ValueStatistics]:
        """What is known of each value, and of their weighted sum, under that name."""
        return dict(self._known)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to give the same assessments, as JSON."""
        return {name: known.as_state() for name, known in self._known.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Raises ConfigError for something else."""
        self._known = {name: restored(self.config.statistics, one) for name, one in state.items()}

    def _all(self) -> Sequence[tuple[str, Score, Bounds | None]]:
        """Rewards and gold, by name, with where their values lie."""
        rewards = [(one.name, one.score, bounds_of(one)) for one in self.rewards]
        return rewards + [(one.name, one.score, one.bounds) for one in self.gold]

    def _asked(self, values: Mapping[str, Values], applies: Mapping[str, Gates]) -> _Weighted:
        """The weighted values, in the order of the weights."""
        if missing := [name for name in self.config.weights if name not in values]:
            raise RewardError(
                f"no reward gave {missing[0]!r}, which has a weight: they gave {', '.join(sorted(values))}"
            )
        names = list(self.config.weights)
        everywhere = np.ones(len(values[names[0]]), np.bool_)
        return _Weighted(
            names,
            np.stack([values[name] for name in names]).astype(np.float64),
            np.stack([applies.get(name, everywhere) for name in names]),
            np.array(list(self.config.weights.values())),
        )

    def _seen(
        self, values: Mapping[str, Values], applies: Mapping[str, Gates], asked: _Weighted, groups_N: Groups
    ) -> dict[str, ValueStatistics]:
        """The statistics after this batch."""
        known = dict(self._known)
        total_N = weighted_sum(asked.values_KN, asked.applies_KN, asked.weights_K)
        everything: dict[str, npt.NDArray[np.floating[Any]]] = {**values, TOTAL: total_N}
        for name, told_N in everything.items():
            said = applies.get(name, np.ones(len(told_N), np.bool_))
            if said.any():
                before = known.get(name, ValueStatistics(self.config.statistics))
                known[name] = before.after(told_N[said], groups_N[said])
        return known

    def _check_behaviour(
        self, values: Mapping[str, Values], applies: Mapping[str, Gates], after: Mapping[str, ValueStatistics]
    ) -> None:
        """Raise RewardError for values as no sound reward gives them."""
        for name, told_N in values.items():
            if (before := self._known.get(name)) is not None:
                far = before.outliers(told_N) & applies.get(name, np.ones(len(told_N), np.bool_))
                if far.any():
                    raise RewardError(
                        f"{name} is {told_N[far][0]:.4g} for {int(far.sum())} of {len(far)} pictures, over "
                        f"{before.config.outlier:g} standard deviations from the {before.mean:.4g} +- {before.yardstick:.4g} "
                        "of the run so far: the reward is broken or is being deceived; look at the pictures, or raise "
                        "statistics.outlier"
                    )
            limit = self.config.statistics.constant_batches
            if limit and name in after and after[name].constant_for >= limit and name in self.config.weights:
                raise RewardError(
                    f"{name} was {told_N[0]:.4g} for every picture of {limit} batches: the reward is broken, or has nothing "
                    "left to teach; see that it runs, take its weight away, or set statistics.constant_batches=0"
                )

    def _check_leaps(self, asked: _Weighted, groups_N: Groups, widths: Mapping[str, float]) -> None:
        """Raise RewardError for a climbed value that leaves the recent batches at once, inside its bounds as it may be."""
        for name, values_N, applies_N in zip(asked.names, asked.values_KN, asked.applies_KN, strict=True):
            if (before := self._known.get(name)) is None or not applies_N.any():
                continue
            errors = before.leap(values_N[applies_N], groups_N[applies_N], widths[name])
            if errors > self.config.statistics.leap:
                raise RewardError(
                    f"{name} is {values_N[applies_N].mean():.4g} on average in this batch and was {before.mean:.4g} in the run "
                    f"so far: it left the recent batches by {errors:.1f} standard errors at once, over "
                    f"{self.config.statistics.leap:g}; the reward is broken or is being deceived, or the model has collapsed: "
                    "look at the pictures, or raise statistics.leap; nothing was learnt from these pictures"
                )

    def _assessment(
        self,
        asked: _Weighted,
        values: Mapping[str, Values],
        gates: Mapping[str, Gates],
        applies: Mapping[str, Gates],
        groups_N: Groups,
        known: Mapping[str, ValueStatistics],
    ) -> Assessment:
        passes_N = np.logical_and.reduce([np.ones(len(groups_N), np.bool_), *gates.values()])
        spreads_K = np.array([known[name].std if name in known else 0.0 for name in asked.names])
        margins = self.config.gate_margin * np.where(spreads_K > 0, spreads_K, 1.0)
        lowered_KN = np.stack(
            [
                lowered(values_N, passes_N, groups_N, float(margin))
                for values_N, margin in zip(asked.values_KN, margins, strict=True)
            ]
        )
        total_N = weighted_sum(lowered_KN, asked.applies_KN, asked.weights_K)
        floor = self.config.std_floor
        if self.config.normalisation == "gdpo":
            advantages_N = gdpo(lowered_KN, asked.applies_KN, asked.weights_K, groups_N, floor * spreads_K)
        else:
            advantages_N = grpo(total_N, groups_N, floor * known[TOTAL].std)
        return Assessment(
            advantages=advantages_N.clip(-self.config.clip, self.config.clip).astype(np.float32),
            reward=total_N.astype(np.float32),
            values=values,
            gates=gates,
            applies=applies,
        )


@dataclass(frozen=True)
class _Weighted:
    """The values that are climbed: K of them, of N pictures."""

    names: list[str]
    values_KN: Floats
    applies_KN: npt.NDArray[np.bool_]
    weights_K: Floats
