"""Bradley-Terry with ties: against a brute search of the likelihood, its closed form, and simulated persons."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pleinair.evaluation.people.strength import (
    PSEUDO,
    Floats,
    fit,
    interval,
    resampled,
    share,
    strengths,
    wilson,
)

PAIRS = [(0, 1), (0, 2), (1, 2)]


def log_likelihood(theta: tuple[float, ...], tie: float, counts: Floats) -> float:
    total = 0.0
    for (i, j), (first, second, same) in zip(PAIRS, counts.tolist(), strict=True):
        a, b, c = (
            math.exp(theta[i]),
            math.exp(theta[j]),
            math.exp(tie) * math.sqrt(math.exp(theta[i]) * math.exp(theta[j])),
        )
        total += (
            first * math.log(a / (a + b + c)) + second * math.log(b / (a + b + c)) + same * math.log(c / (a + b + c))
        )
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_where_a_search_finds_the_greatest_likelihood(seed: int) -> None:
    counts = np.random.default_rng(seed).integers(1, 20, (3, 3)).astype(float)
    found = fit(counts[None], 3)[0]
    assert found[:3].sum() == pytest.approx(0, abs=1e-9)
    steps = np.arange(-2, 2.01, 0.2)
    best = max(
        itertools.product(steps, steps, steps),
        key=lambda at: log_likelihood((at[0], at[1], -at[0] - at[1]), at[2], counts),
    )
    assert np.abs(found[[0, 1, 3]] - best).max() <= 0.2
    at_best = log_likelihood((best[0], best[1], -best[0] - best[1]), best[2], counts)
    assert log_likelihood(tuple(found[:3]), found[3], counts) >= at_best


def test_two_subjects_are_fitted_to_the_very_shares_that_were_counted() -> None:
    counts = np.array([[[6.0, 3.0, 2.0]], [[1.0, 50.0, 0.01]]])
    for (first, second, same), (a, b, tie) in zip(counts[:, 0].tolist(), fit(counts, 2).tolist(), strict=True):
        assert math.exp(a - b) == pytest.approx(first / second)
        assert math.exp(tie) == pytest.approx(same / math.sqrt(first * second))


def answers(
    theta: Floats, tie: float, rng: np.random.Generator, *, persons: int = 6, comparisons: int = 20, own: float = 0.3
):
    """Persons with tastes of their own before comparisons with leanings of their own."""
    taste, leaning = rng.normal(0, own, (persons, len(theta))), rng.normal(0, own, (comparisons, len(theta)))
    rows = []
    for comparison in range(comparisons):
        i, j = rng.permutation(len(theta))[:2]
        for person in range(persons):
            one, other = (theta[k] + taste[person, k] + leaning[comparison, k] for k in (i, j))
            weights = np.exp([one, other, tie + (one + other) / 2])
            rows.append((i, j, rng.choice(3, p=weights / weights.sum()), person, comparison))
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_which_side_a_subject_stood_on_changes_nothing() -> None:
    first, second, outcome, person, comparison = answers(np.array([0.5, 0, -0.5]), 0.0, np.random.default_rng(1))
    exchanged = np.where(outcome < 2, 1 - outcome, outcome)
    one = strengths(first, second, outcome, person, comparison, 3)
    other = strengths(second, first, exchanged, person, comparison, 3)
    assert np.array_equal(one.theta_K, other.theta_K)
    assert np.array_equal(one.beats_interval_KK2, other.beats_interval_KK2)
    assert one.beats_KK + one.beats_KK.T == pytest.approx(np.ones((3, 3)))


def test_one_that_always_wins_is_strong_and_finite() -> None:
    always = np.zeros(20, np.int64)
    found = strengths(always, always + 1, always, always, np.arange(20), 2)
    assert found.beats_KK[0, 1] == pytest.approx((20 + PSEUDO) / (20 + 2 * PSEUDO))
    assert np.isfinite(found.interval_K2).all()
    # Jeffreys' lower bound of 20 of 20 is .884: that all agreed does not make it certain.
    assert found.beats_interval_KK2[0, 1, 0] == pytest.approx(0.884, abs=0.03)
    assert found.num_persons == 1


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    theta, tie = np.array([0.4, 0.0, -0.4]), -0.5
    rng, held, width = np.random.default_rng(3), [], []
    for seed in range(40):
        first, second, outcome, person, comparison = answers(theta, tie, rng)
        found = strengths(first, second, outcome, person, comparison, 3, seed=seed)
        held.append((found.interval_K2[:, 0] <= theta) & (theta <= found.interval_K2[:, 1]))
        width.append(np.ptp(found.interval_K2, axis=1))
    # Persons' own tastes pull the average strengths toward each other by a few hundredths; intervals are about 1 wide.
    assert 0.9 <= np.mean(held) <= 1.0
    assert np.mean(width) < 1.5


def test_answers_of_one_person_are_not_taken_for_those_of_many() -> None:
    person, comparison = np.repeat(np.arange(4), 50), np.tile(np.arange(50), 4)
    likes = np.repeat([1.0, 1.0, 0.0, 0.0], 50)
    weights = resampled(person, comparison, 0)
    clustered = np.ptp(np.quantile((weights @ likes) / weights.sum(axis=1).clip(1), [0.025, 0.975]))
    alone = resampled(np.zeros(200, np.int64), np.arange(200), 0)
    naive = np.ptp(np.quantile((alone @ likes) / alone.sum(axis=1), [0.025, 0.975]))
    assert clustered > 4 * naive


def test_a_share_keeps_a_width_where_all_agree_and_none_is_none() -> None:
    assert share([], [], []) is None
    found = share([True] * 10, ["ada"] * 10, [str(n) for n in range(10)])
    assert found is not None
    assert (found.value, found.num) == (1.0, 10)
    assert found.interval == wilson(1.0, 10)
    assert found.interval[0] == pytest.approx(0.722, abs=0.001)  # a printed table of Wilson's interval


def test_an_interval_holds_its_own_estimate() -> None:
    assert interval(np.array([5.0, 0.0, 1.0])) == pytest.approx([0.025, 5.0])
