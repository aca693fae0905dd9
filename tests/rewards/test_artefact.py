"""The classifier of faults: finds those it was taught, says how sure it is, and is the same twice."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pleinair.model.artefacts import ArtefactConfig
from pleinair.records.errors import CheckpointError, ConfigError
from pleinair.rewards.artefact import (
    FAILURE,
    ArtefactReport,
    ArtefactReward,
    ArtefactTraining,
    Classifier,
    fit_artefacts,
    load_classifier,
    save_classifier,
)
from pleinair.rewards.corruptions import CORRUPTIONS, corrupted
from tests.rewards.shapes import context, random_shapes

QUICK = ArtefactTraining(num_steps=50, batch_size=32)


@cache
def fitted() -> tuple[Classifier, ArtefactReport]:
    """On shapes, with shapes cut off in the middle as a model's own failures."""
    real, failures = random_shapes(200)[0], random_shapes(60, seed=5)[0]
    failures[:, 32:] = 255
    return fit_artefacts(real, failures, QUICK)


VISIBLE = ("blur", "noise", "ringing", "jpeg", FAILURE)
"""On shapes of one random colour: other faults may change nothing that tells them from another shape."""


def test_planted_faults_and_a_models_own_failures_are_found() -> None:
    _, report = fitted()
    assert set(report.area_under_curve) == {*CORRUPTIONS, FAILURE}
    assert min(report.area_under_curve[name] for name in VISIBLE) > 0.75, report.area_under_curve
    assert report.calibration_error < 0.25
    assert report.num_pictures == 20


def test_sound_pictures_are_likelier_sound_and_the_gate_is_at_the_threshold() -> None:
    classifier, _ = fitted()
    sound = random_shapes(40, seed=9)[0]
    pictures = np.concatenate([sound, corrupted(sound, ["noise", "blur"] * 20, 3)])
    answer = ArtefactReward(classifier, gate_above=0.5).score([""] * 80, pictures, context([0] * 80))
    values = answer.values["artefact"]
    assert values[:40].mean() > values[40:].mean() + 0.2
    np.testing.assert_array_equal(answer.gates["artefact.sound"], values >= 0.5)
    assert not ArtefactReward(classifier).score([""] * 80, pictures, context([0] * 80)).gates


def test_the_same_pictures_and_seed_give_the_same_classifier() -> None:
    few = ArtefactTraining(num_steps=4, batch_size=16)
    first, second = (fit_artefacts(random_shapes(40)[0], config=few)[0] for _ in range(2))
    pictures = random_shapes(8, seed=2)[0]
    np.testing.assert_array_equal(first.sound(pictures), second.sound(pictures))
    other = fit_artefacts(random_shapes(40)[0], config=ArtefactTraining(num_steps=4, batch_size=16, seed=1))[0]
    assert not np.array_equal(first.sound(pictures), other.sound(pictures))


def test_a_fault_that_is_left_out_is_measured_and_not_taught() -> None:
    few = ArtefactTraining(num_steps=4, batch_size=16, leave_out=("blur", "jpeg"))
    classifier, report = fit_artefacts(random_shapes(40)[0], config=few)
    assert "blur" in report.area_under_curve
    assert not {"blur", "jpeg", FAILURE} & set(classifier.network.config.faults)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_fault_changes_a_picture_the_more_the_stronger_and_the_same_way_twice(kind: str) -> None:
    pictures = random_shapes(6)[0]

    def at(strength: float) -> list[np.ndarray]:  # type: ignore[type-arg]
        return [CORRUPTIONS[kind](one, strength, np.random.default_rng(row)) for row, one in enumerate(pictures)]

    def change(made: list[np.ndarray]) -> float:  # type: ignore[type-arg]
        return float(np.mean(np.abs(np.stack(made).astype(float) - pictures)))

    weak, strong = at(0.0), at(1.0)
    assert 0 < change(weak) < change(strong)
    assert {(one.shape, one.dtype) for one in weak + strong} == {((64, 64, 3), np.dtype(np.uint8))}
    np.testing.assert_array_equal(corrupted(pictures, [kind] * 6, 4), corrupted(pictures, [kind] * 6, 4))


def test_a_saved_classifier_says_the_same_and_another_file_is_none(tmp_path: Path) -> None:
    classifier, _ = fitted()
    save_classifier(classifier, tmp_path / "artefact.safetensors")
    pictures = random_shapes(20, seed=4)[0]
    again = load_classifier(tmp_path / "artefact.safetensors")
    np.testing.assert_array_equal(again.sound(pictures), classifier.sound(pictures))
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        load_classifier(tmp_path / "other")


def test_too_few_pictures_and_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="10 real pictures"):
        fit_artefacts(random_shapes(10)[0])
    with pytest.raises(ConfigError, match="leave_out names 'rain'"):
        ArtefactTraining(leave_out=("rain",))
    with pytest.raises(ConfigError, match="none 'sound'"):
        ArtefactConfig(faults=("sound",))
    with pytest.raises(ConfigError, match="gate_above is 1"):
        ArtefactReward(fitted()[0], gate_above=1.0)
