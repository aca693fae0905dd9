from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pleinair.flow import (
    euler,
    guide,
    heun,
    interpolate,
    sample_timesteps,
    shift_mu,
    shift_timesteps,
    timestep_schedule,
    velocity_target,
)

Solver = Callable[..., Tensor]


def kolmogorov_distance(samples: Tensor, mean: float, deviation: float) -> float:
    """Largest gap between the samples' distribution and the analytic logit-normal's."""
    t = samples.double().sort().values
    cdf = 0.5 * (1 + torch.erf((torch.logit(t) - mean) / (deviation * math.sqrt(2))))
    steps = torch.arange(len(t) + 1, dtype=torch.float64) / len(t)
    return float(torch.maximum((cdf - steps[:-1]).abs(), (cdf - steps[1:]).abs()).max())


def test_the_path_starts_at_the_data_and_ends_at_the_noise() -> None:
    x0, noise = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert torch.equal(interpolate(x0, noise, torch.zeros(2)), x0)
    assert torch.equal(interpolate(x0, noise, torch.ones(2)), noise)


def test_each_sample_has_its_own_timestep() -> None:
    x0, noise, timestep = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([0.25, 0.9])
    mixed = interpolate(x0, noise, timestep)
    for sample, t in enumerate(timestep):
        assert torch.allclose(mixed[sample], (1 - t) * x0[sample] + t * noise[sample])


def test_the_target_is_the_derivative_of_the_path() -> None:
    x0, noise = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    before, after = (interpolate(x0, noise, torch.full((2,), t)) for t in (0.25, 0.75))
    assert torch.allclose((after - before) / 0.5, velocity_target(x0, noise))


@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (0.9, 1.0), (-0.5, 0.6)])
def test_training_timesteps_follow_the_logit_normal(mu: float, sigma: float) -> None:
    count = 20_000
    samples = sample_timesteps(count, mu=mu, sigma=sigma, generator=torch.Generator().manual_seed(0))
    assert samples.min() > 0
    assert samples.max() < 1
    critical_at_one_percent = 1.63 / math.sqrt(count)
    assert kolmogorov_distance(samples, mu, sigma) < critical_at_one_percent


def test_shifting_a_logit_normal_by_mu_adds_mu_to_its_mean() -> None:
    samples = sample_timesteps(20_000, mu=0.2, generator=torch.Generator().manual_seed(1))
    assert kolmogorov_distance(shift_timesteps(samples.double(), 0.7), 0.2 + 0.7, 1.0) < 1.63 / math.sqrt(20_000)


@given(st.floats(-4, 4), st.floats(0.001, 0.999))
def test_a_shift_moves_the_logit_by_mu(mu: float, t: float) -> None:
    shifted = shift_timesteps(torch.tensor(t, dtype=torch.float64), mu)
    assert torch.logit(shifted) == pytest.approx(math.log(t / (1 - t)) + mu, abs=1e-9)


def test_timesteps_repeat_with_the_generator() -> None:
    first, second = (sample_timesteps(8, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("tokens", "mu"), [(24, 0.4755), (256, 0.5), (1024, 0.58125), (4096, 0.90625), (6400, 1.15), (16384, 2.20625)]
)
def test_the_shift_grows_linearly_with_image_tokens_and_is_not_clamped(tokens: int, mu: float) -> None:
    assert shift_mu(tokens) == pytest.approx(mu, abs=1e-4)


@given(st.integers(1, 60), st.floats(-4, 4))
def test_every_schedule_falls_from_exactly_one_to_exactly_zero(num_steps: int, mu: float) -> None:
    schedule = timestep_schedule(num_steps, mu)
    assert len(schedule) == num_steps + 1
    assert schedule[0] == 1
    assert schedule[-1] == 0
    assert (schedule.diff() < 0).all()


@pytest.mark.parametrize("tokens", [64, 256, 1024, 6400])
@pytest.mark.parametrize("num_steps", [1, 8, 28, 52])
def test_the_schedule_is_the_one_diffusers_gives_k2(tokens: int, num_steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400
    )
    mu = shift_mu(tokens)
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / num_steps, num_steps).tolist(), mu=mu)
    assert torch.allclose(timestep_schedule(num_steps, mu).float(), scheduler.sigmas, atol=1e-6, rtol=0)


