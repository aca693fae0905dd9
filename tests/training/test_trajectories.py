"""The states a model visits, against the solver and against an exact Gaussian."""

import pytest
import torch
from torch import Tensor

from pleinair.flow import euler, timestep_schedule
from pleinair.training.random import RowRandom
from pleinair.training.trajectories import at, visited

MEAN, DEVIATION = 0.7, 0.4


def gaussian(x: Tensor, timestep_B: Tensor) -> Tensor:
    """The exact velocity of N(MEAN, DEVIATION^2)."""
    t = timestep_B[:, None]
    variance = ((1 - t) * DEVIATION) ** 2 + t**2
    return (t - (1 - t) * DEVIATION**2) / variance * (x - (1 - t) * MEAN) - MEAN


def test_visited_states_are_those_the_solver_passes() -> None:
    passed: list[Tensor] = []
    noise, schedule = torch.randn(6, 3), timestep_schedule(4, 0.5)
    euler(gaussian, noise, schedule, on_step=lambda _, x: passed.append(x))
    states = visited(gaussian, noise, schedule)
    torch.testing.assert_close(states, torch.stack([noise, *passed[:-1]]))
    place_B = torch.tensor([0, 3, 1, 1, 2, 0])
    assert torch.equal(at(states, place_B)[1], states[3, 1])


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_fresh_noise_keeps_the_marginals_of_a_gaussian(eta: float) -> None:
    random, schedule = RowRandom(0, 0, range(20)), timestep_schedule(400, 0.5)
    states = visited(gaussian, random.normal(10_000), schedule, eta=eta, random=random)
    for place in (130, 260, 399):
        t = schedule[place].item()
        assert states[place].mean().item() == pytest.approx((1 - t) * MEAN, abs=0.01)
        assert states[place].std().item() == pytest.approx((((1 - t) * DEVIATION) ** 2 + t**2) ** 0.5, rel=0.02)


def test_paths_with_fresh_noise_leave_the_solvers_and_need_no_gradient() -> None:
    weight = torch.nn.Parameter(torch.ones(()))
    noise, schedule = torch.randn(6, 3), timestep_schedule(4, 0.5)
    plain, stray = (
        visited(lambda x, t: weight * gaussian(x, t), noise, schedule, eta=eta, random=RowRandom(0, 0, range(6)))
        for eta in (0.0, 0.5)
    )
    assert not plain.requires_grad
    assert torch.equal(plain[0], stray[0])
    assert (plain[1] - stray[1]).abs().min() > 0
