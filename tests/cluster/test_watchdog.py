"""How long a rank may be silent."""

import pytest

from pleinair.cluster.watchdog import Silence, Watchdog, WatchdogConfig
from pleinair.records.run_events import CheckpointSaved, Entered, Event, Loaded, Rendezvous, Step

CONFIG = WatchdogConfig(
    rendezvous_seconds=100.0,
    loading_seconds=200.0,
    compile_seconds=300.0,
    evaluation_seconds=1000.0,
    training_floor_seconds=10.0,
    training_factor=4.0,
)


def trained(step_seconds: float, steps: int = 20) -> tuple[Watchdog, float]:
    watchdog, now = Watchdog(CONFIG, 2, 0.0), 0.0
    for step in range(steps):
        now += step_seconds
        for rank in range(2):
            watchdog.hear(Step(rank=rank, step=step + 1), now)
    return watchdog, now


def test_each_phase_has_its_own_patience() -> None:
    watchdog = Watchdog(CONFIG, 1, 0.0)
    assert watchdog.overdue(99.0) is None
    assert watchdog.overdue(101.0) == Silence(rank=0, phase="rendezvous", seconds=101.0, allowed_seconds=100.0)
    for event, patience in ((Rendezvous(rank=0), 200.0), (Loaded(rank=0, step=0), 300.0)):
        watchdog.hear(event, 0.0)
        assert watchdog.allowed_seconds() == patience


def test_patience_grows_with_the_steps_and_never_falls_below_the_floor() -> None:
    assert trained(0.01)[0].allowed_seconds() == 10.0
    assert trained(30.0)[0].allowed_seconds() == pytest.approx(120.0)


def test_one_slow_step_does_not_make_the_watchdog_patient() -> None:
    watchdog, now = trained(5.0, steps=60)
    watchdog.hear(Step(rank=0, step=61), now + 100.0)
    assert watchdog.allowed_seconds() == pytest.approx(20.0)


@pytest.mark.parametrize(
    "pause",
    [
        [CheckpointSaved(rank=0, step=1, stall_seconds=50.0, write_seconds=50.0)],
        [Entered(rank=0, phase="evaluation"), Entered(rank=0, phase="training")],
    ],
)
def test_standing_still_between_steps_does_not_make_the_watchdog_patient(pause: list[Event]) -> None:
    watchdog, now = Watchdog(CONFIG, 1, 0.0), 0.0
    for step in range(1, 21):
        watchdog.hear(Step(rank=0, step=2 * step), now)
        watchdog.hear(Step(rank=0, step=2 * step + 1), now + 5.0)
        for event in pause:
            watchdog.hear(event, now + 55.0)
        now += 55.0
    watchdog.hear(Step(rank=0, step=50), now)
    assert watchdog.allowed_seconds() == pytest.approx(20.0)


def test_of_two_silent_ranks_the_one_that_is_silent_longer_is_overdue() -> None:
    watchdog, now = trained(1.0)
    watchdog.hear(Step(rank=0, step=21), now + 1.0)
    late = watchdog.overdue(now + 20.0)
    assert late is not None
    assert (late.rank, late.seconds) == (1, 20.0)


def test_the_rank_that_is_silent_is_overdue_and_one_that_has_ended_is_not() -> None:
    watchdog, now = trained(1.0)
    watchdog.hear(Step(rank=0, step=21), now + 11.0)
    assert watchdog.overdue(now + 11.0) == Silence(rank=1, phase="training", seconds=11.0, allowed_seconds=10.0)
    watchdog.ended(1)
    assert watchdog.overdue(now + 11.0) is None


def test_ranks_wait_in_silence_while_one_of_them_evaluates() -> None:
    watchdog, now = trained(1.0)
    watchdog.hear(Entered(rank=0, phase="evaluation"), now)
    assert watchdog.overdue(now + 900.0) is None
    watchdog.hear(Entered(rank=0, phase="training"), now + 900.0)
    late = watchdog.overdue(now + 900.1)
    assert late is not None
    assert late.rank == 1


def test_patience_must_be_positive() -> None:
    with pytest.raises(ValueError, match="training_factor is 0: give a positive number"):
        WatchdogConfig(training_factor=0)
