"""Names for groups of pictures from the words of their captions.

A word names a group when the group says it more often than all pictures do, by more than chance would: the log-odds ratio
with a Dirichlet prior over its standard error ("Fightin' Words", Monroe et al. 2008). Words that everything says, and words
said once, both come out low, so no list of stop words is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pleinair.curation.clusters.kmeans import Indices

_PRIOR_WEIGHT = 50.0  # words that the prior counts as; groups of a few pictures have about as many


@dataclass(frozen=True)
class NamedWord:
    """A word said of a group."""

    word: str
    share: float
    """Of the group's pictures that say it."""
    z: float
    """Standard errors above what all pictures say."""


class Vocabulary:
    """Which picture says which word, a word counted once per picture."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        """`texts` are the words of each picture. Words of fewer than two letters are left out."""
        numbers: dict[str, int] = {}
        said = [
            sorted({numbers.setdefault(word, len(numbers)) for word in words if len(word) > 1 and not word.isdigit()})
            for words in texts
        ]
        self.words = list(numbers)
        self.num_pictures = len(said)
        lengths = np.array([len(one) for one in said], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._said = np.array([number for one in said for number in one], dtype=np.int64)
        self._pictures = np.repeat(np.arange(len(said)), lengths)
        self._totals = np.bincount(self._said, minlength=len(self.words))

    def counts(self, rows: Indices) -> Indices:
        """In how many of these pictures each word is said."""
        parts = [self._said[self._starts[row] : self._starts[row + 1]] for row in rows.tolist()]
        return np.bincount(np.concatenate(parts) if parts else [], minlength=len(self.words))

    def says(self, word: str) -> npt.NDArray[np.bool_]:
        """Of every picture, whether it says the word."""
        said = np.zeros(self.num_pictures, dtype=np.bool_)
        said[self._pictures[self._said == self.words.index(word)]] = True
        return said

    def names(self, rows: Indices, *, most: int = 3, min_share: float = 0.3, min_z: float = 2.0) -> list[NamedWord]:
        """The words that set these pictures apart, best first; none when nothing does."""
        inside = self.counts(rows).astype(np.float64)
        outside = self._totals - inside
        prior = self._totals * (_PRIOR_WEIGHT / max(1, self._totals.sum())) + 0.01
        odds = [_log_odds(counts, prior) for counts in (inside, outside)]
        z = (odds[0] - odds[1]) / np.sqrt(1 / (inside + prior) + 1 / (outside + prior))
        share = inside / max(1, len(rows))
        order = np.argsort(-z, kind="stable")
        fit = [number for number in order[: 20 * most].tolist() if z[number] >= min_z and share[number] >= min_share]
        return [NamedWord(self.words[number], float(share[number]), float(z[number])) for number in fit[:most]]


def _log_odds(counts: npt.NDArray[np.float64], prior: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    smoothed = counts + prior
    odds: npt.NDArray[np.float64] = np.log(smoothed / (smoothed.sum() - smoothed))
    return odds
