"""Renoising against exact Gaussians and against the path itself."""

import torch

from pleinair.flow import interpolate
from pleinair.flow.renoise import added_deviation, mixed_noise, renoise, split

MEAN, DEVIATION = 0.7, 0.4


def test_a_velocity_splits_a_point_into_the_data_and_the_noise_it_was_made_of() -> None:
    clean, noise, timestep_B = torch.randn(5, 2, 3), torch.randn(5, 2, 3), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    found = split(interpolate(clean, noise, timestep_B), noise - clean, timestep_B)
    torch.testing.assert_close(found, (clean, noise))


def test_a_renoised_gaussian_has_the_paths_mean_and_deviation_at_the_later_timestep() -> None:
    torch.manual_seed(0)
    from_B, to_B = torch.tensor([0.0, 0.1, 0.5, 0.8]), torch.tensor([0.3, 0.9, 0.55, 0.97])
    clean = MEAN + DEVIATION * torch.randn(4, 400_000)
    later = renoise(interpolate(clean, torch.randn_like(clean), from_B), from_B, to_B, torch.randn_like(clean))
    torch.testing.assert_close(later.mean(1), (1 - to_B) * MEAN, atol=5e-3, rtol=0)
    torch.testing.assert_close(later.std(1), (((1 - to_B) * DEVIATION) ** 2 + to_B**2).sqrt(), atol=0, rtol=5e-3)


def test_renoising_data_is_interpolation_and_no_time_adds_no_noise() -> None:
    x, fresh, to_B = torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0.1, 0.5, 0.9])
    torch.testing.assert_close(renoise(x, torch.zeros(3), to_B, fresh), interpolate(x, fresh, to_B))
    torch.testing.assert_close(renoise(x, to_B, to_B, fresh), x, atol=1e-3, rtol=0)
    assert added_deviation(to_B, to_B).max() < 1e-3


def test_mixed_noise_is_all_that_is_not_data_in_a_renoised_point() -> None:
    clean, noise, fresh = (torch.randn(3, 4) for _ in range(3))
    from_B, to_B = torch.tensor([0.1, 0.3, 0.6]), torch.tensor([0.2, 0.9, 0.8])
    later = renoise(interpolate(clean, noise, from_B), from_B, to_B, fresh)
    torch.testing.assert_close(interpolate(clean, mixed_noise(noise, from_B, to_B, fresh), to_B), later)
