"""Random numbers that belong to rows: a function of (seed, step, row of the global batch), whoever computes the row.

Accumulation and more ranks only change who holds a row, so neither changes its noise or its timestep. Each draw of each row
has a stream of its own on the device's generator; streams of CPU and accelerator differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 2**64 - 1


class RowRandom:
    """Draws for some rows of the global batch of a step, one leading entry per row.

    The n-th call on an object is the n-th draw of every row, so a stage must draw in the same order every time.
    """

    def __init__(self, seed: int, step: int, rows: range, device: torch.device | str = "cpu") -> None:
        self.seed, self.step, self.rows, self.device = seed, step, rows, torch.device(device)
        self._generator = torch.Generator(self.device)
        self._num_draws = 0

    def part(self, first: int, last: int) -> RowRandom:
        """The same draws for rows `first` to `last` of these, from the first draw on."""
        return RowRandom(self.seed, self.step, self.rows[first:last], self.device)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal (rows, *shape) float32."""
        drawn = torch.empty(len(self.rows), *shape, device=self.device)
        for values, stream in zip(drawn.unbind(), self._streams(), strict=True):
            values.normal_(generator=self._generator.manual_seed(stream))
        return drawn

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), (rows, *shape) float32."""
        drawn = torch.empty(len(self.rows), *shape, device=self.device)
        for values, stream in zip(drawn.unbind(), self._streams(), strict=True):
            values.uniform_(generator=self._generator.manual_seed(stream))
        return drawn

    def logit_normal(self, mu: float = 0.0, sigma: float = 1.0) -> Tensor:
        """(rows,) in (0, 1): sigmoid of a normal with mean `mu` and deviation `sigma`, as `flow.sample_timesteps`."""
        return torch.sigmoid(mu + sigma * self.normal())

    def _streams(self) -> list[int]:
        """Seeds of the rows for the next draw."""
        of_draw = _mixed(_mixed(_mixed(self.seed) ^ self.step) ^ self._num_draws)
        self._num_draws += 1
        return [_mixed(of_draw ^ row) >> 1 for row in self.rows]


def _mixed(word: int) -> int:
    """SplitMix64's finaliser: neighbouring numbers give unrelated ones. The CPU's generator reads the low 32 bits."""
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
