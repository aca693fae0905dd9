"""What is known of a value over a run, and when it is said to behave otherwise than at the start."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pleinair.records.errors import ConfigError
from pleinair.rewards.statistics import Alarm, StatisticsConfig, ValueStatistics, restored

CONFIG = StatisticsConfig(window=64)


def after(*batches: np.ndarray, still: bool = False) -> ValueStatistics:  # type: ignore[type-arg]
    known = ValueStatistics(CONFIG)
    for batch in batches:
        known = known.after(batch, [still])
    return known


def normal(mean: float, std: float, num: int = 64, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).normal(mean, std, num)


def test_mean_and_spread_are_those_of_all_values_so_far() -> None:
    batches = [normal(3, 2, num, num) for num in (5, 1, 40, 17)]
    known, whole = after(*batches), np.concatenate(batches)
    assert (known.count, known.mean, known.std) == (63, pytest.approx(whole.mean()), pytest.approx(whole.std()))


def test_a_batch_that_is_refused_leaves_no_trace() -> None:
    before = after(normal(0, 1))
    told = json.dumps(before.as_state())
    before.after(normal(50, 1), [True])
    assert json.dumps(before.as_state()) == told


@pytest.mark.parametrize(
    ("now", "kinds"),
    [
        (normal(0.2, 1, seed=1), []),
        (normal(5, 1, seed=1), ["mean drifted"]),
        (normal(-5, 1, seed=1), ["mean drifted"]),
        (normal(0, 6, seed=1), ["spread drifted"]),
        (normal(0, 0.1, seed=1), ["spread drifted"]),
    ],
)
def test_drift_against_the_start_is_said(now: np.ndarray, kinds: list[str]) -> None:  # type: ignore[type-arg]
    assert [alarm.kind for alarm in after(normal(0, 1), now).alarms("a")] == kinds


def test_nothing_is_said_before_there_is_something_to_compare() -> None:
    assert after(normal(0, 1), normal(50, 1, num=32)).alarms("a") == []


def test_a_value_whose_groups_no_longer_vary_is_saturated() -> None:
    assert [one.kind for one in after(normal(0, 1), normal(0, 1, seed=2), still=True).alarms("a")] == ["saturated"]


def test_one_and_the_same_number_is_constant_and_said_so() -> None:
    flat = np.full(64, 0.5)
    known = after(flat, flat, flat)
    assert known.constant_for == 3
    assert "a: constant, 3 against 0" in [str(one) for one in known.alarms("a")]
    assert known.after(normal(0, 1), [False]).constant_for == 0


def test_two_batches_of_different_constants_are_not_one_number() -> None:
    assert after(np.full(4, 0.5), np.full(4, 0.7)).constant_for == 0


def test_values_far_outside_all_that_was_seen_are_outliers_once_a_window_was_seen() -> None:
    values = np.array([0.0, 29.0, -40.0, 31.0])
    known = after(np.tile([-1.0, 1.0], 32))
    assert known.outliers(values).tolist() == [False, False, True, True]
    assert not after(np.tile([-1.0, 1.0], 16)).outliers(values).any()


def test_a_state_survives_json() -> None:
    known = after(normal(0, 1), normal(1, 1))
    again = restored(CONFIG, json.loads(json.dumps(known.as_state())))
    assert again == known


def test_an_alarm_is_a_sentence() -> None:
    assert str(Alarm("rubric", "mean drifted", 0.91234, 0.3)) == "rubric: mean drifted, 0.9123 against 0.3"


@pytest.mark.parametrize("wrong", [{"window": 1}, {"mean_drift": 0}, {"spread_drift": 1}, {"saturated_share": 0}])
def test_limits_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        StatisticsConfig(**wrong)  # type: ignore[arg-type]
