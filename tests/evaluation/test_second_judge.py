from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pleinair.evaluation.second_judge import SecondJudgeConfig, fit_second_judge, load_second_judge, save_second_judge
from pleinair.records.errors import CheckpointError

CONFIG = SecondJudgeConfig(
    style_names=("ink", "oil", "chalk"),
    concept_names=tuple(f"thing-{number}" for number in range(12)),
    features="made up",
    width=48,
    concept_features=16,
    epochs=12,
    batch_size=64,
)


def labelled(num: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features that hold a style and a thing, each as a direction of its own."""
    rng = np.random.default_rng(seed)
    styles, concepts = rng.integers(3, size=num), rng.integers(12, size=num)
    directions = np.random.default_rng(7).normal(size=(15, 48))
    features = 1.2 * directions[styles] + directions[3 + concepts] + 0.7 * rng.normal(size=(num, 48))
    return features.astype(np.float32), styles, concepts


def test_it_learns_styles_and_things_and_keeps_them_in_a_file(tmp_path: Path) -> None:
    judge = fit_second_judge(*labelled(1200, 0), CONFIG)
    features, styles, concepts = labelled(300, 1)
    scores = judge.judge(features)
    assert (scores.style_logits.argmax(axis=1) == styles).mean() > 0.9
    assert (scores.concept_logits.argmax(axis=1) == concepts).mean() > 0.9
    assert np.linalg.norm(scores.embedding, axis=1) == pytest.approx(1, abs=1e-5)
    save_second_judge(judge, tmp_path / "second.safetensors")
    again = load_second_judge(tmp_path / "second.safetensors")
    assert again.config == CONFIG
    assert (again.judge(features).concept_logits.argmax(axis=1) == scores.concept_logits.argmax(axis=1)).mean() > 0.97


def test_fitting_twice_gives_the_same_bits() -> None:
    first, second = (fit_second_judge(*labelled(200, 0), CONFIG).judge(labelled(20, 1)[0]) for _ in range(2))
    assert np.array_equal(first.concept_logits, second.concept_logits)


def test_standardised_features_have_deviation_one_over_what_it_was_fitted_to() -> None:
    features, styles, concepts = labelled(800, 0)
    standard = fit_second_judge(features, styles, concepts, CONFIG).standardised(features)
    assert standard.mean(axis=0) == pytest.approx(0, abs=1e-3)
    assert standard.std(axis=0) == pytest.approx(1, abs=1e-2)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_second_judge(tmp_path / "no.safetensors")
