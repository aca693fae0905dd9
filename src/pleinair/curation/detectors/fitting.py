"""From labelled pictures to a measured detector.

    examples --a fifth of the pictures, by name--> unseen pictures ------------------> measured per source
        `--the rest--> which features? (held-out folds) --> probe, threshold --------> the detector
                 `--without one source, for each--> a probe of the same kind --------> measured on that source

Nothing is chosen on the pictures it is measured on: features, penalty, calibration and threshold come from folds of the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pleinair.curation.detectors.detector import Detector, Manifest
from pleinair.curation.detectors.features import Array
from pleinair.curation.detectors.logistic import Fitted, Flags, fit_probe, fold_of, threshold_for
from pleinair.curation.detectors.measures import Measure, measure
from pleinair.records.errors import ConfigError

_FEWEST_OF_SOURCE = 20


@dataclass(frozen=True)
class Examples:
    """Labelled pictures as features."""

    features: Mapping[str, Array]
    """Set -> (N, D)."""
    labels_N: Flags
    groups: Sequence[str]
    """The picture each example comes of: its twins share its fate."""
    sources: Sequence[str]
    origins: Sequence[str]
    """Who labelled: human, planted, vlm, tower, rule."""

    def where(self, rows: npt.NDArray[np.bool_]) -> Examples:
        """Some of the examples."""
        places = np.flatnonzero(rows).tolist()
        some = [[values[place] for place in places] for values in (self.groups, self.sources, self.origins)]
        return Examples({name: x[rows] for name, x in self.features.items()}, self.labels_N[rows], *some)

    def beside(self, names: Sequence[str]) -> Array:
        """The named sets side by side."""
        return np.concatenate([self.features[name] for name in names], axis=1)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a detector is fitted and measured."""

    candidates: tuple[tuple[str, ...], ...]
    """Feature sets to try, the cheapest first; a dearer one must find clearly more."""
    max_false_rate: float = 0.005
    """Share of good pictures it may drop."""
    unseen_share: int = 5
    """One picture in so many is kept for measuring."""
    clearly_more: float = 0.02
    """Recall by which a dearer candidate must be ahead."""

    def __post_init__(self) -> None:
        if not self.candidates or not all(self.candidates):
            raise ConfigError("no features to try: name one set or more")
        if not 0 < self.max_false_rate < 0.5:
            raise ConfigError(f"max_false_rate is {self.max_false_rate}: give a share over 0 and under 0.5")
        if self.unseen_share < 2:
            raise ConfigError(f"unseen_share is {self.unseen_share}: one picture in two or more is kept for measuring")


def fit_detector(examples: Examples, manifest: Manifest, config: FitConfig) -> Detector:
    """Choose features, fit, set the threshold, measure. `manifest` gives name, version and words.

    Raises ConfigError where either class has too few pictures.
    """
    unseen_N = np.array([fold_of(group, config.unseen_share, "unseen") == 0 for group in examples.groups])
    seen, unseen = examples.where(~unseen_N), examples.where(unseen_N)
    tried = {names: _fit(seen, names, config) for names in config.candidates}
    names = _chosen({names: of.recall for names, of in tried.items()}, config.clearly_more)
    fit = tried[names]
    measures = [*_on_unseen(fit, unseen, names), *_on_left_out_sources(seen, unseen, names, config)]
    made = replace(
        manifest,
        features=names,
        threshold=fit.threshold,
        labels=dict(sorted(Counter(map(_counted, seen.origins, seen.labels_N.tolist())).items())),
        sources=tuple(sorted(set(seen.sources))),
        measures=tuple(measures),
        candidates={" + ".join(each): round(of.recall, 4) for each, of in tried.items()},
        max_false_rate=config.max_false_rate,
        penalty=fit.fitted.penalty,
        slope=fit.fitted.probe.slope,
        offset=fit.fitted.probe.offset,
        bias=fit.fitted.probe.bias,
    )
    return Detector(made, fit.fitted.probe)


@dataclass(frozen=True)
class _Fit:
    fitted: Fitted
    threshold: float
    recall: float
    """On the held-out folds, at the threshold."""


def _fit(examples: Examples, names: Sequence[str], config: FitConfig) -> _Fit:
    fitted = fit_probe(examples.beside(names), examples.labels_N, examples.groups)
    threshold = threshold_for(fitted.held_out_scores_N, examples.labels_N, config.max_false_rate)
    return _Fit(fitted, threshold, float((fitted.held_out_scores_N[examples.labels_N] > threshold).mean()))


def _chosen(recalls: Mapping[tuple[str, ...], float], clearly_more: float) -> tuple[str, ...]:
    """The first candidate that no later one beats clearly."""
    best = next(iter(recalls))
    for names, recall in recalls.items():
        if recall > recalls[best] + clearly_more:
            best = names
    return best


def _on_unseen(fit: _Fit, unseen: Examples, names: Sequence[str]) -> list[Measure]:
    """All unseen pictures, then those of each source."""
    scores_N = fit.fitted.probe.scores(unseen.beside(names))
    found = [_measured(scores_N, unseen, np.ones(len(scores_N), bool), fit.threshold, "unseen pictures")]
    for source in _sources(unseen):
        rows = np.array([own == source for own in unseen.sources])
        found.append(_measured(scores_N, unseen, rows, fit.threshold, f"unseen pictures of {source}"))
    return found


def _on_left_out_sources(seen: Examples, unseen: Examples, names: Sequence[str], config: FitConfig) -> list[Measure]:
    """A probe fitted without a source, on the unseen pictures of it: what a new source may expect."""
    found = []
    sources = _sources(unseen)
    for source in sources if len(sources) > 1 else ():
        rest = seen.where(np.array([own != source for own in seen.sources]))
        rows = np.array([own == source for own in unseen.sources])
        fit = _fit(rest, names, config)
        scores_N = fit.fitted.probe.scores(unseen.beside(names))
        found.append(_measured(scores_N, unseen, rows, fit.threshold, f"source not trained on: {source}"))
    return found


def _sources(examples: Examples) -> list[str]:
    return [source for source, count in sorted(Counter(examples.sources).items()) if count >= _FEWEST_OF_SOURCE]


def _measured(scores_N: Array, examples: Examples, rows: Flags, threshold: float, slice_: str) -> Measure:
    origins = {origin for origin, row in zip(examples.origins, rows.tolist(), strict=True) if row}
    return measure(scores_N[rows], examples.labels_N[rows], threshold, slice_, " and ".join(sorted(origins)))


def _counted(origin: str, label: bool) -> str:
    return f"{origin} {'yes' if label else 'no'}"
