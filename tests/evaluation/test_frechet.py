"""The extrapolated Frechet distance, on Gaussians whose distance is known."""

import numpy as np
import pytest

from pleinair.evaluation.frechet import extrapolated_frechet_distance
from pleinair.evaluation.metrics import frechet_distance

DIMS = 12


def gaussian(num: int, mean: float, deviation: float, seed: int) -> np.ndarray:
    return mean + deviation * np.random.default_rng(seed).standard_normal((num, DIMS))


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.5, 1.5)])
def test_small_sets_add_to_the_plain_distance_and_hardly_to_the_extrapolated_one(mean: float, deviation: float) -> None:
    exact = DIMS * (mean**2 + (deviation - 1) ** 2)
    errors = []
    for seed in range(6):
        sets = gaussian(150, 0.0, 1.0, seed), gaussian(150, mean, deviation, 100 + seed)
        errors.append((frechet_distance(*sets) - exact, extrapolated_frechet_distance(*sets) - exact))
    plain, extrapolated = np.mean(errors, axis=0)
    assert plain > 0.3
    assert abs(extrapolated) < 0.3 * plain


def test_sets_that_belong_together_row_by_row_stay_so() -> None:
    """Of copies every subset is a copy, too: the distance is 0 at every size."""
    rows = gaussian(100, 0.0, 1.0, 0)
    assert extrapolated_frechet_distance(rows, rows) == pytest.approx(0.0, abs=1e-6)


def test_it_is_the_same_on_every_call_and_refuses_more_features_than_it_can_follow() -> None:
    sets = gaussian(80, 0.0, 1.0, 0), gaussian(80, 1.0, 1.0, 1)
    assert extrapolated_frechet_distance(*sets) == extrapolated_frechet_distance(*sets)
    with pytest.raises(ValueError, match="30 pictures with 12 features: for an extrapolation give more than 34"):
        extrapolated_frechet_distance(sets[0][:30], sets[1])
