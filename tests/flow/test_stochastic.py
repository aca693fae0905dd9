from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pleinair.flow import VelocityFunction, euler, timestep_schedule
from pleinair.flow.stochastic import (
    Sde,
    Transition,
    Window,
    coefficients,
    log_probability,
    sample_in_window,
    transition,
)

KINDS: tuple[Sde, ...] = ("flow", "dance", "cps")
LEVELS: dict[Sde, float] = {"flow": 0.7, "dance": 0.3, "cps": 0.8}


def exact_velocity(mean: float, deviation: float) -> VelocityFunction:
    """E[noise - x0 | x_t] where x0 is Gaussian."""

    def velocity(x: Tensor, timestep_B: Tensor) -> Tensor:
        t = timestep_B.reshape(-1, *[1] * (x.ndim - 1))
        variance = ((1 - t) * deviation) ** 2 + t**2
        return -mean + (t - (1 - t) * deviation**2) / variance * (x - (1 - t) * mean)

    return velocity


def moments(sde: Sde, level: float, schedule: Tensor, mean: float, deviation: float) -> list[tuple[float, float]]:
    """Mean and variance after every step: each is linear in the state, so two states tell all of it."""
    velocity, found, now, variance = exact_velocity(mean, deviation), [], 0.0, 1.0
    for t, t_next in itertools.pairwise(schedule):
        x, times = torch.tensor([[0.0], [1.0]]), t.repeat(2)
        step = transition(sde, x, velocity(x, times.float()), times, t_next.repeat(2), level)
        at_0, at_1 = step.mean.flatten().tolist()
        now = at_0 + (at_1 - at_0) * now
        variance = (at_1 - at_0) ** 2 * variance + float(step.deviation[0]) ** 2
        found.append((now, variance))
    return found


def gaussian_moments(t: float, mean: float, deviation: float) -> tuple[float, float]:
    return (1 - t) * mean, ((1 - t) * deviation) ** 2 + t**2


def variance_drawn(sde: Sde, level: float, num_steps: int) -> float:
    """Of the samples, where the data's is 1, after checking their mean."""
    mean, variance = moments(sde, level, timestep_schedule(num_steps, 0.0), mean=2.0, deviation=0.8)[-1]
    assert mean == pytest.approx(2.0, rel=0.001)
    return variance / 0.8**2


def test_fifty_steps_of_flow_sde_with_the_exact_velocity_draw_the_gaussian() -> None:
    assert variance_drawn("flow", 0.7, 50) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("sde", "level"), [("flow", 0.7), ("flow", 0.3), ("dance", 0.3), ("cps", 0.1)])
def test_every_kind_draws_the_gaussian_once_euler_does(sde: Sde, level: float) -> None:
    assert variance_drawn(sde, 1e-6, 50) == pytest.approx(0.949, abs=0.001), "Euler's own error, without any noise"
    assert variance_drawn(sde, level, 200) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("sde", "level"), [("flow", 0.7), ("flow", 0.3), ("dance", 0.3)])
@pytest.mark.parametrize("num_steps", [10, 50])
def test_noise_of_the_reverse_sdes_mends_a_part_of_eulers_error(sde: Sde, level: float, num_steps: int) -> None:
    without = abs(1 - variance_drawn(sde, 1e-6, num_steps))
    assert abs(1 - variance_drawn(sde, level, num_steps)) < 0.95 * without


@pytest.mark.parametrize("num_steps", [3, 50])
def test_cps_keeps_the_noise_level_exactly_however_few_the_steps(num_steps: int) -> None:
    schedule = timestep_schedule(num_steps, 0.5)
    found = moments("cps", 0.8, schedule, mean=2.0, deviation=0.0)
    for t, (now, variance) in zip(schedule[1:].tolist(), found, strict=True):
        assert (now, variance) == pytest.approx(gaussian_moments(t, 2.0, 0.0), abs=1e-5)


def test_cps_with_much_noise_narrows_wide_data_whatever_the_number_of_steps() -> None:
    assert [variance_drawn("cps", 0.8, num_steps) for num_steps in (10, 50, 200)] == pytest.approx(
        [0.517, 0.615, 0.640], abs=0.001
    )


@pytest.mark.parametrize("sde", KINDS)
def test_samples_have_the_moments_that_the_coefficients_promise(sde: Sde) -> None:
    schedule, level, generator = timestep_schedule(12, 0.0), LEVELS[sde], torch.Generator().manual_seed(0)
    noise = torch.randn(100_000, 1, generator=generator)
    drawn = sample_in_window(
        exact_velocity(2.0, 0.8),
        noise,
        schedule,
        lambda step: torch.randn(noise.shape, generator=generator),
        sde=sde,
        noise_level=level,
        window=Window(first=0, size=11),
    )
    num_stochastic, after = 11, moments(sde, level, schedule, 2.0, 0.8)
    mean, variance = after[num_stochastic - 1]
    last = drawn.states_BSCHW[:, -1]
    assert last.mean().item() == pytest.approx(mean, abs=0.01)
    assert last.var().item() == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("sde", KINDS)
@pytest.mark.parametrize(("t", "t_next"), [(1.0, 0.9), (0.6, 0.45), (0.1, 0.0)])
def test_without_noise_every_kind_is_eulers_step(sde: Sde, t: float, t_next: float) -> None:
    x, velocity = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    step = transition(sde, x, velocity, torch.full((3,), t), torch.full((3,), t_next), 0.0)
    assert torch.allclose(step.mean, x + (t_next - t) * velocity, atol=1e-6)
    assert step.deviation.abs().max() == 0


