"""How unlike the rest of its group a picture is: r_i = 1 - mean over j != i of cos(f_i, f_j).

Noise is the most diverse of all: this reward belongs beside gates that a picture must pass (see `combine`). The j are those
that pass the gates known when it is asked, as broken neighbours would make a sound picture diverse; all of the group where
fewer than two pass. Its weight stays what it is through a run; fading it out lets the model collapse late instead of early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pleinair.records.errors import RewardError
from pleinair.records.rewards import Gates, Pictures, RewardContext, RewardValues, Values

PictureFeatures = Callable[[Pictures], npt.NDArray[np.float32]]
"""(N, H, W, 3) to (N, F), of any length."""


class DiversityReward:
    """Value `diversity`, in 0..2; it does not apply to a picture that is alone in its group."""

    pointwise = False
    bounds = (0.0, 2.0)

    def __init__(
        self,
        features: PictureFeatures,
        *,
        identity: str = "",
        parts: frozenset[str] = frozenset(),
        name: str = "diversity",
    ) -> None:
        """`identity` and `parts` say what makes the features."""
        self.features, self.identity, self.name = features, identity, name
        self.parts = parts

    def score(self, prompts: Sequence[str], pictures: Pictures, context: RewardContext) -> RewardValues:
        """Values within each group of the context. Raises RewardError where features are no vectors."""
        features_NF = np.asarray(self.features(pictures), np.float64)
        if features_NF.ndim != 2 or len(features_NF) != len(pictures) or not np.isfinite(features_NF).all():
            raise RewardError(
                f"{self.name}: the features of {len(pictures)} pictures have shape {features_NF.shape}, or entries that are "
                "not finite: give one finite vector per picture"
            )
        passes_N = np.array(context.passes or [True] * len(pictures), np.bool_)
        values, compared = unlikeness(features_NF, np.array(context.groups), passes_N)
        return RewardValues(values={self.name: values}, applies={self.name: compared})


def unlikeness(
    features_NF: npt.NDArray[np.float64], groups_N: npt.NDArray[np.int64], passes_N: Gates
) -> tuple[Values, Gates]:
    """One minus the mean cosine with the others of the group that pass, and whether there are others."""
    length_N1 = np.linalg.norm(features_NF, axis=1, keepdims=True)
    unit_NF = features_NF / np.maximum(length_N1, 1e-12)
    values, compared = np.zeros(len(unit_NF), np.float32), np.zeros(len(unit_NF), np.bool_)
    for group in np.unique(groups_N):
        rows = np.flatnonzero(groups_N == group)
        if len(rows) > 1:
            among_G = passes_N[rows] if passes_N[rows].sum() > 1 else np.ones(len(rows), np.bool_)
            cosines_GG = unit_NF[rows] @ unit_NF[rows].T
            others_GG = among_G & ~np.eye(len(rows), dtype=np.bool_)
            values[rows] = 1 - (cosines_GG * others_GG).sum(axis=1) / others_GG.sum(axis=1)
            compared[rows] = True
    return values, compared
