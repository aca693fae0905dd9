"""What the experiments on distillation make of their measurements."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.experiments import tdm, tdm_page
from benchmarks.experiments.drawn import shown, spread
from benchmarks.experiments.results import once
from benchmarks.experiments.tdm_page import Student
from pleinair.training.records import StepRecord


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


STUDENT = Student(num_steps=4, num_seeds=3)
TEACHER = {"concept": 0.8, "style": 0.9, "frechet": 0.2, "coverage": 0.6}


def distilled(name: str, seed: int = 0, **values: float) -> dict[str, Any]:
    """A row, as good as the teacher but for `values`."""
    return {"name": name, "seed": seed, **TEACHER, **values}


def teacher_rows(seeds: int = 3, untrained: float = 0.3) -> list[dict[str, Any]]:
    """The guided reference, and the teacher at few steps, guided and not."""
    reference = tdm_page.teacher_name(tdm_page.REFERENCE_STEPS, True)
    few = [tdm_page.teacher_name(4, guided) for guided in (True, False)]
    rows = [distilled(reference, seed) for seed in range(seeds)]
    return [*rows, *(distilled(name, seed, concept=untrained) for name in few for seed in range(seeds))]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"concept": 0.73, "frechet": 0.21, "coverage": 0.59}, ["reached", "reached", "reached", "reached"]),
        (
            {"concept": 0.71, "frechet": 0.23, "coverage": 0.57},
            ["not reached", "reached", "not reached", "not reached"],
        ),
    ],
)
def test_a_student_reaches_what_is_within_a_tenth_of_the_reference_and_covers_little_less(
    values: dict[str, float], words: list[str]
) -> None:
    rows = [*teacher_rows(), *(distilled(STUDENT.name, seed, **values) for seed in range(3))]
    told = tdm_page.against_reference(rows, STUDENT)
    assert [one.split("above 0, ")[1].split(" (")[0] for one in told] == words
    assert told[0].endswith("(untrained: not reached).")
    assert told[1].endswith("(untrained: reached).")


def test_students_are_paired_with_the_teacher_in_the_noise_of_their_seed() -> None:
    """Seeds differ far more than student and teacher do within one."""
    rows = teacher_rows()
    for seed, row in enumerate(rows[:3]):
        row["concept"] = 0.5 + 0.2 * seed
        rows.append(distilled(STUDENT.name, seed, concept=0.46 + 0.18 * seed))
    assert "above 0, reached" in tdm_page.against_reference(rows, STUDENT)[0]
    rows[-1], rows[-2] = {**rows[-1], "seed": 1}, {**rows[-2], "seed": 2}
    assert "above 0, undecided" in tdm_page.against_reference(rows, STUDENT)[0]


def test_students_are_set_against_the_teacher_at_as_few_steps_and_variants_against_students() -> None:
    variant = Student(num_steps=4, num_seeds=2, fake_updates=3)
    rows = [*teacher_rows(), *(distilled(STUDENT.name, seed) for seed in range(3))]
    rows += [distilled(variant.name, seed, concept=0.7) for seed in range(2)]
    told = tdm_page.verdicts(rows, [STUDENT, variant])
    assert len(told) == 4 + 2 + 1
    assert "better than the teacher, 4 steps, guided by: concepts named +0.500 \u00b1 0.000 (reached)" in told[4]
    assert "better than the student, 4 steps by: concepts named -0.100 \u00b1 0.000 (not reached)" in told[6]


def test_the_page_of_students_shows_models_gaps_and_verdicts() -> None:
    rows: list[dict[str, Any]] = [{"name": "real pictures", "seed": 0}, *teacher_rows()]
    rows += [distilled(STUDENT.name, seed) for seed in range(3)]
    rows[-3] |= {"log": {"tdm/gap": [0.5, 0.2], "tdm/fake": [1.0, 1.0]}}
    for row in rows:
        row |= {"fine_detail": 0.1, "saturation": 0.2, "pixels": np.zeros((1, 4, 4, 3), int).tolist()}
    html = tdm_page.report("About.", rows, [STUDENT], ["a fox"], 1000, "Some updates")
    for said in ("to reach: above 0, reached", "real pictures", "a fox", "0.800 \u00b1 0.000", "Some updates"):
        assert said in html


def test_what_a_training_logs_is_averaged_over_stretches_and_may_be_missing_at_some_steps() -> None:
    of = {"phase": "prompts", "loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0, "samples_per_second": 8.0}
    records = [
        StepRecord(step=step, metrics={"tdm/gap": float(step), **({"tdm/gap_1": 1.0} if step < 2 else {})}, **of)
        for step in range(40)
    ]
    log = tdm.log_of(records, tdm.Distilling(batch_size=16))
    assert log["log"]["tdm/gap"] == [2 * place + 0.5 for place in range(20)]
    assert log["log"]["tdm/gap_1"][0] == 1.0
    assert math.isnan(log["log"]["tdm/gap_1"][1])
    assert log["seconds"] == 80.0
