"""When a run is started again, and when it is given up."""

import pytest

from pleinair.cluster.restarts import RestartConfig, Restarts


def actions(restarts: Restarts, durable_steps: list[int]) -> list[str]:
    return [restarts.decide((0,), step).action for step in durable_steps]


def test_three_attempts_without_progress_stop_the_run() -> None:
    restarts = Restarts(RestartConfig(), durable_step=40)
    assert actions(restarts, [40, 40]) == ["restart", "restart"]
    decided = restarts.decide((0,), 40)
    assert (decided.action, decided.reason) == (
        "stop",
        "3 attempts in a row made no progress beyond step 40: find the cause in the logs, then give the same command",
    )


def test_progress_starts_the_count_anew() -> None:
    assert actions(Restarts(RestartConfig(), 0), [0, 0, 1, 1, 1, 2, 2, 2, 2]) == ["restart"] * 8 + ["stop"]


def test_restarts_run_out_in_spite_of_little_progress_and_refill_with_much() -> None:
    config = RestartConfig(max_restarts=3, refill_steps=100)
    assert actions(Restarts(config, 0), [1, 2, 3, 4]) == ["restart", "restart", "restart", "stop"]
    assert actions(Restarts(config, 0), [1, 2, 101, 102, 103, 104]) == ["restart"] * 5 + ["stop"]


def test_the_second_failure_of_a_rank_makes_it_a_suspect() -> None:
    restarts = Restarts(RestartConfig(), 0)
    assert restarts.decide((3,), 10).suspects == ()
    assert restarts.decide((1,), 20).suspects == ()
    decided = restarts.decide((3,), 30)
    assert decided.suspects == (3,)
    assert "rank 3 failed more than once: look at its machine" in decided.reason


def test_a_rank_that_asks_is_not_started_again() -> None:
    assert Restarts(RestartConfig(), 0).decide((0,), 10, give_up=True).action == "stop"


def test_pauses_double_while_there_is_no_progress() -> None:
    restarts, pauses = Restarts(RestartConfig(max_without_progress=20, max_restarts=20), 0), []
    for step in [5, *[5] * 8]:
        restarts.decide((0,), step)
        pauses.append(restarts.pause_seconds())
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


@pytest.mark.parametrize("setting", [{"max_restarts": -1}, {"refill_steps": 0}, {"max_without_progress": 0}])
def test_rules_that_make_no_sense_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is {next(iter(setting.values()))}"):
        RestartConfig(**setting)  # type: ignore[arg-type]
