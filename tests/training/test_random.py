import math

import torch

from pleinair.training.random import RowRandom


def test_a_rows_draws_depend_on_seed_step_and_row_alone() -> None:
    whole = RowRandom(1, 7, range(8))
    noise, times = whole.normal(4, 5), whole.uniform()
    for first, last in ((0, 3), (3, 8)):
        for part in (whole.part(first, last), RowRandom(1, 7, range(first, last))):
            assert torch.equal(part.normal(4, 5), noise[first:last])
            assert torch.equal(part.uniform(), times[first:last])


def test_rows_steps_seeds_and_draws_all_differ() -> None:
    one = RowRandom(1, 7, range(4))
    draws = [one.normal(32), one.normal(32), RowRandom(1, 8, range(4)).normal(32), RowRandom(2, 7, range(4)).normal(32)]
    values = torch.cat(draws)
    assert len(torch.unique(values)) == values.numel()
    assert (torch.corrcoef(values) - torch.eye(len(values))).abs().max() < 0.7


def test_timesteps_of_many_steps_follow_the_logit_normal() -> None:
    mu, sigma = 0.7, 1.2
    t = torch.cat([RowRandom(0, step, range(64)).logit_normal(mu, sigma) for step in range(200)]).double().sort().values
    cdf = 0.5 * (1 + torch.erf((torch.logit(t) - mu) / (sigma * math.sqrt(2))))
    ranks = torch.arange(len(t) + 1, dtype=torch.float64) / len(t)
    distance = torch.maximum((cdf - ranks[:-1]).abs(), (cdf - ranks[1:]).abs()).max()
    assert distance < 1.63 / math.sqrt(len(t))  # Kolmogorov-Smirnov at one percent


def test_noise_is_standard_normal_over_rows() -> None:
    noise = torch.stack([RowRandom(3, step, range(16)).normal(64) for step in range(50)])
    assert abs(noise.mean()) < 5 / math.sqrt(noise.numel())
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / noise.numel())
    assert abs(noise.mean(dim=(0, 2)).std() - 1 / math.sqrt(50 * 64)) < 0.012, "no row has a bias of its own"
