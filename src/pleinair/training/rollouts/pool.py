"""The prompt pool: which prompts are worth rollouts, from what earlier rollouts said of them.

    stored rollouts --fold, in order--> Posterior (mean and variance of each prompt's reward) --> weights --> choice

A group teaches by how much its rewards differ. Of a prompt whose pictures all earn the same (saturated, hopeless, or a
reward that cannot tell them apart) nothing is learned, so a prompt's weight is the posterior mean of its deviation, and
falls further where its mean nears an end of the rewards' range. Evidence fades with the iterations, as the weights that
earned it do, and a share of every iteration probes the prompts that were not seen for longest: what was hopeless early is
found again once it is not.

The posterior is a fold over stored rollouts, and a choice a function of it, the seed and the iteration: a pool has no
state of its own to save.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pleinair.records.errors import ConfigError
from pleinair.training.rollouts.stored import GroupRewards

Numbers = npt.NDArray[np.float64]
"""(P,), one for each prompt."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """How prompts are chosen."""

    by: Literal["deviation", "uniform"] = "deviation"
    """Weight by what a prompt is expected to teach, or the same for all."""
    probe_share: float = 0.1
    """Share of the groups that go to prompts unseen for longest, whatever their weight."""
    prior_pictures: float = 0.5
    """Weight of the prior, which is the mean over all prompts, in pictures."""
    keep: float = 0.98
    """Share of the evidence that outlives an iteration."""
    reward_range: tuple[float, float] | None = None
    """Lowest and highest reward where there are such; weights fall to nothing within a tenth of its width of either end."""

    def __post_init__(self) -> None:
        if not 0 <= self.probe_share <= 1 or not 0 < self.keep <= 1:
            raise ConfigError(
                f"probe_share is {self.probe_share} and keep {self.keep}: give shares between 0 and 1, keep above 0"
            )
        if self.prior_pictures <= 0:
            raise ConfigError(f"prior_pictures is {self.prior_pictures}: it must be positive")
        if self.reward_range is not None and not self.reward_range[0] < self.reward_range[1]:
            raise ConfigError(f"reward_range is {self.reward_range}: give the lowest first")


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """What is known of every prompt, all of it faded by age."""

    pictures: Numbers
    """Seen."""
    reward_sums: Numbers
    squares: Numbers
    """Sums of squared distances from the groups' means."""
    freedoms: Numbers
    """Degrees of freedom of `squares`: a group of G has G - 1."""
    last_seen: npt.NDArray[np.int64]
    """Iteration; -1 for never."""


class PromptPool:
    """Prompts and the rule by which they are chosen."""

    def __init__(self, prompts: Sequence[str], config: PoolConfig | None = None) -> None:
        """Raises ConfigError for a prompt that is there twice."""
        self.prompts, self.config = tuple(prompts), config or PoolConfig()
        self._places = {prompt: place for place, prompt in enumerate(self.prompts)}
        if len(self._places) < len(self.prompts) or not self.prompts:
            raise ConfigError(f"the pool has {len(self.prompts)} prompts, {len(self._places)} distinct: give each once")

    def nothing_known(self) -> Posterior:
        """Before any rollout."""
        none = np.zeros(len(self.prompts))
        return Posterior(
            pictures=none, reward_sums=none, squares=none, freedoms=none, last_seen=np.full(len(none), -1, np.int64)
        )

    def fold(self, known: Posterior, iteration: int, groups: Iterable[GroupRewards]) -> Posterior:
        """What is known after an iteration. Prompts that are not in the pool are passed over."""
        pictures, sums, squares, freedoms = (
            self.config.keep * values for values in (known.pictures, known.reward_sums, known.squares, known.freedoms)
        )
        last_seen = known.last_seen.copy()
        for group in groups:
            if (place := self._places.get(group.prompt)) is not None:
                pictures[place] += group.count
                sums[place] += group.count * group.mean
                squares[place] += group.squares
                freedoms[place] += group.count - 1
                last_seen[place] = iteration
        return Posterior(pictures=pictures, reward_sums=sums, squares=squares, freedoms=freedoms, last_seen=last_seen)

    def means(self, known: Posterior) -> Numbers:
        """Posterior means of the prompts' rewards, drawn to the mean over all."""
        prior, total = self.config.prior_pictures, known.pictures.sum()
        overall = known.reward_sums.sum() / total if total > 0 else 0.0
        means: Numbers = (prior * overall + known.reward_sums) / (prior + known.pictures)
        return means

    def variances(self, known: Posterior) -> Numbers:
        """Posterior means of the variances inside a prompt's groups, drawn to the mean over all; 1 before any rollout."""
        prior, total = self.config.prior_pictures, known.freedoms.sum()
        overall = known.squares.sum() / total if total > 0 else 1.0
        variances: Numbers = (prior * overall + known.squares) / (prior + known.freedoms)
        return variances

    def weights(self, known: Posterior) -> Numbers:
        """Shares of the groups that are not probes; they sum to 1."""
        count = len(self.prompts)
        if self.config.by == "uniform":
            return np.full(count, 1 / count)
        weights = np.sqrt(self.variances(known))
        if self.config.reward_range is not None and known.pictures.any():
            low, high = self.config.reward_range
            place = (self.means(known) - low) / (high - low)
            weights = weights * np.clip(np.minimum(place, 1 - place) / 0.1, 0, 1)
        total = weights.sum()
        return weights / total if total > 0 else np.full(count, 1 / count)

    def choose(self, known: Posterior, iteration: int, count: int, seed: int) -> tuple[str, ...]:
        """Distinct prompts for an iteration. Raises ConfigError when the pool has fewer."""
        if count > len(self.prompts):
            raise ConfigError(
                f"{count} groups and {len(self.prompts)} prompts: ask for fewer groups, or give more prompts"
            )
        random = np.random.default_rng([seed, iteration])
        num_probes = 0
        if self.config.by != "uniform":
            num_probes = int(random.binomial(count, self.config.probe_share))
        longest_unseen = np.lexsort((random.random(len(self.prompts)), known.last_seen))
        probes = [int(place) for place in longest_unseen[:num_probes]]
        # Exponential races: the first to arrive are a sample without replacement, by weight (Efraimidis and Spirakis 2006).
        with np.errstate(divide="ignore"):
            arrivals = random.exponential(size=len(self.prompts)) / self.weights(known)
        arrivals[probes] = np.inf
        weighted = [int(place) for place in np.argsort(arrivals, kind="stable") if place not in probes]
        return tuple(self.prompts[place] for place in (*probes, *weighted[: count - num_probes]))
