"""Planted pictures whose frequencies and colours are known."""

import numpy as np
import pytest

from pleinair.evaluation.picture_statistics import high_frequency_share, saturation


def wave(cycles: float, side: int = 32, depth: float = 50.0) -> np.ndarray:
    """Grey stripes of so many cycles over a picture, around the middle."""
    row = 128 + depth * np.sin(2 * np.pi * cycles * (np.arange(side) + 0.25) / side)
    return np.broadcast_to(row[None, :, None], (side, side, 3))


def as_pictures(*pictures: np.ndarray) -> np.ndarray:
    return np.stack([picture.round().clip(0, 255) for picture in pictures]).astype(np.uint8)


def test_slow_waves_have_no_fine_detail_fast_ones_nothing_else_and_flat_pictures_neither() -> None:
    shares = high_frequency_share(as_pictures(wave(2), wave(12), np.full((32, 32, 3), 200.0)))
    assert shares == pytest.approx([0, 1, 0], abs=2e-3)


def test_of_two_waves_the_share_is_that_of_their_squares() -> None:
    mixed = wave(2, depth=30) + wave(12, depth=60) - 128
    assert high_frequency_share(as_pictures(mixed))[0] == pytest.approx(0.8, abs=5e-3)


def test_frequencies_are_radial_and_the_cutoff_counts_as_fine() -> None:
    diagonal = 128 + 50 * np.cos(2 * np.pi * 6 * np.add.outer(np.arange(32), np.arange(32)) / 32)
    picture = as_pictures(np.repeat(diagonal[..., None], 3, axis=2))
    assert high_frequency_share(picture)[0] > 0.99  # 6 cycles each way are 8.5 along the diagonal
    assert high_frequency_share(picture, cutoff=0.3)[0] < 0.01
    assert high_frequency_share(as_pictures(wave(8)))[0] > 0.99


def test_saturation_is_that_of_hsv() -> None:
    colours = np.array([[255, 0, 0], [128, 128, 128], [0, 0, 0], [200, 100, 150]], np.uint8)
    flat = np.broadcast_to(colours[:, None, None], (4, 5, 7, 3))
    assert saturation(flat) == pytest.approx([1, 0, 0, 0.5])
    halves = np.concatenate([flat[:1], flat[1:2]], axis=2)
    assert saturation(halves) == pytest.approx([0.5])
