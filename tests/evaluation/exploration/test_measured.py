from __future__ import annotations

import math

import numpy as np
import pytest

from pleinair.evaluation.exploration.measured import compare, effective_number, mean_by_unit, measured


def shares(values: list[float]) -> dict[str, float]:
    return {f"prompt {place}": value for place, value in enumerate(values)}


def test_the_value_is_the_mean_over_units_whatever_their_number_of_pictures() -> None:
    units = mean_by_unit(["a", "a", "a", "b"], np.array([1.0, 1.0, 1.0, 0.0]))
    assert units == {"a": 1.0, "b": 0.0}
    assert measured("can_style", units, 4).value == 0.5


def test_the_interval_is_that_of_resampling_units_by_hand() -> None:
    values = np.random.default_rng(1).random(40)
    rng = np.random.default_rng(2)
    by_hand = [rng.choice(values, len(values)).mean() for _ in range(4000)]
    found = measured("can_style", shares(values.tolist()), 40)
    assert found.interval == pytest.approx(np.quantile(by_hand, (0.025, 0.975)), abs=0.012)


def test_a_share_on_which_all_prompts_agree_has_an_interval_and_a_visible_difference() -> None:
    right, wrong = (measured("can_style", shares([value] * 12), 12) for value in (1.0, 0.0))
    low, high = right.interval
    assert high == 1
    assert low**12 == pytest.approx(0.025)  # a share of which all of 12 are right once in forty
    assert wrong.interval == pytest.approx((0, 1 - low))
    assert right.detectable == pytest.approx(wrong.detectable)
    assert right.detectable > 0.1
    assert measured("diversity", shares([1.0] * 12), 12).interval == (1, 1)  # no share: copies are worth just one


def test_a_histogram_is_worth_the_exponential_of_its_entropy() -> None:
    assert effective_number(np.array([[1.0, 1, 1, 1], [4, 0, 0, 0], [0, 0, 0, 0]])) == pytest.approx([4, 1, 0])
    entropy = -sum(p * math.log(p) for p in (0.5, 0.25, 0.25))
    assert effective_number(np.array([[2.0, 1, 1]])) == pytest.approx([math.exp(entropy)])


def test_prompts_of_one_style_each_are_worth_many_styles_together() -> None:
    units = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    found = measured("default_styles", units, 2)
    assert found.value == pytest.approx(2)
    assert found.interval[0] <= 2 <= found.interval[1]


def test_a_gap_weighs_units_by_their_pictures() -> None:
    units = {"a": [3.0, 3.0, 0.0, 1.0], "b": [0.0, 1.0, 1.0, 1.0]}  # (right, drawn) of either side
    assert measured("unseen_gap", units, 6).value == pytest.approx(3 / 4 - 1 / 2)


def test_a_paired_comparison_sees_what_two_intervals_would_hide() -> None:
    level = np.random.default_rng(3).random(60)
    before, after = (measured("can_style", shares(list(level + change)), 60) for change in (0.0, 0.02))
    assert before.interval[1] > after.interval[0]
    found = compare(before, after)
    assert found.sign == 1
    assert found.difference == pytest.approx(0.02)
    assert compare(after, before).sign == -1


def test_the_visible_difference_is_seen_four_times_in_five() -> None:
    rng, seen, num, tries = np.random.default_rng(4), 0, 50, 100
    for _ in range(tries):
        level, noise = rng.random(num), rng.normal(0, 0.1, num)
        before = measured("can_style", shares(list(level)), num)
        visible = 2.8 * 0.1 / num**0.5
        found = compare(before, measured("can_style", shares(list(level + visible + noise)), num))
        assert found.detectable == pytest.approx(visible, rel=0.5)
        seen += found.sign == 1
    assert 0.65 < seen / tries < 0.9


def test_only_shared_units_are_compared() -> None:
    first = measured("can_style", {"a": 0.0, "b": 0.0, "c": 1.0}, 3)
    second = measured("can_style", {"a": 1.0, "b": 1.0, "d": 0.0}, 3)
    assert compare(first, second).difference == 1
    with pytest.raises(ValueError, match="share 0 units"):
        compare(first, measured("can_style", {"x": 1.0, "y": 1.0}, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused_by_the_name_of_its_unit(bad: float) -> None:
    with pytest.raises(ValueError, match=r"can_style of 'b'.*finite"):
        measured("can_style", {"a": 0.5, "b": bad}, 2)


def test_one_prompt_has_no_interval() -> None:
    with pytest.raises(ValueError, match="rests on 1 of what was asked"):
        measured("can_style", {"a": 0.5}, 1)
