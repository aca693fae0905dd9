"""Several sequences laid end to end in one row of a batch, so that none of them needs padding.

    row    [ sample 0        | sample 1 | sample 2              | filling ]
    S        lengths[0]        ...                                up to S

A sample attends to itself alone; the filling belongs to nobody. Shapes: S tokens of the row, B samples, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Segments:
    """Where each sample lies in the row."""

    lengths: tuple[int, ...]
    """Tokens of each sample, known to the host."""
    membership_SB: Tensor
    """1 where token s belongs to sample b, else 0; a row of zeros is filling."""

    @property
    def filling(self) -> int:
        """Tokens at the end that belong to nobody."""
        return len(self.membership_SB) - sum(self.lengths)


def segments_of(lengths: tuple[int, ...], num_tokens: int, device: torch.device, dtype: torch.dtype) -> Segments:
    """Samples of these lengths from the start of a row of `num_tokens`."""
    sample_S = torch.full((num_tokens,), len(lengths))
    sample_S[: sum(lengths)] = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return Segments(lengths, F.one_hot(sample_S, len(lengths) + 1)[:, :-1].to(device, dtype))


def spread(vector_B1D: Tensor, segments: Segments | None) -> Tensor:
    """A vector per sample, to be added to or multiplied with tokens: as it is, or (1, S, D) where samples share a row.

    The product with ones and zeros copies exactly, and its gradient is one matrix product instead of a scattered sum.
    """
    if segments is None:
        return vector_B1D
    return (segments.membership_SB.to(vector_B1D.dtype) @ vector_B1D.squeeze(1)).unsqueeze(0)
