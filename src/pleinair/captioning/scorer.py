"""How well texts fit pictures, as a number; and what such a number says about a claim.

A scorer's numbers are not calibrated: 0.2 may be much for one text and little for another. So a claim is never held
against a threshold but against rivals, the same sentence with other words in it, on the same picture. A claim scorer is
calibrated, and says how likely a claim is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pleinair.captioning.pictures import Pixels


class Scorer(Protocol):
    """An image-text model: two towers, or anything that orders texts by how well they fit a picture."""

    @property
    def name(self) -> str:
        """Model and version, for the provenance column."""

    def score(self, pictures: Sequence[Pixels], texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape (pictures, texts); larger fits better. NaN where the model has nothing to say about a text."""


class ClaimScorer(Protocol):
    """A calibrated model of embedded pictures: how likely is what is claimed of them?"""

    @property
    def name(self) -> str:
        """Model and version, for the provenance column."""

    @property
    def encoder_name(self) -> str:
        """Whose vectors it understands."""

    def probabilities(self, places: Sequence[str], kind: str, values: Sequence[str]) -> NDArray[np.float32]:
        """(places, values) in 0..1, of pictures by where their vectors lie; NaN where the model has nothing to say."""


def share_beaten(claim: float, rivals: NDArray[np.float32]) -> float | None:
    """The share of rivals that fit the picture worse than the claim, ties half; None when nothing can be compared."""
    known = rivals[~np.isnan(rivals)]
    if np.isnan(claim) or not len(known):
        return None
    return float((known < claim).mean() + (known == claim).mean() / 2)
