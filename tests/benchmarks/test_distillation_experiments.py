"""What the experiments on distillation make of their measurements."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiments import tdm
from benchmarks.experiments.drawn import shown, spread
from benchmarks.experiments.results import once


def test_a_piece_is_made_once_and_a_failed_one_leaves_nothing(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, int]:
        made.append(1)
        return {"value": 7}

    assert [once(tmp_path / "a" / "piece.json", make) for _ in range(2)] == [{"value": 7}] * 2
    assert made == [1]
    with pytest.raises(ZeroDivisionError):
        once(tmp_path / "b" / "piece.json", lambda: 1 // 0)
    assert not (tmp_path / "b").exists()


def test_an_interval_is_students_and_a_single_run_has_none() -> None:
    mean, half = spread([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.30 / math.sqrt(3)))
    assert (shown([1.0, 2.0, 3.0], ".1f"), shown([0.5])) == ("2.0 \u00b1 2.5", "0.500")


def student(**values: float) -> dict[str, Any]:
    return {"name": "student, 4 steps", "seed": 0, **values}


@pytest.mark.parametrize(
    ("values", "reached"),
    [
        ({"concept": 0.73, "style": 0.9, "frechet_extrapolated": 0.21, "coverage": 0.6}, [True, True, True, True]),
        ({"concept": 0.71, "style": 0.9, "frechet_extrapolated": 0.23, "coverage": 0.59}, [False, True, False, False]),
    ],
)
def test_a_student_reaches_what_is_within_a_tenth_of_the_reference_and_covers_no_less(
    values: dict[str, float], reached: list[bool]
) -> None:
    reference = {"name": tdm.REFERENCE, "concept": 0.8, "style": 0.9, "frechet_extrapolated": 0.2, "coverage": 0.6}
    told = tdm.verdicts([reference, student(**values)], tdm.Plan(seeds=((4, 1),)))
    assert ["; reached" in one for one in told] == reached