@pytest.mark.parametrize("solver", [euler, heun])
@pytest.mark.parametrize("num_steps", [1, 7])
def test_a_straight_path_is_followed_exactly(solver: Solver, num_steps: int) -> None:
    x0, noise = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3)
    velocity = velocity_target(x0, noise)
    reached = solver(lambda x, t: velocity, noise, timestep_schedule(num_steps, 0.5))
    assert torch.allclose(reached, x0, atol=1e-5)


def decay_error(solver: Solver, num_steps: int) -> float:
    """Error at t = 0 on dx/dt = x, whose solution from x(1) = 1 is e^(t - 1)."""
    start = torch.ones(1, 1, dtype=torch.float64)
    reached = solver(lambda x, t: x, start, torch.linspace(1, 0, num_steps + 1))
    return abs(float(reached) - math.exp(-1))


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2)])
def test_the_error_shrinks_with_the_solvers_order(solver: Solver, order: int) -> None:
    measured = math.log2(decay_error(solver, 8) / decay_error(solver, 16))
    assert measured == pytest.approx(order, abs=0.15)


def test_the_exact_velocity_of_a_gaussian_carries_noise_to_it() -> None:
    mean, deviation = 1.5, 0.4

    def velocity(x: Tensor, timestep_B: Tensor) -> Tensor:
        # E[noise - x0 | x_t] for x0 ~ N(mean, deviation^2): linear regression of one Gaussian on another.
        t = timestep_B[:, None].double()
        variance = (1 - t) ** 2 * deviation**2 + t**2
        slope = (t - (1 - t) * deviation**2) / variance
        return slope * (x - (1 - t) * mean) - mean

    noise = torch.randn(50_000, 1, generator=torch.Generator().manual_seed(0))
    drawn = heun(velocity, noise, timestep_schedule(40, 0.0))
    assert float(drawn.mean()) == pytest.approx(mean + deviation * float(noise.mean()), abs=2e-3)
    assert float(drawn.std()) == pytest.approx(deviation * float(noise.std()), rel=5e-3)


def test_the_state_stays_in_float32_when_the_model_answers_in_bfloat16() -> None:
    seen = []

    def velocity(x: Tensor, timestep_B: Tensor) -> Tensor:
        seen.append((x.dtype, timestep_B.dtype, tuple(timestep_B.shape)))
        return x.bfloat16()

    assert euler(velocity, torch.randn(3, 2).bfloat16(), timestep_schedule(2, 0.0)).dtype == torch.float32
    assert set(seen) == {(torch.float32, torch.float32, (3,))}


@pytest.mark.parametrize("solver", [euler, heun])
def test_every_step_is_reported_and_the_callback_may_stop(solver: Solver) -> None:
    class Enough(Exception):  # noqa: N818
        pass

    steps = []

    def on_step(step: int, x: Tensor) -> None:
        steps.append(step)
        if step == 3:
            raise Enough

    with pytest.raises(Enough):
        solver(lambda x, t: x, torch.ones(1, 1), timestep_schedule(5, 0.0), on_step)
    assert steps == [1, 2, 3]


def test_guidance_zero_is_off_and_one_doubles_the_difference() -> None:
    cond, uncond = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(guide(cond, uncond, 0.0), cond)
    assert torch.allclose(guide(cond, uncond, 1.0), 2 * cond - uncond)


def test_an_empty_schedule_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="num_steps is 0: give at least 1"):
        timestep_schedule(0, 0.5)
    with pytest.raises(ValueError, match="give at least 2"):
        euler(lambda x, t: x, torch.ones(1, 1), torch.ones(1))
