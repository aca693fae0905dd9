"""What is known of a value over a run, and when it is said to behave otherwise than at the start."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from pleinair.records.errors import ConfigError
from pleinair.rewards.leaps import batch_of, together
from pleinair.rewards.statistics import Alarm, StatisticsConfig, ValueStatistics, restored

CONFIG = StatisticsConfig(window=64)


def after(*batches: np.ndarray, still: bool = False) -> ValueStatistics:  # type: ignore[type-arg]
    known = ValueStatistics(CONFIG)
    for batch in batches:
        known = known.after(batch, in_groups(batch))
    return replace(known, still=[still] * len(known.still))


def in_groups(batch: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.arange(len(batch)) // 4


def normal(mean: float, std: float, num: int = 64, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).normal(mean, std, num)


def test_mean_and_spread_are_those_of_all_values_so_far() -> None:
    batches = [normal(3, 2, num, num) for num in (5, 1, 40, 17)]
    known, whole = after(*batches), np.concatenate(batches)
    assert (known.count, known.mean, known.std) == (63, pytest.approx(whole.mean()), pytest.approx(whole.std()))


def test_a_batch_that_is_refused_leaves_no_trace() -> None:
    before = after(normal(0, 1))
    told = json.dumps(before.as_state())
    before.after(normal(50, 1), in_groups(normal(50, 1)))
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
    assert known.after(normal(0, 1), in_groups(normal(0, 1))).constant_for == 0


def test_two_batches_of_different_constants_are_not_one_number() -> None:
    assert after(np.full(4, 0.5), np.full(4, 0.7)).constant_for == 0


def test_values_far_outside_all_that_was_seen_are_outliers_once_a_window_was_seen() -> None:
    values = np.array([0.0, 29.0, -40.0, 31.0])
    known = after(np.tile([-1.0, 1.0], 32))
    assert known.outliers(values).tolist() == [False, False, True, True]


@pytest.mark.parametrize("before", [normal(0.5, 0.2, 8), np.full(8, 0.5), np.zeros(100), normal(3e4, 1e3, 8)])
def test_a_value_out_of_all_proportion_is_an_outlier_from_the_second_batch_on(before: np.ndarray) -> None:  # type: ignore[type-arg]
    assert after(before).outliers(np.array([1e7])).all()
    assert not after(before).outliers(before + 5).any(), "and little is known yet of how it varies"
    assert not ValueStatistics(CONFIG).outliers(np.array([1e7])).any(), "nothing can be said of the first"


def test_groups_that_do_not_vary_are_counted_as_still() -> None:
    batch = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 2.0, 3.0, 5.0])
    assert ValueStatistics(CONFIG).after(batch, in_groups(batch)).still == [True, False]


def drawn(means: Sequence[float], groups: int, prompts: float, seed: int = 0) -> list[np.ndarray]:  # type: ignore[type-arg]
    """Batches of groups of eight pictures in 0..1, about a mean, whose prompts differ by as much as is told."""
    rng = np.random.default_rng(seed)
    of_prompts = [mean + rng.normal(0, prompts, (groups, 1)) for mean in means]
    return [np.clip(one + rng.normal(0, 0.2, (groups, 8)), 0, 1).ravel() for one in of_prompts]


def leaps(batches: Sequence[np.ndarray], width: float = 1.0) -> list[float]:  # type: ignore[type-arg]
    """Standard errors by which each batch left those before it."""
    known, found = ValueStatistics(StatisticsConfig()), []
    for batch in batches:
        groups = np.arange(len(batch)) // 8
        found.append(known.leap(batch, groups, width))
        known = known.after(batch, groups)
    return found


LIMIT = StatisticsConfig().leap
CLIMBS = {
    "flat": [0.5] * 60,
    "climbing": [min(0.2 + 0.015 * step, 0.9) for step in range(60)],
    "idle, then climbing fast": [0.25] * 12 + [min(0.25 + 0.06 * step, 0.9) for step in range(48)],
    "falling": [max(0.8 - 0.02 * step, 0.2) for step in range(60)],
    "rarely above nothing": [-0.3] * 60,
}


@pytest.mark.parametrize("means", CLIMBS.values(), ids=CLIMBS)
@pytest.mark.parametrize("groups", [2, 8, 64])
def test_a_climb_is_no_leap(means: list[float], groups: int) -> None:
    highest = [max(leaps(drawn(means, groups, prompts, seed))) for prompts in (0.0, 0.15, 0.25) for seed in range(3)]
    assert max(highest) < LIMIT, highest


@pytest.mark.parametrize(("groups", "prompts"), [(4, 0.0), (8, 0.15), (32, 0.25)])
@pytest.mark.parametrize("to", [1.0, 0.0])
@pytest.mark.parametrize("width", [1.0, math.inf])
def test_a_batch_that_leaves_the_others_at_once_leaps_inside_its_bounds(
    groups: int, prompts: float, to: float, width: float
) -> None:
    honest = drawn([0.5] * 10, groups, prompts)
    broken = [np.clip(np.random.default_rng(1).normal(to, 0.01, groups * 8), 0, 1)]
    assert max(leaps(honest, width)) < LIMIT < leaps([*honest, *broken], width)[-1]


def test_what_one_small_batch_could_not_tell_is_found_in_the_next() -> None:
    found = []
    for seed in range(8):
        honest = drawn([0.5] * 10, 8, 0.25, seed)
        found.append(leaps([*honest, np.ones(64), np.ones(64)])[-2:])
    at_once, with_the_next = (np.array(found) > LIMIT).T
    assert (at_once.sum(), (at_once | with_the_next).sum()) == (4, 7), found


def test_two_batches_as_one_are_the_batch_of_all_their_groups() -> None:
    first, second = drawn([0.2, 0.7], 6, 0.2)
    both = batch_of(np.concatenate([first, second]), np.arange(96) // 8)
    made = together(*(batch_of(one, np.arange(48) // 8) for one in (first, second)))
    assert (made.mean, made.num_groups, made.squares) == (
        pytest.approx(both.mean), both.num_groups, pytest.approx(both.squares),
    )  # fmt: skip


def test_one_odd_group_and_a_batch_of_one_group_are_no_leap() -> None:
    honest = drawn([0.1] * 20, 8, 0.0)
    odd = honest[-1].copy()
    odd[:8] = 1.0
    assert leaps([*honest, odd])[-1] < LIMIT
    single = [batch[:8] for batch in honest]
    assert leaps([*single, np.ones(8)])[-1] == 0.0


def test_values_that_never_varied_may_begin_to() -> None:
    assert max(leaps([np.zeros(64)] * 6 + drawn([0.05] * 3, 8, 0.1))) < LIMIT


def test_a_state_survives_json() -> None:
    known = after(normal(0, 1), normal(1, 1))
    again = restored(CONFIG, json.loads(json.dumps(known.as_state())))
    assert again == known
    assert len(known.batches) == 2
    older = {name: told for name, told in known.as_state().items() if name != "batches"}
    assert restored(CONFIG, older) == replace(known, batches=[])


def test_an_alarm_is_a_sentence() -> None:
    assert str(Alarm("rubric", "mean drifted", 0.91234, 0.3)) == "rubric: mean drifted, 0.9123 against 0.3"


@pytest.mark.parametrize(
    "wrong", [{"window": 1}, {"mean_drift": 0}, {"leap": 0}, {"spread_drift": 1}, {"saturated_share": 0}]
)
def test_limits_that_are_none_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        StatisticsConfig(**wrong)  # type: ignore[arg-type]