def published(sde: Sde, x: Tensor, v: Tensor, s: float, s_next: float, eta: float) -> tuple[Tensor, float]:
    """Mean and deviation as the papers' code writes them."""
    dt, x0, x1 = s_next - s, x - s * v, x + (1 - s) * v
    if sde == "flow":
        sd = eta * math.sqrt(s / (1 - s))
        mean = x * (1 + sd**2 / (2 * s) * dt) + v * (1 + sd**2 * (1 - s) / (2 * s)) * dt
        return mean, sd * math.sqrt(-dt)
    if sde == "dance":
        return x + (v + 0.5 * eta**2 * (x - (1 - s) * x0) / s**2) * dt, eta * math.sqrt(-dt)
    sd = s_next * math.sin(eta * math.pi / 2)
    return (1 - s_next) * x0 + math.sqrt(s_next**2 - sd**2) * x1, sd


@pytest.mark.parametrize("sde", KINDS)
def test_each_row_steps_as_published_at_its_own_timestep(sde: Sde) -> None:
    x, velocity, level = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4), LEVELS[sde]
    now, later = torch.tensor([0.9, 0.4]).double(), torch.tensor([0.7, 0.35]).double()
    step = transition(sde, x, velocity, now, later, level)
    for row in range(2):
        mean, deviation = published(sde, x[row], velocity[row], float(now[row]), float(later[row]), level)
        assert torch.allclose(step.mean[row], mean, atol=1e-5)
        assert step.deviation[row].item() == pytest.approx(deviation, rel=1e-6)


def test_flow_sde_at_pure_noise_takes_the_level_of_the_next_timestep() -> None:
    first = coefficients("flow", torch.ones(1), torch.full((1,), 0.8), 0.7)
    assert first.deviation.item() == pytest.approx(0.7 * math.sqrt(1 / 0.2) * math.sqrt(0.2), rel=1e-6)


def test_the_log_probability_is_the_mean_of_torchs_over_dimensions() -> None:
    mean, reached = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    deviation = torch.tensor([0.1, 0.5, 2.0]).reshape(3, 1, 1, 1)
    expected = torch.distributions.Normal(mean, deviation).log_prob(reached).mean(dim=(1, 2, 3))
    given = Transition(mean, deviation)
    assert torch.allclose(log_probability(reached, given), expected, atol=1e-6)


def test_outside_the_window_the_flow_is_followed_by_euler() -> None:
    schedule, noise, velocity = timestep_schedule(6, 0.5), torch.randn(4, 1, 2, 2), exact_velocity(1.0, 0.5)
    asked = []

    def draw(step: int) -> Tensor:
        asked.append(step)
        return torch.ones_like(noise)

    window = Window(first=2, size=2)
    drawn = sample_in_window(velocity, noise, schedule, draw, sde="cps", noise_level=0.8, window=window)
    assert asked == [2, 3]
    assert torch.equal(drawn.states_BSCHW[:, 0], euler(velocity, noise, schedule[:3]))
    assert torch.equal(drawn.samples_BCHW, euler(velocity, drawn.states_BSCHW[:, 2], schedule[4:]))
    for place, step in enumerate(asked):
        x, times, later = drawn.states_BSCHW[:, place], schedule[step].repeat(4), schedule[step + 1].repeat(4)
        given = transition("cps", x, velocity(x, times.float()), times, later, 0.8)
        assert torch.equal(drawn.states_BSCHW[:, place + 1], given.drawn(torch.ones_like(x)))
        assert torch.equal(drawn.means_BWCHW[:, place], given.mean)
        expected = log_probability(drawn.states_BSCHW[:, place + 1], given)
        assert torch.equal(drawn.log_probabilities_BW[:, place], expected)


def test_without_a_window_the_whole_way_is_eulers_and_no_step_is_kept() -> None:
    schedule, noise, velocity = timestep_schedule(5, 0.5), torch.randn(4, 1, 2, 2), exact_velocity(1.0, 0.5)
    window = Window(first=0, size=0)
    drawn = sample_in_window(velocity, noise, schedule, torch.randn, sde="cps", noise_level=0.8, window=window)
    assert torch.equal(drawn.samples_BCHW, euler(velocity, noise, schedule))
    assert drawn.states_BSCHW.shape == (4, 0, 1, 2, 2)
    assert drawn.log_probabilities_BW.shape == (4, 0)


@pytest.mark.parametrize(
    ("window", "sde", "level", "sentence"),
    [
        (Window(first=4, size=2), "flow", 0.7, "steps 4 to 6 of 5: it must lie among them"),
        (
            Window(first=3, size=2),
            "cps",
            0.8,
            "ends with step 5, the last, where cps adds no noise: end it one earlier",
        ),
        (Window(first=0, size=2), "cps", 0.0, "noise_level is 0.0: steps of a window need noise"),
    ],
)
def test_a_window_that_cannot_be_is_refused(window: Window, sde: Sde, level: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sample_in_window(
            lambda x, t: x, torch.zeros(1, 1, 2, 2), timestep_schedule(5, 0.0), torch.randn,
            sde=sde, noise_level=level, window=window,
        )  # fmt: skip
