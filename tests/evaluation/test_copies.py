from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pleinair.evaluation.copies import (
    CopyConfig,
    auroc,
    calibrate,
    changed,
    fit_copies,
    load_copies,
    nearest_similarity,
    save_copies,
)
from pleinair.records.errors import CheckpointError


def pairs(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of pictures before and after a change that moves only the last three quarters of them."""
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(num, 64)).astype(np.float32)
    after = before.copy()
    after[:, 16:] += 2 * rng.normal(size=(num, 48)).astype(np.float32)
    return before, after


def test_the_auroc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    positives, negatives = rng.integers(0, 9, 30).astype(float), rng.integers(-3, 6, 40).astype(float)
    naive = np.mean([(p > n) + (p == n) / 2 for p in positives for n in negatives])
    assert auroc(positives, negatives) == pytest.approx(naive)


def test_the_map_learns_which_features_a_change_leaves_alone() -> None:
    embedding = fit_copies(*pairs(1500, 0), CopyConfig(width=64, dim=16, epochs=12, batch_size=64, learning_rate=1e-2))
    before, after = pairs(400, 1)
    fitted = calibrate(embedding.embed(before), embedding.embed(after))
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (before, after)]
    assert fitted.auroc > 0.94
    assert calibrate(*unit).auroc < 0.92


def test_the_nearest_other_is_found_by_blocks_as_by_hand() -> None:
    unit = np.random.default_rng(2).normal(size=(1500, 8)).astype(np.float32)
    whole = unit @ unit.T
    np.fill_diagonal(whole, -np.inf)
    assert nearest_similarity(unit, unit, exclude_own=True) == pytest.approx(whole.max(axis=1), abs=1e-5)


def test_planted_changes_are_the_same_every_time_and_leave_white_white() -> None:
    pictures = np.full((6, 64, 64, 3), 255, np.uint8)
    pictures[:5, 20:44, 20:44] = np.random.default_rng(3).integers(0, 255, (5, 1, 1, 3))
    assert np.array_equal(changed(pictures, 1), changed(pictures, 1))
    assert not np.array_equal(changed(pictures, 1)[:5], pictures[:5])
    assert np.abs(changed(pictures, 1)[5].astype(int) - 255).max() < 40


def test_it_is_kept_and_read_in_eight_bits(tmp_path: Path) -> None:
    embedding = fit_copies(*pairs(300, 0), CopyConfig(width=64, dim=16, epochs=2))
    before, after = pairs(50, 1)
    calibration = calibrate(embedding.embed(before), embedding.embed(after))
    save_copies(embedding, calibration, tmp_path / "copies.safetensors")
    again, kept = load_copies(tmp_path / "copies.safetensors")
    assert kept == calibration
    assert (again.embed(before) * embedding.embed(before)).sum(axis=1).min() > 0.99
    (tmp_path / "copies.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_copies(tmp_path / "copies.safetensors")


def test_one_picture_calibrates_nothing() -> None:
    with pytest.raises(ValueError, match="1 pictures cannot calibrate"):
        calibrate(np.ones((1, 4), np.float32), np.ones((1, 4), np.float32))
