"""Planted samples: which modes and neighbourhoods they reach is known."""

import numpy as np
import pytest

from pleinair.evaluation.coverage import mode_coverage, neighbour_coverage

MODES = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], float)


def around(modes: list[int], counts: list[int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    parts = [MODES[mode] + 0.3 * rng.standard_normal((n, 2)) for mode, n in zip(modes, counts, strict=True)]
    return np.concatenate(parts)


def test_modes_count_when_they_hold_a_share_of_samples_near_by() -> None:
    assert mode_coverage(around([0, 1, 2, 3], [50] * 4), MODES, 2.0) == 1.0
    assert mode_coverage(around([0, 1], [100, 100]), MODES, 2.0) == 0.5
    few = around([0, 1, 2, 3], [94, 94, 9, 3])
    assert mode_coverage(few, MODES, 2.0, least_share=0.15) == 0.75
    assert mode_coverage(few, MODES, 2.0, least_share=0.05) == 1.0


def test_samples_between_modes_cover_none() -> None:
    assert mode_coverage(np.full((40, 2), 5.0) + np.arange(40)[:, None] * 1e-3, MODES, 2.0) == 0.0


def test_neighbourhoods_of_a_mode_without_samples_are_not_covered() -> None:
    reference = around([0, 1, 2, 3], [50] * 4)
    whole = neighbour_coverage(around([0, 1, 2, 3], [50] * 4, seed=1), reference)
    half = neighbour_coverage(around([0, 3], [100, 100], seed=1), reference)
    assert whole > 0.9
    assert half == pytest.approx(0.5, abs=0.03)
    assert neighbour_coverage(reference, reference) == 1.0
    assert neighbour_coverage(reference[:1], reference) < 0.1


def test_one_outlier_covers_nothing_and_a_sample_at_the_kth_neighbour_covers() -> None:
    reference = np.arange(10.0)[:, None]
    assert neighbour_coverage(np.array([[100.0]]), reference, k=2) == 0.0
    assert neighbour_coverage(np.array([[11.0]]), reference, k=2) == pytest.approx(0.1)  # two away from 9, as 7 is
    with pytest.raises(ValueError, match="k = 10 neighbours among 10 references"):
        neighbour_coverage(reference, reference, k=10)
