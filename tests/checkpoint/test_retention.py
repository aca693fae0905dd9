import pytest
from hypothesis import given
from hypothesis import strategies as st

from pleinair.checkpoint.retention import steps_to_keep


def test_the_newest_few_and_the_earliest_of_each_stretch_are_kept() -> None:
    steps = [5, 95, 103, 180, 210, 390, 395, 410, 420]
    assert steps_to_keep(steps, 2) == {410, 420}
    assert steps_to_keep(steps, 1, 100) == {103, 210, 390, 410, 420}


@given(st.sets(st.integers(0, 500), min_size=1), st.integers(1, 4), st.none() | st.integers(1, 90))
def test_pruning_after_every_save_keeps_what_pruning_once_at_the_end_would(
    steps: set[int], keep: int, keep_every: int | None
) -> None:
    held: set[int] = set()
    for step in sorted(steps):
        held = steps_to_keep([*held, step], keep, keep_every)
    assert held == steps_to_keep(list(steps), keep, keep_every)


@pytest.mark.parametrize(("keep", "keep_every"), [(0, None), (1, 0)])
def test_keeping_nothing_is_refused(keep: int, keep_every: int | None) -> None:
    with pytest.raises(ValueError, match="both must be positive"):
        steps_to_keep([1], keep, keep_every)
