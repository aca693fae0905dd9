"""Metrics against naive versions and known identities."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pleinair.evaluation.metrics import (
    concept_top1,
    concept_top5,
    frechet_distance,
    nearest,
    proportion,
    spread_of,
    style_accuracy,
    vendi_score,
)


def features(num: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, dim))


def test_top_accuracies_agree_with_sorting() -> None:
    logits, labels = features(40, 9), np.random.default_rng(1).integers(9, size=40)
    order = np.argsort(-logits, axis=1)
    assert concept_top1(logits, labels).value == np.mean(order[:, 0] == labels)
    assert concept_top5(logits, labels).value == np.mean(
        [label in row[:5] for row, label in zip(order, labels, strict=True)]
    )


def test_a_judge_that_likes_everything_equally_names_nothing() -> None:
    assert concept_top5(np.zeros((10, 1600)), np.arange(10)).value == 0


def test_logits_without_a_label_each_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows of logits for 2 labels"):
        style_accuracy(np.zeros((3, 10)), np.array([0, 1]))
    with pytest.raises(ValueError, match="0 rows"):
        style_accuracy(np.zeros((0, 10)), np.zeros(0, dtype=int))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_the_interval_of_a_proportion_is_that_of_resampling_by_hand(share: float) -> None:
    correct = np.arange(300) < 300 * share
    rng = np.random.default_rng(3)
    by_hand = np.quantile([rng.choice(correct, size=300).mean() for _ in range(4000)], (0.025, 0.975))
    estimate = proportion(correct)
    assert estimate.num == 300
    assert estimate.value == pytest.approx(share, abs=1 / 300)
    assert estimate.interval == pytest.approx(tuple(by_hand), abs=0.012)


def test_a_set_is_at_frechet_distance_zero_from_itself() -> None:
    drawn = features(50, 8)
    assert frechet_distance(drawn, drawn) == pytest.approx(0, abs=1e-9)


def test_a_shifted_set_is_at_the_squared_length_of_the_shift() -> None:
    drawn = features(50, 8)
    assert frechet_distance(drawn, drawn + np.arange(8)) == pytest.approx(np.square(np.arange(8)).sum())


def test_in_one_dimension_the_frechet_distance_is_that_of_means_and_deviations() -> None:
    a, b = features(60, 1, 1), 3 * features(70, 1, 2) + 1
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(3, 12), st.integers(2, 6))
def test_the_frechet_distance_agrees_with_eigenvalues_of_the_product(seed: int, num: int, dim: int) -> None:
    a, b = features(num, dim, seed), features(num + 1, dim, seed + 1) * 1.5
    product = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
    cross = np.sqrt(np.clip(np.linalg.eigvals(product).real, 0, None)).sum()
    expected = (
        np.square(a.mean(0) - b.mean(0)).sum() + np.cov(a, rowvar=False).trace() + np.cov(b, rowvar=False).trace()
    )
    assert frechet_distance(a, b) == pytest.approx(expected - 2 * cross, rel=1e-5, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6, abs=1e-9)


def test_a_small_sample_of_the_same_distribution_looks_farther_than_a_large_one() -> None:
    small, large = (frechet_distance(features(num, 16, 1), features(num, 16, 2)) for num in (20, 2000))
    assert small > 5 * large


def test_one_picture_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="two pictures or more, not 1"):
        frechet_distance(features(1, 4), features(9, 4))


@pytest.mark.parametrize(("num", "dim"), [(6, 3), (3, 6), (1, 4)])
def test_copies_of_one_picture_are_worth_one(num: int, dim: int) -> None:
    assert vendi_score(np.tile(features(1, dim), (num, 1))) == pytest.approx(1)


@pytest.mark.parametrize("dim", [7, 11])
def test_orthogonal_pictures_are_worth_their_number(dim: int) -> None:
    assert vendi_score(np.eye(7, dim) * 3) == pytest.approx(7)


@pytest.mark.parametrize(("num", "dim"), [(30, 5), (5, 30)])
def test_the_vendi_score_agrees_with_the_whole_kernel(num: int, dim: int) -> None:
    drawn = features(num, dim)
    kernel = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in drawn] for a in drawn])
    weights = np.linalg.eigvalsh(kernel / num)
    weights = weights[weights > 1e-12]
    assert vendi_score(drawn) == pytest.approx(np.exp(-(weights * np.log(weights)).sum()))


def test_nearest_agrees_with_a_loop_and_finds_a_picture_itself_first() -> None:
    drawn, reference = features(5, 6, 1), features(20, 6, 2)
    reference[13] = drawn[2] * 7
    order, similarity = nearest(drawn, reference, 3)
    for row, wanted in enumerate(drawn):
        cosines = [wanted @ one / np.linalg.norm(wanted) / np.linalg.norm(one) for one in reference]
        assert order[row].tolist() == sorted(range(20), key=lambda index: -cosines[index])[:3]
        assert similarity[row] == pytest.approx(sorted(cosines, reverse=True)[:3])
    assert (order[2, 0], similarity[2, 0]) == (13, pytest.approx(1))


def test_more_neighbours_than_references_are_refused() -> None:
    with pytest.raises(ValueError, match="k = 4 neighbours of 3"):
        nearest(features(2, 3), features(3, 3), 4)


def test_the_interval_of_a_statistic_holds_its_value_and_shrinks_with_the_set() -> None:
    small, large = (spread_of(vendi_score, features(num, 4)) for num in (30, 1000))
    for estimate in (small, large):
        assert estimate.interval[0] <= estimate.value <= estimate.interval[1]
    assert large.interval[1] - large.interval[0] < small.interval[1] - small.interval[0]
    assert large.num == 1000


def test_the_count_beside_a_distance_is_that_of_the_smaller_set() -> None:
    assert spread_of(frechet_distance, features(30, 2), features(20, 2)).num == 20
