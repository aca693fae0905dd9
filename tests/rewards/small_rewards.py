"""Rewards that say what they are told, for mixes and servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pleinair.records.rewards import Gates, Pictures, RewardContext, RewardValues, Values


class Told:
    """Gives the same answer whatever it is asked."""

    pointwise = False

    def __init__(
        self,
        name: str,
        values: Sequence[float] | Mapping[str, Sequence[float]],
        *,
        gate: Sequence[bool] | None = None,
        applies: Sequence[bool] | None = None,
        parts: frozenset[str] = frozenset(),
    ) -> None:
        named = values if isinstance(values, Mapping) else {name: values}
        self.name, self.identity, self.parts = name, "", parts
        self.values: dict[str, Values] = {one: np.array(told, np.float32) for one, told in named.items()}
        self.gates: dict[str, Gates] = {} if gate is None else {f"{name}.gate": np.array(gate, np.bool_)}
        self.applies: dict[str, Gates] = {} if applies is None else {name: np.array(applies, np.bool_)}

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        return RewardValues(values=self.values, gates=self.gates, applies=self.applies)


class Brightness:
    """The mean of a picture, of the first prompt word's length: simple, and of its own prompt and picture alone."""

    identity, parts, pointwise = "brightness of version 1", frozenset({"brightness"}), True

    def __init__(self, name: str = "brightness", spoil: Callable[[Values], Values] = lambda values: values) -> None:
        self.name, self.spoil, self.num_asked = name, spoil, 0

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        self.num_asked += len(prompts)
        values = (pictures.mean(axis=(1, 2, 3)) / 255 + np.array([len(prompt) for prompt in prompts])).astype(
            np.float32
        )
        has_words = np.array([bool(prompt) for prompt in prompts])
        return RewardValues(
            values={self.name: self.spoil(values), f"{self.name}.words": values},
            gates={f"{self.name}.lit": values > 0.1},
            applies={f"{self.name}.words": has_words},
        )


def noise(num: int, seed: int = 0, side: int = 8) -> Pictures:
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3), dtype=np.uint8)
