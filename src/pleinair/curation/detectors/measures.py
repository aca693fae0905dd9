"""How good a detector is on pictures it never saw, with the intervals that the number of pictures allows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Z_95 = 1.959964


@dataclass(frozen=True)
class Share:
    """Hits among a number of trials, and Wilson's 95% interval."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """The share; NaN of nothing."""
        return self.hits / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval; 0 to 1 of nothing."""
        if not self.total:
            return 0.0, 1.0
        z2 = _Z_95**2 / self.total
        centre, half = (
            self.value + z2 / 2,
            _Z_95 * np.sqrt(self.value * (1 - self.value) / self.total + z2 / 4 / self.total),
        )
        return max(0.0, float((centre - half) / (1 + z2))), min(1.0, float((centre + half) / (1 + z2)))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} ({low:.3f}-{high:.3f})"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A detector at its threshold on one slice with known truth."""

    slice: str
    """Which pictures: `unseen pictures`, `unseen source: gcompris`, `checked by people`."""
    origin: str
    """Who says what is true there: human, planted, vlm, tower, rule."""
    recall_hits: int
    positives: int
    false_hits: int
    negatives: int

    @property
    def recall(self) -> Share:
        """Of pictures that show it, those found."""
        return Share(self.recall_hits, self.positives)

    @property
    def false_rate(self) -> Share:
        """Of pictures that do not show it, those found all the same."""
        return Share(self.false_hits, self.negatives)

    @property
    def precision(self) -> Share:
        """Of pictures found in this slice, those that show it. In another mix it is `precision_at`."""
        return Share(self.recall_hits, self.recall_hits + self.false_hits)

    def precision_at(self, prevalence: float) -> float:
        """The precision to expect where that share of pictures shows it."""
        found = self.recall.value * prevalence
        return found / max(found + self.false_rate.value * (1 - prevalence), 1e-12)


def measure(
    scores_N: npt.NDArray[np.float32], labels_N: npt.NDArray[np.bool_], threshold: float, slice_: str, origin: str
) -> Measure:
    """Counts at a threshold."""
    found_N = scores_N > threshold
    return Measure(
        slice=slice_,
        origin=origin,
        recall_hits=int((found_N & labels_N).sum()),
        positives=int(labels_N.sum()),
        false_hits=int((found_N & ~labels_N).sum()),
        negatives=int((~labels_N).sum()),
    )
